"""Where the tensors of a file are: safetensors, torch's zip files and torch's older files, told apart by content.

Only lists of tensors are read here, never tensors; every number in them is checked against the size of the file.
"""

from __future__ import annotations

import errno
import io
import itertools
import json
import math
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ..errors import CheckpointError
from .unpickle import DIMENSIONS, DTYPES, Foreign, Strided, unpickle
from .wrong import cut_off, one_line, what_it_is

#: Longest list of tensors that is read, as a pickle, as JSON and as the directory of a zip file. Those of a released
#: stage file have less than 1 MB; what a hostile file makes of longer ones would fill the memory.
LONGEST_PICKLE, LONGEST_HEADER, LONGEST_DIRECTORY = 2**26, 2**24, 2**23
#: Most tensors a file may have; a released stage file has 1,623.
MOST_TENSORS = 100_000
#: A tensor whose entries repeat may be larger than its place in the file, up to this many bytes.
REPEATED = 2**20
#: Names under which trainers nest the weights, in the order in which they are looked for.
NESTS = ("state_dict", "params_ema", "params", "model_state_dict", "model", "net")

SAFETENSORS = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool", "C64": "complex64", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "U16": "uint16", "U32": "uint32", "U64": "uint64",
}  # fmt: skip
#: How a file written by torch before 1.6 begins: a pickle (protocol 2) of a number that means torch.
OLD_TORCH = bytes.fromhex("80028a0a6cfc9c46f9206aa85019")


@dataclass(frozen=True)
class Extent:
    """Where a tensor is: its first byte in the file, and its strides in entries. dtype None: one this torch lacks."""

    dtype: torch.dtype | None
    start: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def entries(self) -> int:
        """From the first to the last entry in the file."""
        return 0 if 0 in self.shape else 1 + sum((n - 1) * s for n, s in zip(self.shape, self.stride))


@dataclass
class Index:
    """The tensors of a file by their names in it. `metadata` is a safetensors header's.

    `checksums` are (first byte, bytes, CRC-32) of the parts that have one.
    """

    tensors: dict[str, Extent] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    checksums: list[tuple[int, int, int]] = field(default_factory=list)


def read_index(path: Path) -> Index:
    """Where the tensors of a file are. Raises CheckpointError: one line that says what the file is, or what is broken.

    Nothing in the file is run. Time and memory depend on the length of the list of tensors, and that is bounded.
    """
    try:
        if not path.is_file():
            what = "a folder" if path.is_dir() else "no such file"
            raise CheckpointError(f"{path}: {what}; give a .safetensors, .ckpt or .pth file")
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(4096)
            reader = _reader(head, size)
            if reader is None:
                raise CheckpointError(f"{path}: {what_it_is(path, head, size)}")
            return reader(path, file, size)
    except OSError as error:
        if error.errno == errno.EINVAL:  # a place before the beginning of the file, in a damaged directory
            raise CheckpointError(f"{path}: {cut_off(path.stat().st_size)}") from error
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or one_line(error)})") from error
    except (ValueError, OverflowError, struct.error, MemoryError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged ({one_line(error)}); download it again") from error


Reader = Callable[[Path, BinaryIO, int], Index]


def _reader(head: bytes, size: int) -> Reader | None:
    if head.startswith(b"PK\x03\x04"):
        return _zip
    if head.startswith(OLD_TORCH):
        return _old_torch
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < max(size, LONGEST_HEADER):
        return _safetensors
    return None


def _safetensors(path: Path, file: BinaryIO, size: int) -> Index:
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    begin = 8 + length
    if begin > size:
        raise CheckpointError(f"{path}: {cut_off(size)}")
    if length > LONGEST_HEADER:
        raise ValueError("its header is longer than any")
    header = json.loads(file.read(length).decode())
    if not isinstance(header, dict) or len(header) > MOST_TENSORS:
        raise ValueError("its header is no list of tensors")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict):
        raise ValueError("the notes in its header are no list")
    tensors, places = {}, []
    for name, entry in header.items():
        dtype, shape, (first, last) = _entry(entry)
        stride = tuple(itertools.accumulate(reversed((*shape[1:], 1)), lambda a, b: a * b))[::-1]
        number = DTYPES.get(SAFETENSORS.get(dtype, ""))
        if number is not None and last - first != math.prod(shape) * number.itemsize:
            raise ValueError(f"size of {one_line(name)}")
        tensors[name] = Extent(number, begin + first, shape, stride[: len(shape)])
        places.append((first, last))
    end = 0
    for first, last in sorted(places):
        if first != end:
            raise ValueError("its tensors overlap or leave gaps")
        end = last
    if begin + end > size:
        raise CheckpointError(f"{path}: {cut_off(size, begin + end)}")
    if begin + end < size:
        raise ValueError("there is more in it than its header says")
    return Index(tensors, {k: v for k, v in metadata.items() if isinstance(v, str)})


