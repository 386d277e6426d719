"""Weight files as mappings that read one tensor at a time. No code in a file is ever run."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import CheckpointError

Shapes = dict[str, tuple[int, ...]]


class Weights(Mapping[str, Tensor]):
    """The tensors of one file by key, mapped from disk and not read before they are asked for.

    `metadata` is a safetensors header's, empty for pickles. Raises CheckpointError, one line, for anything unreadable.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.metadata: dict[str, str] = {}
        if not self.path.is_file():
            raise CheckpointError(f"{self.path}: no such file; give a .safetensors, .ckpt or .pth file")
        if self.path.suffix == ".safetensors":
            try:
                self._file = safe_open(str(self.path), framework="pt")
                self._keys = list(self._file.keys())
                self.metadata = dict(self._file.metadata() or {})
            except (SafetensorError, OSError, ValueError) as error:
                raise CheckpointError(
                    f"{self.path}: not a complete safetensors file ({error}); download it again"
                ) from error
            self._tensors: dict[str, Tensor] | None = None
        else:
            self._tensors = _unpickle(self.path)
            self._keys = list(self._tensors)

    def __getitem__(self, key: str) -> Tensor:
        if self._tensors is not None:
            return self._tensors[key]
        if key not in self._keys:
            raise KeyError(key)
        return self._file.get_tensor(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def shapes(self) -> Shapes:
        """The shape of every tensor, without reading it."""
        if self._tensors is not None:
            return {k: tuple(v.shape) for k, v in self._tensors.items()}
        return {k: tuple(self._file.get_slice(k).get_shape()) for k in self._keys}

    def header(self, name: str) -> dict[str, object] | None:
        """A JSON object that `metadata` holds under that name, or None."""
        if name not in self.metadata:
            return None
        try:
            value = json.loads(self.metadata[name])
        except json.JSONDecodeError as error:
            raise CheckpointError(
                f"{self.path}: its header entry {name!r} is damaged ({error}); download it again"
            ) from error
        return value if isinstance(value, dict) else None


def _unpickle(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise CheckpointError(f"{path}: not readable as a checkpoint ({reason}); download it again") from error
    for _ in range(4):
        inner = state.get("state_dict") if isinstance(state, dict) else None
        if not isinstance(inner, dict):
            break
        state = inner
    tensors = {str(k): v for k, v in state.items() if isinstance(v, Tensor)} if isinstance(state, dict) else {}
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensors by name; this is not a checkpoint of a network")
    return {_bare(k): v for k, v in tensors.items()}


def _bare(key: str) -> str:
    for prefix in ("module.", "_orig_mod."):
        key = key.removeprefix(prefix)
    return key
