"""One job per OUT: a lock file with its owner's machine and process, which is recognised when that has ended."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
from pathlib import Path
from typing import Any

from ..errors import SettingError

#: Seconds between signs of life, and after how many without one the owner on another machine has ended.
_BEAT_SECONDS = 20.0
_STALE_SECONDS = 180.0


class JobLock:
    """Held from its making to `close` by one shard of a job. Raises SettingError if another process holds it."""

    def __init__(self, folder: Path, shard: tuple[int, int]) -> None:
        self.path = folder / f"lock-{shard[0]}-of-{shard[1]}"
        for other in sorted(folder.glob("lock-*-of-*")):
            if other == self.path or not other.name.endswith(f"-of-{shard[1]}"):  # pieces of another cut overlap
                self._refuse_or_remove(other)
        self._token = secrets.token_hex(8)
        pid = os.getpid()
        owner = {"host": socket.gethostname(), "pid": pid, "born": _find_birth(pid), "token": self._token}
        part = folder / f".lock-{self._token}.part"
        try:
            part.write_text(json.dumps(owner))
            _rename_new(part, self.path)
        except FileExistsError:
            self._refuse_or_remove(self.path, alive=True)
        except OSError as error:
            raise SettingError(f"{self.path}: cannot be written ({error.strerror}); check the folder") from error
        finally:
            part.unlink(missing_ok=True)
        self._ended = threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()

    def close(self) -> None:
        """Let others in."""
        self._ended.set()
        if _read_owner(self.path).get("token") == self._token:
            self.path.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._ended.wait(_BEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(self.path)

    def _refuse_or_remove(self, path: Path, *, alive: bool = False) -> None:
        owner = _read_owner(path)
        if alive or _is_alive(path, owner):
            who = f"process {owner.get('pid', '?')} on {owner.get('host', '?')}"
            raise SettingError(f"{path}: {who} is at work there; wait for its end, or give another OUT")
        taken = path.with_name(f".{path.name}-{secrets.token_hex(8)}.stale")
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            path.rename(taken)
            taken.unlink()


def _rename_new(part: Path, path: Path) -> None:
    if os.name == "nt":
        part.rename(path)  # never replaces there
    else:
        os.link(part, path)


def _read_owner(path: Path) -> dict[str, Any]:
    try:
        owner = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _is_alive(path: Path, owner: dict[str, Any]) -> bool:
    if owner.get("host") == socket.gethostname():
        return _is_running(int(owner.get("pid", 0)), owner.get("born"))
    now = path.with_name(f".now-{secrets.token_hex(8)}.part")  # by the clock of the machine that keeps the files
    try:
        now.touch()
        return now.stat().st_mtime - path.stat().st_mtime < _STALE_SECONDS
    except OSError:
        return path.exists()
    finally:
        now.unlink(missing_ok=True)


def _is_running(pid: int, born: str | None) -> bool:
    if pid <= 0:
        return False
    try:
        if os.name == "nt":  # there os.kill would end it
            import ctypes

            handle = ctypes.WinDLL("kernel32").OpenProcess(0x1000, False, pid)  # type: ignore[attr-defined]
            return bool(handle)
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return born is None or _find_birth(pid) == born


def _find_birth(pid: int) -> str | None:
    """When a process began, in ticks since the machine did: another one that was given its number differs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