def _entry(entry: Any) -> tuple[str, tuple[int, ...], tuple[int, int]]:
    try:
        dtype, shape, (first, last) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (KeyError, TypeError) as error:
        raise ValueError("an entry of its header") from error
    counts = all(type(n) is int and 0 <= n < 2**62 for n in (*shape, first, last))
    if not counts or len(shape) > DIMENSIONS or not isinstance(dtype, str) or first > last:
        raise ValueError("an entry of its header")
    return dtype, shape, (first, last)


def _zip(path: Path, file: BinaryIO, size: int) -> Index:
    try:
        _check_directory(file, size)
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, EOFError, IndexError) as error:
        raise CheckpointError(f"{path}: {cut_off(size)}") from error
    names = [m.filename for m in members]
    listing = next((m for m in members if m.filename.split("/")[1:] == ["data.pkl"]), None)
    if listing is None:
        raise CheckpointError(f"{path}: {what_it_is(path, b'PK', size, names)}")
    root = listing.filename.removesuffix("data.pkl")
    if any(n.startswith((f"{root}code/", f"{root}constants.pkl")) for n in names):
        raise CheckpointError(f"{path}: a TorchScript program, not weights; give the checkpoint that it was made from")
    if any(m.compress_type != zipfile.ZIP_STORED for m in members):
        raise CheckpointError(f"{path}: compressed by another program; unpack it and save the weights with torch.save")
    found = {m.filename: (*_member(file, m, size), m.CRC) for m in members if not m.filename.endswith("/")}
    start, length, checksum = found[listing.filename]
    if length > LONGEST_PICKLE:
        raise ValueError("its list of tensors is longer than any")
    order = found.get(f"{root}byteorder")
    if order and order[1] < 16 and _at(file, *order[:2]) == b"big":
        raise CheckpointError(f"{path}: saved on a big-endian machine; save it again on a common one")
    content = _at(file, start, length)
    if checksum and zlib.crc32(content) != checksum:
        raise ValueError("the checksum of its list of tensors")
    value, _ = unpickle(io.BytesIO(content), length)
    folder = f"{root}data/"
    places = {name.removeprefix(folder): place[:2] for name, place in found.items() if name.startswith(folder)}
    return Index(_tensors(path, value, places), {}, [place for place in found.values() if place[2]])


def _check_directory(file: BinaryIO, size: int) -> None:
    """zipfile reads the whole directory, whatever its length: raise ValueError before that if it is too long."""
    tail = _at(file, max(0, size - 2**17), 2**17)
    for mark, at, width in ((b"PK\5\6", 12, 4), (b"PK\6\6", 40, 8)):  # the ends of a plain and of a large archive
        end = tail.rfind(mark) + at
        length = int.from_bytes(tail[end : end + width], "little") if end >= at else 0
        if length > LONGEST_DIRECTORY and length != 2**32 - 1:  # which stands for "see the end of a large archive"
            raise ValueError("its directory is longer than any")


def _at(file: BinaryIO, start: int, size: int) -> bytes:
    file.seek(start)
    return file.read(size)


