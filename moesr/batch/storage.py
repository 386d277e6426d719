"""Files by address: paths of this machine, and whatever fsspec opens (s3://, gs://, https://)."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from ..atomic_files import open_new
from ..errors import ImageError, MoESRError, SettingError, explain, find_reason

#: Protocols whose files appear whole when their upload ends, so that no temporary name is needed.
_ATOMIC = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "az", "adl", "oss", "r2", "memory"})
#: The way out where a package is missing.
CLUSTER = "run: pip install 'moesr[cluster]'"
_CHECK_PLACE = "check the place and its room, then --resume"
#: Errors of one name, not of the whole place.
_OF_ONE_NAME = frozenset({errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EINVAL, errno.EILSEQ})


class PlaceError(MoESRError):
    """OUT takes no more files: the disk is full, or a bucket refuses. Further pictures would fail as well."""


def is_remote(address: str) -> bool:
    """True for an address of fsspec, False for a path."""
    return "://" in address


def open_filesystem(address: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it. Raises SettingError where a package is missing."""
    try:
        import fsspec

        system: Any = fsspec.filesystem(address.partition("://")[0])
        return system, str(system._strip_protocol(address))
    except ImportError as error:
        raise SettingError(f"{address}: {find_reason(error)}; {CLUSTER}") from error
    except ValueError as error:
        raise SettingError(f"{address}: {find_reason(error)}; give a path, or an address such as s3://x/y") from error


def open_file(address: str) -> BinaryIO:
    """A file open for reading, seekable. Raises ImageError."""
    with _explain_reading(address):
        if not is_remote(address):
            return open(address, "rb")
        system, path = open_filesystem(address)
        return system.open(path, "rb")


def read_bytes(address: str, offset: int = -1, size: int = 0) -> bytes:
    """The bytes of a file, or `size` of them from `offset` on. Raises ImageError, one line."""
    with open_file(address) as file, _explain_reading(address):
        if offset < 0:
            return file.read()
        file.seek(offset)
        data = file.read(size)
    if len(data) < size:
        raise ImageError(f"{address}: ends before its picture does; get the archive again")
    return data


def exists(address: str) -> bool:
    """Whether a file, folder or broken link has that address. Raises PlaceError if that cannot be found out."""
    if not is_remote(address):
        return os.path.lexists(address)
    system, path = open_filesystem(address)
    with explain(PlaceError, f"{address}: cannot be written", _CHECK_PLACE, errors=Exception):
        system.invalidate_cache()
        return bool(system.exists(path))


def write_new(address: str, data: bytes) -> None:
    """A new file, which appears whole. A file of the same bytes that is there already counts as written.

    Raises ImageError if another file has that name, which stays, and PlaceError if OUT takes no files.
    """
    try:
        if is_remote(address):
            _upload_new(address, data)
        else:
            with open_new(Path(address)) as file:
                file.write(data)
    except FileExistsError as error:
        if not is_remote(address) and Path(address).is_dir():
            raise ImageError(f"{address}: is a folder; give another OUT") from error
        if read_bytes(address) != data:
            raise ImageError(f"{address}: another file has that name and stays; give another OUT") from error
    except MoESRError:
        raise
    except Exception as error:
        kind = ImageError if getattr(error, "errno", None) in _OF_ONE_NAME else PlaceError
        raise kind(f"{address}: cannot be written ({find_reason(error)}); {_CHECK_PLACE}") from error


def _upload_new(address: str, data: bytes) -> None:
    system, path = open_filesystem(address)
    if exists(address):
        raise FileExistsError(path)
    if address.partition("://")[0] in _ATOMIC:
        system.pipe_file(path, data)
        return
    folder, _, _ = path.rpartition("/")
    part = f"{folder}/.moesr-{secrets.token_hex(8)}.part"
    system.makedirs(folder, exist_ok=True)
    try:
        system.pipe_file(part, data)
        system.mv(part, path)
    finally:
        if system.exists(part):
            system.rm(part)


def find_size(address: str) -> int:
    """The size of a file in bytes, -1 if there is none. Folders of file systems behind fsspec are listed once."""
    if not is_remote(address):
        try:
            return os.stat(address).st_size
        except OSError:
            return -1
    folder, _, name = address.rpartition("/")
    return _list_sizes(folder).get(name, -1)


@lru_cache(maxsize=4)
def _list_sizes(folder: str) -> dict[str, int]:
    system, path = open_filesystem(folder)
    entries = ask(folder, lambda: system.ls(path, detail=True, refresh=True) if system.exists(path) else [])
    return {str(entry["name"]).rpartition("/")[2]: int(entry["size"] or 0) for entry in entries}


def ask(address: str, list_entries: Callable[[], Any]) -> Any:
    """What a file system lists. Raises SettingError, one line, whatever its own error is."""
    with explain(SettingError, f"{address}: cannot be listed", "check it and its permissions", errors=Exception):
        return list_entries()


def _explain_reading(address: str) -> AbstractContextManager[None]:
    # Each file system has errors of its own.
    return explain(ImageError, f"{address}: cannot be read", "check the address", errors=Exception)
