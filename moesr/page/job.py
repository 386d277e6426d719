"""A job: pictures and settings on their way through the queue, and what its owner sees of it."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..hosting.model_runner import Stopped
from ..progress import Event
from ..result_sizes import TargetSize
from .uploads import Upload

#: Seconds after which a client that asks for nothing any more counts as gone.
PATIENCE = 30.0


@dataclass(frozen=True)
class JobProgress:
    """Where a job is."""

    #: What the pipeline is about to do.
    event: Event = field(default_factory=lambda: Event("load"))
    #: Number of the picture at work, from 1, and how many the job has.
    picture: int = 1
    pictures: int = 1
    #: The picture's name.
    name: str = ""
    #: Fraction of the whole job that is done, 0 to 1.
    fraction: float = 0.0
    #: Seconds to go; None while it is too early to tell.
    seconds_left: float | None = None
    #: The picture so far: a small JPEG.
    preview: bytes | None = None


@dataclass(frozen=True)
class InventedDetail:
    """What differs between results of several tries."""

    #: The map, a PNG of the size of the result: see evaluation.invented_detail.
    path: Path
    #: Share of pixels that differ to the eye, 0 to 1.
    share: float
    #: PSNR in dB of the results, reduced to the size of the input, against the input.
    lr_consistency: float


@dataclass(frozen=True)
class FinishedPicture:
    """A result on disk, and what a browser needs to compare it."""

    #: The file.
    path: Path
    #: What it was made from, as a PNG that browsers show.
    before: Path
    #: The file itself, or a smaller copy of one that a browser cannot show.
    view: Path
    #: Width and height in pixels.
    before_size: tuple[int, int]
    size: tuple[int, int]
    #: The upload.
    source: Path
    #: How it was made: see record.describe_run.
    record: dict[str, Any]
    #: The map of what was protected, if anything was.
    protect: Path | None = None


@dataclass(eq=False)
class Job:
    """Pictures in a queue. Its owner calls `wait` again and again, and `cancel`; the worker does the rest.

    Results that are finished stay, whatever happens afterwards.
    """

    uploads: Sequence[Upload]
    #: Name of the model.
    model: str
    #: See settings.read_settings.
    settings: Mapping[str, Any]
    #: Of results, where the settings have no scale, and it is not the model's own.
    size: TargetSize | None = None
    #: See result_files.FORMATS.
    format: str = "png"
    #: Draw the picture so far.
    preview: bool = True
    #: Whose job it is.
    client: str = ""
    #: A folder of the user's, where a host with such folders keeps the results.
    output: Path | None = None
    #: A grey PNG, white where the picture is protected, if anything is.
    protect: bytes = b""
    #: At least 2 to compare results of so many seeds, and have no result but `invented`.
    seeds: int = 0

    def __post_init__(self) -> None:
        self.id = secrets.token_urlsafe(16)
        #: waiting, running, done, failed or cancelled.
        self.state = "waiting"
        self.progress = JobProgress(pictures=len(self.uploads))
        self.results: list[FinishedPicture] = []
        self.invented: InventedDetail | None = None
        #: Lines that its owner should read.
        self.notes: list[str] = []
        #: A line for each picture that did not work.
        self.failures: list[str] = []
        #: Why the job as a whole ended early.
        self.error = ""
        #: All results in a zip, if there are several.
        self.archive: Path | None = None
        #: Seconds of work.
        self.seconds = 0.0
        self._deadline, self._time_limit = float("inf"), 0.0
        self._last_wait = time.monotonic()
        self._cancel_reason = ""
        self._changed = threading.Condition()
        self._version = 0

    @property
    def is_finished(self) -> bool:
        return self.state in ("done", "failed", "cancelled")

    @property
    def is_cancelled(self) -> bool:
        """True once the job was cancelled, even if it has not ended yet."""
        return bool(self._cancel_reason)

    @property
    def is_abandoned(self) -> bool:
        """True if nobody has waited for the job for PATIENCE seconds."""
        return time.monotonic() - self._last_wait > PATIENCE

    def wait(self, seconds: float, version: int | None = None) -> int:
        """Sleep until something is new since `version`, at most `seconds`; the version to know then.

        Without a version it sleeps until the job is finished. Says that the client is still there.
        """
        self._last_wait = time.monotonic()
        with self._changed:
            self._changed.wait_for(lambda: self.is_finished or version not in (None, self._version), seconds)
            self._last_wait = time.monotonic()
            return self._version

    def cancel(self, reason: str = "cancelled") -> None:
        """Stop the job as soon as possible; one that is finished stays as it is."""
        with self._changed:
            if not self.is_finished and not self._cancel_reason:
                self._cancel_reason = reason
        self._notify()

    def start(self, time_limit: float) -> None:
        """The worker begins; from now on the job has so many seconds, 0 for any number."""
        self.state = "running"
        if time_limit:
            self._time_limit, self._deadline = time_limit, time.monotonic() + time_limit
        self._notify()

    def check(self) -> None:
        """Raises Stopped if the job has to end."""
        if self._cancel_reason:
            raise Stopped(self._cancel_reason)
        if self.is_abandoned:
            raise Stopped("the client has left")
        if time.monotonic() > self._deadline:
            raise Stopped(
                f"this took longer than the {self._time_limit:.0f} s that this page gives a job; "
                "choose fewer steps, a smaller scale or fewer pictures"
            )

    def show(self, progress: JobProgress) -> None:
        self.progress = progress
        self._notify()

    def end(self, state: str, error: str = "") -> None:
        self.state, self.error = state, error
        self._notify()

    def _notify(self) -> None:
        with self._changed:
            self._version += 1
            self._changed.notify_all()