def _member(file: BinaryIO, member: zipfile.ZipInfo, size: int) -> tuple[int, int]:
    """First byte and size of a member that is stored as it is."""
    if member.flag_bits & 1 or member.compress_size != member.file_size:
        raise ValueError("its directory")
    name = member.orig_filename.encode("utf-8" if member.flag_bits & 0x800 else "cp437")
    local = _at(file, member.header_offset, 30 + len(name))
    if local[:4] != b"PK\3\4" or local[30:] != name:
        raise ValueError("its directory")
    start = member.header_offset + 30 + sum(struct.unpack("<HH", local[26:30]))
    if start + member.file_size > size:
        raise ValueError("its directory")
    return start, member.file_size


def _old_torch(path: Path, file: BinaryIO, size: int) -> Index:
    file.seek(0)
    try:
        parts = [unpickle(file, min(size - file.tell(), LONGEST_PICKLE)) for _ in range(5)]
    except ValueError as error:
        reason = cut_off(size) if file.tell() == size else f"damaged ({one_line(error)}); download it again"
        raise CheckpointError(f"{path}: {reason}") from error
    (_, version, system, content, keys), storages = (part[0] for part in parts), parts[3][1]
    if version != 1001 or not isinstance(system, dict) or not isinstance(keys, list):
        raise ValueError("its beginning")
    if system.get("little_endian") is False:
        raise CheckpointError(f"{path}: saved on a big-endian machine; save it again on a common one")
    places: dict[str, tuple[int, int]] = {}
    for key in keys:  # each storage in turn: how many entries, then the entries
        if not isinstance(key, str) or key not in storages or key in places:
            raise ValueError("its list of storages")
        length = storages[key].numel * storages[key].dtype.itemsize
        count = file.read(8)
        places[key] = (file.tell(), length)
        if len(count) < 8 or file.tell() + length > size:
            raise CheckpointError(f"{path}: {cut_off(size)}")
        if int.from_bytes(count, "little") != storages[key].numel:
            raise ValueError(f"storage {one_line(key)}")
        file.seek(length, io.SEEK_CUR)
    return Index(_tensors(path, content, places))


def _tensors(path: Path, value: Any, places: dict[str, tuple[int, int]]) -> dict[str, Extent]:
    """The tensors by name, each checked to be within its storage. places: first byte and size of each storage."""
    named = _named(value)
    if not named:
        kind = f"a pickled object ({one_line(value.name)})" if isinstance(value, Foreign) else "no tensors by name"
        raise CheckpointError(f"{path}: holds {kind}, not the weights of a network; give its state_dict instead")
    if len(named) > MOST_TENSORS:
        raise ValueError("its list of tensors has no end")
    return {name: _extent(name, tensor, places) for name, tensor in named.items()}


def _extent(name: str, tensor: Strided, places: dict[str, tuple[int, int]]) -> Extent:
    begin, size = places.get(tensor.storage.key, (0, -1))
    width = tensor.dtype.itemsize
    extent = Extent(tensor.dtype, begin + tensor.offset * width, tensor.shape, tensor.stride)
    if size < 0 or (tensor.offset + extent.entries) * width > size:
        raise ValueError(f"{one_line(name)} is not where its list of tensors says")
    if math.prod(tensor.shape) * width > max(size, REPEATED):
        raise ValueError(f"{one_line(name)} is larger than its place in the file")
    return extent


def _named(value: Any) -> dict[str, Strided]:
    for _ in range(4):
        value = _nested(value)
    if not isinstance(value, dict):
        return {}
    return {name: tensor for name, tensor in value.items() if isinstance(tensor, Strided)}


def _nested(value: Any) -> Any:
    """The weights inside of what a trainer saved, or the value itself. A copy of averages counts if it is complete."""
    if not isinstance(value, dict):
        return value
    inner = {n: value[n] for n in NESTS if value.get(n) and isinstance(value[n], dict)}
    if inner.get("params", {}).keys() - inner.get("params_ema", {}).keys():
        inner.pop("params_ema", None)
    return next(iter(inner.values()), value)
