"""Weight files as mappings that read one tensor at a time. No code in a file is ever run.

safetensors reads its own files and torch.serialization.load those of torch.save. Both map the file into memory, but for
files that torch wrote before version 1.6, which it reads whole.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.serialization import load  # not torch.load: A1111 replaces that with a check of its own

from ..errors import CheckpointError, explain, find_reason
from .safe_pickle import LONGEST_PICKLE, Placeholder, make_pickle_module
from .unknown_files import describe_cut, describe_file, one_line

Shapes = dict[str, tuple[int, ...]]

#: Suffixes of weight files, the safest format first.
SUFFIXES = (".safetensors", ".ckpt", ".pth", ".pt")
#: The dtypes that networks compute in, by the names in settings.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
#: Every dtype of a tensor in a file, by its name in safetensors; without those that this torch lacks.
SAFETENSORS: dict[str, torch.dtype] = {
    code: getattr(torch, name)
    for code, name in {
        "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
        "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool", "C64": "complex64", "F8_E4M3": "float8_e4m3fn",
        "F8_E5M2": "float8_e5m2", "U16": "uint16", "U32": "uint32", "U64": "uint64",
    }.items()
    if hasattr(torch, name)
}  # fmt: skip
#: Most tensors that a file may have; a released stage file has 1,623.
MOST_TENSORS = 100_000
#: Bytes of the longest directory of a zip file that is read.
LONGEST_DIRECTORY = 2**23
#: Keys under which trainers nest the weights, in the order in which they are looked for.
NESTS = ("state_dict", "params_ema", "params", "model_state_dict", "model", "net")
#: How a file written by torch before 1.6 begins: a pickle (protocol 2) of a number that means torch.
OLD_TORCH = bytes.fromhex("80028a0a6cfc9c46f9206aa85019")


class Weights(Mapping[str, Tensor]):
    """The tensors of one file by key, mapped from disk and not read before they are used.

    Keys are without what wrappers add to them (`module.`, `_orig_mod.`). `metadata` is a safetensors header's,
    empty for a header without any and for files of torch. Never write to a tensor: it is the file's memory. Raises
    CheckpointError, one line, for anything that is no weight file or is damaged. Time and memory are bounded by the
    size of the file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._safe: Any = None  # the open safetensors file
        self._archive = False  # whether it is a zip file
        self._tensors: dict[str, Tensor] = {}  # of a file of torch
        metadata = None
        try:
            if not self.path.is_file():
                what = "a folder" if self.path.is_dir() else "no such file"
                raise CheckpointError(f"{path}: {what}; give a .safetensors, .ckpt or .pth file")
            size = self.path.stat().st_size
            with self.path.open("rb") as file:
                head = file.read(4096)
            if head.startswith(b"PK\x03\x04") or (head.startswith(OLD_TORCH) and head[257:262] != b"ustar"):
                self._archive = head.startswith(b"PK")
                self._tensors = self._read_torch(size)
                keys = list(self._tensors)
            elif len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < max(size, 2**24):
                self._safe = safe_open(str(self.path), framework="pt")
                metadata, keys = self._safe.metadata(), list(self._safe.keys())
            else:
                raise CheckpointError(f"{path}: {describe_file(self.path, head, size)}")
            if len(keys) > MOST_TENSORS:
                raise ValueError("more tensors than any network has")
        except SafetensorError as error:
            # The library says "incomplete" of a file that ends behind its header.
            short = "incomplete" in str(error).lower() or int.from_bytes(head[:8], "little") + 8 > size
            reason = describe_cut(size) if short else f"damaged ({one_line(error)}); download it again"
            raise CheckpointError(f"{path}: {reason}") from error
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({find_reason(error)}); check the file") from error
        except (CheckpointError, KeyboardInterrupt):
            raise
        except Exception as error:  # torch's loader raises errors of many kinds for damaged files
            raise CheckpointError(f"{path}: damaged ({one_line(error)}); download it again") from error
        self.metadata: dict[str, str] = metadata or {}
        self._keys = {_strip_wrappers(key): key for key in keys}
        self._slices: dict[str, tuple[tuple[int, ...], str]] = {}

    @property
    def is_safetensors(self) -> bool:
        return self._safe is not None

    def __getitem__(self, key: str) -> Tensor:
        name = self._keys[key]
        if self._safe is None:
            return self._tensors[name]
        if self._describe(key)[1] not in SAFETENSORS:
            raise CheckpointError(f"{self.path}: {one_line(key)} has a dtype that this torch lacks; update torch")
        damage = (SafetensorError, OSError, RuntimeError)
        with explain(CheckpointError, f"{self.path}: cannot be read", "download it again", errors=damage):
            return self._safe.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def shapes(self) -> Shapes:
        """The shape of every tensor, without reading it."""
        return {key: self.shape(key) for key in self._keys}

    def shape(self, key: str) -> tuple[int, ...]:
        return self._describe(key)[0] if self._safe else tuple(self._tensors[self._keys[key]].shape)

    def dtype(self, key: str) -> torch.dtype:
        """The dtype of a tensor, without reading it; uint8 for one that this torch lacks."""
        return SAFETENSORS.get(self._describe(key)[1], torch.uint8) if self._safe else self[key].dtype

    def verify(self) -> None:
        """Raise CheckpointError if a checksum in the file says that it is damaged. Reads a zip file whole."""
        if not self._archive:
            return
        try:
            with zipfile.ZipFile(self.path) as archive:
                for member in archive.infolist():
                    if member.CRC:  # 0: written without checksums
                        with archive.open(member) as file:
                            while file.read(2**20):
                                pass
        except (OSError, zipfile.BadZipFile) as error:
            raise CheckpointError(f"{self.path}: damaged (a checksum in it is wrong); download it again") from error

    def _describe(self, key: str) -> tuple[tuple[int, ...], str]:
        if key not in self._slices:
            part = self._safe.get_slice(self._keys[key])
            self._slices[key] = (tuple(part.get_shape()), part.get_dtype())
        return self._slices[key]

    def _read_torch(self, size: int) -> dict[str, Tensor]:
        """The tensors by name in a file of torch.save."""
        module = make_pickle_module(size, self._check_archive(size) if self._archive else None)
        with warnings.catch_warnings():  # of storages with a type; torch's own loader makes them
            warnings.simplefilter("ignore")
            try:
                # torch takes a path with this suffix for a safetensors file, whatever is in it, and maps only paths.
                named_wrong = self.path.suffix.lower() == ".safetensors"
                with self.path.open("rb") as file:
                    source, mmap = (file, False) if named_wrong else (str(self.path), self._archive)
                    value = load(source, map_location="cpu", pickle_module=module, weights_only=False, mmap=mmap)
            except (EOFError, RuntimeError) as error:
                if isinstance(error, EOFError) or (not self._archive and "EOF" in str(error)):
                    raise CheckpointError(f"{self.path}: {describe_cut(size)}") from error
                raise
        for _ in range(4):
            value = _enter(value)
        tensors = {k: v for k, v in value.items() if isinstance(v, Tensor)} if isinstance(value, dict) else {}
        if not tensors:
            strange = isinstance(value, Placeholder)
            kind = f"a pickled object ({one_line(value.name)})" if strange else "no tensors by name"
            raise CheckpointError(
                f"{self.path}: holds {kind}, not the weights of a network; give its state_dict instead"
            )
        return tensors

    def _check_archive(self, size: int) -> dict[str, int]:
        """Bytes of each storage in a zip file, by key. Raises CheckpointError for an archive that is no checkpoint."""
        try:
            with self.path.open("rb") as file:
                _check_directory(file, size)
                with zipfile.ZipFile(file) as archive:
                    members = archive.infolist()
        # zipfile takes some damage for a newer format: NotImplementedError
        except (zipfile.BadZipFile, NotImplementedError, EOFError, IndexError) as error:
            raise CheckpointError(f"{self.path}: {describe_cut(size)}") from error
        names = [m.filename for m in members]
        listing = next((m for m in members if m.filename.split("/")[1:] == ["data.pkl"]), None)
        if listing is None:
            raise CheckpointError(f"{self.path}: {describe_file(self.path, b'PK', size, names)}")
        root = listing.filename.removesuffix("data.pkl")
        if any(n.startswith((f"{root}code/", f"{root}constants.pkl")) for n in names):
            raise CheckpointError(
                f"{self.path}: a TorchScript program, not weights; give the checkpoint that it was made from"
            )
        if any(m.compress_type != zipfile.ZIP_STORED for m in members):
            raise CheckpointError(
                f"{self.path}: compressed by another program; unpack it and save the weights with torch.save"
            )
        if listing.file_size > LONGEST_PICKLE:
            raise ValueError("its list of tensors is longer than any")
        if any(m.header_offset + m.file_size > size or m.file_size != m.compress_size for m in members):
            raise ValueError("its directory")
        folder = f"{root}data/"
        return {n.removeprefix(folder): m.file_size for n, m in zip(names, members) if n.startswith(folder)}


