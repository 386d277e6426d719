"""Weight files as mappings that read one tensor at a time. No code in a file is ever run."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from ..errors import CheckpointError
from .formats import Extent, read_index
from .wrong import one_line

Shapes = dict[str, tuple[int, ...]]

#: Bytes that are read at a time where a whole file is read.
BLOCK = 2**20


class Weights(Mapping[str, Tensor]):
    """The tensors of one file by key, mapped from disk and not read before they are asked for.

    Keys are without what wrappers add to them (`module.`, `_orig_mod.`). `metadata` is a safetensors header's, empty
    for pickles. A tensor is a private window on the file: never write to it. Raises CheckpointError, one line, for
    anything unreadable; see `formats.read_index` for what can be relied upon when a file is hostile.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        index = read_index(self.path)
        self.metadata = index.metadata
        self._checksums = index.checksums
        self._extents: dict[str, Extent] = {_bare(k): e for k, e in index.tensors.items()}
        self._file: torch.UntypedStorage | None = None

    def __getitem__(self, key: str) -> Tensor:
        extent = self._extents[key]
        dtype = extent.dtype
        if dtype is None:
            raise CheckpointError(f"{self.path}: {one_line(key)} has a dtype that this torch lacks; update torch")
        size = extent.entries * dtype.itemsize
        if not size:
            return torch.empty(extent.shape, dtype=dtype)
        place = self._mapped()[extent.start : extent.start + size]
        if extent.start % dtype.itemsize:
            place = place.clone()  # only kernels for aligned numbers exist
        return torch.empty(0, dtype=dtype).set_(place, 0, extent.shape, extent.stride)

    def __iter__(self) -> Iterator[str]:
        return iter(self._extents)

    def __len__(self) -> int:
        return len(self._extents)

    def __contains__(self, key: object) -> bool:
        return key in self._extents

    def shapes(self) -> Shapes:
        """The shape of every tensor, without reading it."""
        return {k: e.shape for k, e in self._extents.items()}

    def shape(self, key: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        return self._extents[key].shape

    def dtype(self, key: str) -> torch.dtype:
        """The dtype of a tensor, without reading it."""
        return self._extents[key].dtype or torch.uint8

    def header(self, name: str) -> dict[str, object] | None:
        """A JSON object that `metadata` holds under that name, or None."""
        if name not in self.metadata:
            return None
        try:
            value = json.loads(self.metadata[name])
        except (ValueError, RecursionError) as error:
            raise CheckpointError(
                f"{self.path}: its header entry {name!r} is damaged ({one_line(error)}); download it again"
            ) from error
        return value if isinstance(value, dict) else None

    def verify(self) -> None:
        """Raise CheckpointError if a checksum in the file says that it is damaged. Reads the whole file."""
        try:
            with self.path.open("rb") as file:
                for start, size, expected in self._checksums:
                    file.seek(start)
                    found = 0
                    for at in range(0, size, BLOCK):
                        found = zlib.crc32(file.read(min(BLOCK, size - at)), found)
                    if found != expected:
                        raise CheckpointError(f"{self.path}: damaged (a checksum in it is wrong); download it again")
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be read ({error.strerror or one_line(error)})") from error

    def _mapped(self) -> torch.UntypedStorage:
        if self._file is None:
            try:
                size = self.path.stat().st_size
                self._file = cast("torch.UntypedStorage", torch.UntypedStorage.from_file(str(self.path), False, size))
            except (OSError, RuntimeError) as error:
                raise CheckpointError(f"{self.path}: cannot be mapped into memory ({one_line(error)})") from error
        return self._file


class View(Mapping[str, Tensor]):
    """Tensors of one file under a network's names for them; where a name has several sources, their mean.

    `sources`: keys of `weights` for each name. Nothing is read before it is asked for, and nothing is kept. Means are
    taken in float64 and cast back. Raises CheckpointError for weights that are no fractions.
    """

    def __init__(self, weights: Weights, sources: Mapping[str, tuple[str, ...]]) -> None:
        self.weights = weights
        self._sources = dict(sources)
        for name in self:
            kind = self.dtype(name)
            if not (kind.is_floating_point or name.endswith("num_batches_tracked")):
                raise CheckpointError(f"{weights.path}: {name} is of {kind}, not a weight; give a file in fp32 or fp16")

    def __getitem__(self, name: str) -> Tensor:
        keys = self._sources[name]
        first = self.weights[keys[0]]
        if len(keys) == 1:
            return first
        total = first.double()
        for key in keys[1:]:
            total = total + self.weights[key].double()
        return (total / len(keys)).to(first.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)

    def sources(self, name: str) -> tuple[str, ...]:
        """The keys in the file that a name stands for."""
        return self._sources[name]

    def shapes(self) -> Shapes:
        """The shape of every tensor, without reading it."""
        return {name: self.shape(name) for name in self}

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        return self.weights.shape(self._sources[name][0])

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a tensor, without reading it."""
        return self.weights.dtype(self._sources[name][0])


def _bare(key: str) -> str:
    """A key without the prefixes of wrappers: data parallel's in front, the compiler's anywhere."""
    key = key.replace("_orig_mod.", "")
    while key.startswith("module."):
        key = key.removeprefix("module.")
    return key
