"""Files that appear whole, temporary folders, and what killed runs leave of both: a lock tells who still works."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from .errors import CheckpointError, format_size

_log = logging.getLogger(__name__)

_PART = ".moesr-*.part"
_LOCK = ".moesr-lock"
#: Errors of a file system that has no links.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES)


def create_part(folder: Path) -> tuple[Path, BinaryIO]:
    """A new empty file in the folder, hidden, whose name says that it is not finished. Its lock ends with the file."""
    while True:
        path = folder / f".moesr-{secrets.token_hex(8)}.part"
        file = path.open("xb")
        with contextlib.suppress(OSError):  # a network file system without locks
            _lock(file)
        # Before it was locked, another process may have taken it for abandoned and deleted it.
        if path.exists():
            return path, file
        file.close()


@contextlib.contextmanager
def open_new(path: Path, *, replaces: bool = False) -> Iterator[BinaryIO]:
    """A file to write, which appears at `path` whole, when the block ends without an error, or not at all.

    Missing folders are made. Without `replaces` a file that has come to be there meanwhile stays: then FileExistsError.
    With it, that name leads to the new file; a file that the old one was a link to is not changed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part, file = create_part(path.parent)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if os.name != "nt":  # while it is locked
                _place(part, path, replaces)
        if os.name == "nt":
            _place(part, path, replaces)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk names no file
        raise
    finally:
        part.unlink(missing_ok=True)


def check_room(folder: Path, needed: int, way_out: str) -> None:
    """Raises CheckpointError if fewer than `needed` bytes are free there."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CheckpointError(f"{folder}: {format_size(needed)} are needed, {format_size(free)} are free; {way_out}")


def update_digest(digest: Any, path: Path, advance: Callable[[int], None] = lambda size: None) -> str:
    """The hexadecimal digits of a digest of hashlib after it has taken in the file. advance(bytes): as it reads."""
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
            advance(len(block))
    return digest.hexdigest()


def remove_abandoned_parts(folder: Path) -> None:
    """Delete unfinished files of processes that have ended. What others are writing stays."""
    for path in _find(folder, _PART):
        if _is_abandoned(path):
            _log.info("%s: left behind by a run that was killed; deleted", path)
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


class TemporaryFolder:
    """A folder for its owner only, among temporary files or in `parent`. `close` deletes it.

    A new one with the same prefix deletes those whose processes ended without that.
    """

    def __init__(self, prefix: str, parent: Path | None = None) -> None:
        parent = parent or Path(tempfile.gettempdir())
        for path in _find(parent, f"{prefix}*"):
            if path.is_dir() and not path.is_symlink() and _is_ours(path) and _is_abandoned(path / _LOCK):
                shutil.rmtree(path, ignore_errors=True)
        self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent)).resolve()
        if os.name == "nt":
            self._lock: BinaryIO = (self.path / _LOCK).open("xb")
        else:  # locked under another name first, so that nobody sees the lock's file without its lock
            part, self._lock = create_part(self.path)
            part.rename(self.path / _LOCK)

    def close(self) -> None:
        self._lock.close()
        shutil.rmtree(self.path, ignore_errors=True)


def _find(folder: Path, pattern: str) -> list[Path]:
    try:
        return list(folder.glob(pattern))
    except OSError:
        return []


def _is_ours(path: Path) -> bool:
    return not hasattr(os, "getuid") or path.lstat().st_uid == os.getuid()


def _lock(file: BinaryIO) -> None:
    """Lock the file until it is closed. Raises OSError if another process has, or where there are no locks."""
    try:
        import fcntl
    except ImportError:  # Windows, where an open file cannot be deleted
        return
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_abandoned(path: Path) -> bool:
    """True if a process created and locked the file at `path`, and has ended. On Windows the file is then deleted."""
    try:
        if os.name == "nt":
            path.unlink()
            return True
        with path.open("r+b") as file:
            _lock(file)
            return True
    except OSError:
        return False


def _place(part: Path, path: Path, replaces: bool) -> None:
    if replaces:
        os.replace(part, path)
    elif os.name == "nt":
        os.rename(part, path)  # never replaces there
    else:
        try:
            os.link(part, path)  # never replaces
        except FileExistsError:
            raise
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            # FAT and some network file systems have no links: take the name first, then replace the empty file.
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            os.replace(part, path)