def _check_directory(file: Any, size: int) -> None:
    """zipfile reads the whole directory, whatever its length: raise ValueError before that if it is too long."""
    file.seek(max(0, size - 2**17))
    tail = file.read(2**17)
    for mark, at, width in ((b"PK\5\6", 12, 4), (b"PK\6\6", 40, 8)):  # the ends of a plain and of a large archive
        end = tail.rfind(mark) + at
        length = int.from_bytes(tail[end : end + width], "little") if end >= at else 0
        if length > LONGEST_DIRECTORY and length != 2**32 - 1:  # which stands for "see the end of a large archive"
            raise ValueError("its directory is longer than any")


def _enter(value: Any) -> Any:
    """The weights inside of what a trainer saved, or the value itself. A copy of averages counts if it is complete."""
    if not isinstance(value, dict):
        return value
    inner = {n: value[n] for n in NESTS if value.get(n) and isinstance(value[n], dict)}
    if inner.get("params", {}).keys() - inner.get("params_ema", {}).keys():
        inner.pop("params_ema", None)
    return next(iter(inner.values()), value)


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
        return self._sources[name]

    def shapes(self) -> Shapes:
        return {name: self.shape(name) for name in self}

    def shape(self, name: str) -> tuple[int, ...]:
        return self.weights.shape(self._sources[name][0])

    def dtype(self, name: str) -> torch.dtype:
        return self.weights.dtype(self._sources[name][0])


def _strip_wrappers(key: str) -> str:
    """A key without the prefixes of wrappers: data parallel's in front, the compiler's anywhere."""
    key = key.replace("_orig_mod.", "")
    while key.startswith("module."):
        key = key.removeprefix("module.")
    return key
