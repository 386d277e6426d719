"""A job: pictures and settings on their way through the line, and what its owner sees of it."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import MoESRError
from .intake import Upload
from .settings import Settings

#: Seconds after which a client that asks for nothing any more counts as gone.
GONE = 30.0


class Stopped(MoESRError):
    """The job ends here: it was cancelled, its client is gone, or its time is up. The message says which."""


@dataclass(frozen=True)
class Progress:
    """Where a job is. picture and pictures count from 1, as do step and tile; share is of the whole job, 0 to 1.

    phase: load, encode, sample, decode or save. left: seconds to go, None while nobody can tell. preview: a small JPEG
    of the picture so far.
    """

    phase: str = "load"
    picture: int = 1
    pictures: int = 1
    name: str = ""
    step: int = 0
    steps: int = 0
    tile: int = 0
    tiles: int = 0
    expert: int = 0
    share: float = 0.0
    left: float | None = None
    preview: bytes | None = None


@dataclass(frozen=True)
class Result:
    """A finished picture: the file, what it was made from as a PNG that browsers show, and both sizes (width, height).

    `source` is the upload. `view` is the file itself, or a smaller copy of one that is too large for a browser.
    """

    name: str
    path: Path
    before: Path
    view: Path
    before_size: tuple[int, int]
    size: tuple[int, int]
    source: Path


class Job:
    """Pictures in a line. Its owner calls `wait` again and again, and `cancel`; the worker `check`, `show` and `end`.

    state: waiting, running, done, failed or cancelled. failures: a line for each picture that did not work. error: why
    the job as a whole ended early. Results that are finished stay, whatever happens afterwards.
    """

    def __init__(self, uploads: Sequence[Upload], settings: Settings, *, preview: bool = True) -> None:
        self.id = secrets.token_urlsafe(16)
        self.uploads, self.settings, self.preview = list(uploads), settings, preview
        self.state = "waiting"
        self.progress = Progress(pictures=len(self.uploads))
        self.results: list[Result] = []
        self.failures: list[str] = []
        self.error = ""
        self.archive: Path | None = None
        self.seconds = 0.0  # of work
        self._deadline = float("inf")
        self._seen = time.monotonic()
        self._why = ""
        self._changed = threading.Condition()
        self._version = 0

    @property
    def finished(self) -> bool:
        """True when nothing more will come."""
        return self.state in ("done", "failed", "cancelled")

    @property
    def stopping(self) -> bool:
        """True once the job was cancelled, even if the worker has not come to notice it."""
        return bool(self._why)

    @property
    def gone(self) -> bool:
        """True if nobody has asked about the job for GONE seconds."""
        return time.monotonic() - self._seen > GONE

    def wait(self, seconds: float, version: int | None = None) -> int:
        """Sleep until something is new since `version`, at most `seconds`; the version to know then.

        Without a version it sleeps until the job is finished. Says that the client is still there.
        """
        self._seen = time.monotonic()
        with self._changed:
            self._changed.wait_for(lambda: self.finished or version not in (None, self._version), seconds)
            self._seen = time.monotonic()
            return self._version

    def cancel(self, why: str = "cancelled") -> None:
        """Stop the job as soon as possible; one that is finished stays as it is."""
        with self._changed:
            if not self.finished and not self._why:
                self._why = why
            self._version += 1
            self._changed.notify_all()

    def start(self, limit: float) -> None:
        """The worker begins; from now on the job has `limit` seconds, 0 for any number."""
        self.state = "running"
        if limit:
            self._limit, self._deadline = limit, time.monotonic() + limit
        self._notify()

    def check(self) -> None:
        """Raises Stopped if the job has to end."""
        if self._why:
            raise Stopped(self._why)
        if self.gone:
            raise Stopped("the client has left")
        if time.monotonic() > self._deadline:
            raise Stopped(
                f"this took longer than the {self._limit:.0f} s that this page gives a job; "
                "choose fewer steps, a smaller scale or fewer pictures"
            )

    def show(self, progress: Progress) -> None:
        """The worker has come so far."""
        self.progress = progress
        self._notify()

    def end(self, state: str, error: str = "") -> None:
        """Nothing more will come."""
        self.state, self.error = state, error
        self._notify()

    def _notify(self) -> None:
        with self._changed:
            self._version += 1
            self._changed.notify_all()
