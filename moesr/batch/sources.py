"""Which pictures a job has: folders, patterns, lists, Parquet columns, tar archives; as addresses in a fixed order."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from itertools import takewhile
from pathlib import Path, PurePosixPath

from ..errors import ImageError, SettingError, explain
from ..images.files import READ_SUFFIXES
from ..input_files import PassedOver, Source, list_folder
from .storage import CLUSTER, ask, is_remote, open_file, open_filesystem

_LISTS = (".txt", ".lst", ".list")
_TABLES = (".parquet", ".pq")
_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip")


@dataclass(frozen=True)
class Address(Source):
    """A picture that is not opened yet. `path` is its name, for stem and suffix; `folder` lies below OUT."""

    #: Path or URL of the file that holds it.
    address: str = ""
    #: Its first byte in that file, which is a tar archive; -1 if the file is the picture.
    offset: int = -1
    #: Its length in bytes in the archive.
    size: int = 0


def list_addresses(
    names: Sequence[str], output: str, passed_over: PassedOver, *, column: str = "path"
) -> Iterator[Address]:
    """The pictures of all inputs: as given, within a folder by name. One folder's names are in memory at a time.

    column: of Parquet files. Raises SettingError for a name that stands for nothing.
    """
    for name in names:
        found = [name] if os.path.lexists(name) or not has_magic(name) else _expand_pattern(name)
        for item in found:
            yield from _list_one(item, output, passed_over, column)


def _list_one(name: str, output: str, passed_over: PassedOver, column: str) -> Iterator[Address]:
    lower = name.lower()
    if not is_remote(name) and not os.path.exists(name):
        raise SettingError(f"{name}: no such file or folder; check the path")
    if not is_remote(name) and os.path.isdir(name):
        out = None if is_remote(output) else Path(output)
        for source in list_folder(Path(name), out, recursive=True, passed_over=passed_over):
            yield Address(source.path, source.folder, str(source.path))
        for line in passed_over.unreadable:
            raise SettingError(line)
    elif lower.endswith(_LISTS):
        yield from _list_lines(name, lambda: _read_lines(name))
    elif lower.endswith(_TABLES):
        yield from _list_lines(name, lambda: _read_column(name, column))
    elif lower.endswith(".tar"):
        yield from _list_members(name)
    elif lower.endswith(_PACKED):
        raise SettingError(f"{name}: a packed archive has no addresses inside; unpack it to a .tar or a folder")
    elif is_remote(name) and not lower.endswith(READ_SUFFIXES):
        yield from _walk_remote(name, PurePosixPath(), passed_over)
    else:
        yield Address(Path(PurePosixPath(name).name if is_remote(name) else name), Path(), name)


def _expand_pattern(name: str) -> list[str]:
    if not is_remote(name):
        found = sorted(glob(name, recursive=True))
    else:
        system, path = open_filesystem(name)
        found = [system.unstrip_protocol(item) for item in sorted(ask(name, lambda: system.glob(path)))]
    if not found:
        raise SettingError(f"{name}: no such files; check the pattern")
    return found


def _walk_remote(name: str, folder: PurePosixPath, passed_over: PassedOver) -> Iterator[Address]:
    """The pictures of a folder behind fsspec, by name, files before folders."""
    system, path = open_filesystem(name)
    entries = sorted(ask(name, lambda: system.ls(path, detail=True)), key=lambda entry: str(entry["name"]))
    system.invalidate_cache()  # fsspec would keep every listing
    folders: list[str] = []
    for entry in entries:
        address, own = system.unstrip_protocol(entry["name"].rstrip("/")), PurePosixPath(entry["name"]).name
        if own.startswith(".") or entry["name"].rstrip("/") == path.rstrip("/"):
            continue  # hidden, or the empty object that stands for the folder itself
        if entry["type"] == "directory":
            folders.append(address)
        elif own.lower().endswith(READ_SUFFIXES):
            yield Address(Path(own), Path(folder), address)
        else:
            passed_over.kinds[PurePosixPath(own).suffix.lower()] += 1
    for address in folders:
        yield from _walk_remote(address, folder / PurePosixPath(address).name, passed_over)


def _list_lines(name: str, read: Callable[[], Iterator[str]]) -> Iterator[Address]:
    """The pictures that a list names. Relative ones lie beside it; what absolute ones share is no folder below OUT."""
    base = name.replace("\\", "/").rpartition("/")[0]
    shared: list[str] | None = None
    for item in read():
        if _is_absolute(item):
            parts = _split(item)[:-1]
            shared = parts if shared is None else [a for a, b in takewhile(lambda p: p[0] == p[1], zip(shared, parts))]
    for item in read():
        parts = _split(item)
        absolute = _is_absolute(item)
        folder = parts[len(shared or []) : -1] if absolute else [p for p in parts[:-1] if p not in (".", "..")]
        yield Address(Path(parts[-1]), Path(*folder), item if absolute or not base else f"{base}/{item}")


def _is_absolute(item: str) -> bool:
    return is_remote(item) or os.path.isabs(item)


def _split(item: str) -> list[str]:
    return [part for part in item.replace("\\", "/").split("/") if part]


def _read_lines(name: str) -> Iterator[str]:
    with open_file(name) as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                raise SettingError(f"{name}: line {number} is not UTF-8; save the list as UTF-8") from error
            if text:
                yield text


def _read_column(name: str, column: str) -> Iterator[str]:
    with explain(SettingError, f"{name}: Parquet needs pyarrow", CLUSTER, errors=ImportError):
        import pyarrow.parquet as parquet
    damaged = explain(SettingError, f"{name}: not a Parquet file", "check it", errors=(OSError, ValueError))
    with open_file(name) as file, damaged:
        table = parquet.ParquetFile(file)
        if column not in table.schema_arrow.names:
            columns = ", ".join(table.schema_arrow.names)
            raise SettingError(f"{name}: no column {column}; --column takes one of {columns}")
        for rows in table.iter_batches(columns=[column], batch_size=10000):
            yield from (str(value) for value in rows.column(0).to_pylist() if value)


def _list_members(name: str) -> Iterator[Address]:
    """The pictures in a tar archive, in its order; their places in it are their addresses."""
    damaged = explain(ImageError, f"{name}: not a whole tar archive", "get it again", errors=tarfile.TarError)
    with open_file(name) as file, damaged, tarfile.open(fileobj=file, mode="r:") as archive:
        while member := archive.next():
            vars(archive)["members"] = []  # it would keep them all
            path = PurePosixPath(*[part for part in _split(member.name) if part not in (".", "..")])
            if member.isreg() and not path.name.startswith(".") and path.name.lower().endswith(READ_SUFFIXES):
                folder = Path(PurePosixPath(name.replace("\\", "/")).stem, path.parent)
                yield Address(Path(path), folder, name, member.offset_data, member.size)
