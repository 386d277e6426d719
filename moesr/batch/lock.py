"""One job per OUT: a file that its owner locks, with the owner's machine and process in it."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from pathlib import Path
from typing import BinaryIO

from ..errors import SettingError, explain


class JobLock:
    """Held from its making to `close`, or to the end of the process however it ends, by one shard of a job.

    Raises SettingError if another process holds it, or a shard of another number of shards, which would overlap.
    """

    def __init__(self, folder: Path, shard: tuple[int, int]) -> None:
        path = folder / f"lock-{shard[0]}-of-{shard[1]}"
        for other in folder.glob("lock-*-of-*"):
            if not other.name.endswith(f"-of-{shard[1]}"):
                _open_locked(other).close()
        self._file = _open_locked(path)
        with contextlib.suppress(OSError):  # a full disk; the lock holds without a name
            self._file.truncate(0)
            self._file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())

    def close(self) -> None:
        self._file.close()


def _open_locked(path: Path) -> BinaryIO:
    with explain(SettingError, f"{path}: cannot be written", "check the folder"):
        file = path.open("ab", buffering=0)  # so that closing writes nothing to a full disk
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(2**20)  # a place without text, so that others can read the name
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:  # the second on Windows
        file.close()
        owner = path.read_text(errors="replace").strip("\0") or "another process"
        raise SettingError(f"{path}: {owner} is at work there; wait for its end, or give another OUT") from error
    except OSError:  # a file system without locks: write_new still replaces nothing
        pass
    return file
