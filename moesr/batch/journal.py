"""The journal: JSON Lines on what was begun and what became of it, appended after each rename; how a job resumes."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..atomic_files import open_new
from ..errors import SettingError, explain
from .storage import CLUSTER

#: Seconds between writes that survive a power cut. What such a cut takes away is repeated.
_SYNC_SECONDS = 1.0


@dataclass(frozen=True)
class State:
    """What the journal knows of a picture."""

    #: "pending", "done" or "failed".
    status: str = "pending"
    #: How often it was begun since it was last pending.
    attempts: int = 0
    #: Size of the result.
    bytes: int = 0
    #: Why it failed.
    error: str = ""


class Journal:
    """The journal of one shard, open for appending, with an index over those of all shards in the folder.

    The index is a temporary database on the disk: memory does not grow with the job. Any thread may call.
    """

    def __init__(self, folder: Path, shard: tuple[int, int] = (0, 1)) -> None:
        self.path = folder / journal_name(shard)
        self._lock = threading.RLock()
        self._index = sqlite3.connect("", isolation_level=None, check_same_thread=False)  # in a file without a name
        self._index.execute("PRAGMA journal_mode = OFF")
        columns = "id TEXT PRIMARY KEY, status TEXT, attempts INT, bytes INT, error TEXT"
        self._index.execute(f"CREATE TABLE states ({columns}) WITHOUT ROWID")
        for row in read_rows(find_journals(folder)):
            self._remember(row)
        with explain(SettingError, f"{self.path}: cannot be written", "check the folder"):
            self._file = self.path.open("a+b")
            if self._file.tell():
                self._file.seek(-1, os.SEEK_END)
                if self._file.read() != b"\n":  # a killed run's last line
                    self._file.write(b"\n")
        self._synced = time.monotonic()

    def start(self, row_id: str, *, worker: str, limit: int) -> int:
        """Note that a picture is begun, before it is. The number of this attempt, from 1 on; 0 if it is finished.

        Beyond `limit` nothing is noted. Raises SettingError if the journal cannot be written.
        """
        with self._lock:
            state = self.find(row_id)
            if state.status != "pending":
                return 0
            if state.attempts < limit:
                self.finish({"id": row_id, "attempt": state.attempts + 1, "worker": worker})
            return state.attempts + 1

    def finish(self, row: Mapping[str, Any]) -> None:
        """Note what became of a picture. Raises SettingError if the journal cannot be written."""
        with self._lock, explain(SettingError, f"{self.path}: cannot be written", "make room, then --resume"):
            self._file.write(json.dumps(row, separators=(",", ":")).encode() + b"\n")
            self._file.flush()
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()
            self._remember(row)

    def find(self, row_id: str) -> State:
        query = "SELECT status, attempts, bytes, error FROM states WHERE id = ?"
        with self._lock:
            found = self._index.execute(query, (row_id,)).fetchone()
        return State(*found) if found else State()

    def close(self) -> None:
        """Write what is left to the disk."""
        with self._lock, contextlib.suppress(OSError):
            self._file.close()
        self._index.close()

    def _remember(self, row: Mapping[str, Any]) -> None:
        if "attempt" in row:
            values = (row["id"], "pending", row["attempt"], 0, "")
        else:
            values = (row["id"], row["status"], 0, row.get("bytes", 0), row.get("error", ""))
        self._index.execute("INSERT OR REPLACE INTO states VALUES (?, ?, ?, ?, ?)", values)


def journal_name(shard: tuple[int, int]) -> str:
    """The name of a shard's journal."""
    return f"journal-{shard[0]}-of-{shard[1]}.jsonl"


def find_journals(folder: Path) -> list[Path]:
    """The journals of all shards of a job."""
    return sorted(folder.glob("journal-*-of-*.jsonl"))


def read_rows(paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """All whole lines; a line that a killed run left unfinished is passed over."""
    for path in paths:
        with path.open("rb") as file:
            for line in file:
                with contextlib.suppress(ValueError):
                    row = json.loads(line)
                    if isinstance(row, dict) and "id" in row and ("attempt" in row or "status" in row):
                        yield row


def export_report(folder: Path, path: Path) -> int:
    """The last word on each finished picture of all shards as a Parquet file, sorted by source; how many there are."""
    with explain(SettingError, f"{path}: Parquet needs pyarrow", CLUSTER, errors=ImportError):
        import pyarrow
        from pyarrow import parquet
    last: dict[str, dict[str, Any]] = {}
    for row in read_rows(find_journals(folder)):
        if row.get("status") in ("done", "failed"):
            last[row["id"]] = {**row, "notes": "; ".join(row.get("notes", ())), "tile": str(row.get("tile", ""))}
    kinds = {"seconds": pyarrow.float64(), **dict.fromkeys(_NUMBERS, pyarrow.int64())}
    schema = pyarrow.schema([(name, kinds.get(name, pyarrow.string())) for name in COLUMNS])
    table = pyarrow.Table.from_pylist(sorted(last.values(), key=lambda row: (row["source"], row["id"])), schema)
    buffer = pyarrow.BufferOutputStream()
    parquet.write_table(table, buffer)
    cannot = explain(SettingError, f"{path}: cannot be written", "give another file")
    with cannot, open_new(path, replaces=True) as file:
        file.write(buffer.getvalue())
    return len(last)


_NUMBERS = ("width", "height", "result_width", "result_height", "bytes", "attempts")
#: Of the Parquet export; the journal's lines have the same fields.
COLUMNS = (
    "id", "source", "target", "status", "error", "notes", "seconds", "tile", "width", "height", "result_width",
    "result_height", "bytes", "hash", "attempts", "model_hash", "settings_hash", "worker",
)  # fmt: skip
