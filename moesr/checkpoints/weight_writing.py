"""One safetensors file, written tensor by tensor: it appears whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ..atomic_files import check_room, open_new, remove_abandoned_parts
from ..errors import CheckpointError, explain
from .weight_reading import SAFETENSORS

_NAMES = {dtype: code for code, dtype in SAFETENSORS.items()}


@dataclass(frozen=True)
class Entry:
    """A tensor to write: its name, shape and dtype in the file, and where to get it when its turn comes."""

    name: str
    shape: Sequence[int]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def write(
    path: Path, entries: Sequence[Entry], metadata: dict[str, str], *, written: Callable[[Entry], None] | None = None
) -> None:
    """Write the entries as one safetensors file, with one tensor in memory at a time.

    Whatever interrupts it, `path` is either as before or the whole new file. written: called after each tensor. Raises
    CheckpointError if the disk is full or the file cannot be written.
    """
    path = Path(os.path.realpath(path))  # a link keeps pointing to the file it names
    ordered = sorted(entries, key=lambda e: -e.dtype.itemsize)  # so that every tensor is aligned to its numbers
    header = _make_header(ordered, metadata)
    length = -(-(8 + len(header)) // 64) * 64 - 8  # tensors begin at a multiple of 64
    with explain(CheckpointError, f"{path}: cannot be written", "check the folder and its space"):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned_parts(path.parent)
        check_room(path.parent, sum(e.size for e in entries) + length, "make room")
        with open_new(path, replaces=True) as file:
            file.write(length.to_bytes(8, "little") + header.ljust(length))
            for entry in ordered:
                _write_tensor(file, entry)
                if written:
                    written(entry)


def _make_header(entries: Sequence[Entry], metadata: dict[str, str]) -> bytes:
    table: dict[str, object] = {"__metadata__": metadata}
    at = 0
    for e in entries:
        table[e.name] = {"dtype": _NAMES[e.dtype], "shape": list(e.shape), "data_offsets": [at, at + e.size]}
        at += e.size
    return json.dumps(table, separators=(",", ":")).encode()


def _write_tensor(file: BinaryIO, entry: Entry) -> None:
    tensor = entry.read().detach().to("cpu", entry.dtype)
    if tuple(tensor.shape) != tuple(entry.shape):
        raise ValueError(f"{entry.name} has shape {list(tensor.shape)} instead of {list(entry.shape)}")
    if tensor.numel():
        file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
