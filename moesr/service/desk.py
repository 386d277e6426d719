"""The desk: jobs in one line, a worker for each device, first come, first served."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence

from ..errors import MoESRError, SettingError
from .adapter import Adapter
from .intake import Upload, size
from .job import Job, Stopped
from .limits import LOCAL, Limits
from .results import purge
from .settings import Settings
from .worker import Worker

log = logging.getLogger(__name__)


class Desk:
    """Takes jobs and has them done in order, one at a time on each device.

    Jobs whose client has left are dropped from the line. Old results and uploads are deleted as new jobs come. Threads
    start with the first job and end with `close`.
    """

    def __init__(
        self, adapter: Adapter, limits: Limits = LOCAL, *, devices: Sequence[str] = ("auto",), dtype: str = "auto"
    ) -> None:
        self.adapter, self.limits = adapter, limits
        self.results = adapter.folder / "results"
        self._workers = [Worker(adapter, limits, self.results, device, dtype) for device in devices]
        self._line: deque[Job] = deque()
        self._running: list[Job] = []
        self._ready = threading.Condition()
        self._closed = False
        self._threads: list[threading.Thread] = []
        self._usual = 0.0  # seconds that a job takes, about
        self._jobs: weakref.WeakValueDictionary[str, Job] = weakref.WeakValueDictionary()
        self._opened = time.time()
        self._purged = float("-inf")

    def submit(
        self, uploads: Sequence[Upload], settings: Settings, *, preview: bool = True, client: str = ""
    ) -> Job:
        """A job at the end of the line. client: whose it is, for `left`.

        Raises SettingError if the line is full, for no or too many pictures, for a model or step count that does not
        exist, for a model that needs a mask, or if none of the pictures can be done, in the words of the first.
        """
        self._check(uploads, settings)
        self.purge()
        job = Job(uploads, settings, preview=preview, client=client)
        with self._ready:
            if self._closed:
                raise SettingError("the page is closing; start it again")
            ahead = [other for other in self._line if not other.gone and not other.stopping]
            if len(ahead) >= self.limits.waiting:
                raise SettingError(f"{len(ahead)} jobs are waiting already; try again in a few minutes")
            self._jobs[job.id] = job
            self._line.append(job)
            self._start_threads()
            self._ready.notify()
        return job

    def find(self, key: str) -> Job | None:
        """The job with that id, as long as anybody holds it."""
        return self._jobs.get(key)

    def left(self, client: str) -> None:
        """That client has gone away: nobody waits for its jobs any more."""
        with self._ready:
            theirs = [job for job in (*self._line, *self._running) if client and job.client == client]
        for job in theirs:
            job.cancel("the client has left")

    def ahead(self, job: Job) -> int:
        """Jobs that have to end before this one can begin: 0 for one at work, or about to be."""
        with self._ready:
            if job not in self._line:
                return 0
            before = list(self._line)[: self._line.index(job)]
            before = [other for other in before if not other.gone and not other.stopping]
            busy = len(self._running) - len(self._workers) + 1
            return len(before) + max(busy, 0)

    def expected(self, job: Job) -> float | None:
        """Seconds until a waiting job begins, about; None while nobody can tell."""
        with self._ready:
            lefts = [running.progress.left for running in self._running]
            usual = self._usual
        ahead = self.ahead(job)
        if not lefts or lefts[0] is None or (ahead > 1 and not usual):
            return None
        return (lefts[0] + max(ahead - 1, 0) * usual) / len(self._workers)

    def purge(self) -> None:
        """Delete old uploads and results, and the oldest if they take too much room; looks at most once in 20 s."""
        now = time.monotonic()
        if now - self._purged > 20:
            self._purged = now
            folders = [self.results, *(self.adapter.uploads if self.adapter.standalone else [])]
            purge(folders, self.limits.keep_seconds, self.limits.disk_bytes, self._opened)

    def close(self) -> None:
        """Stop all jobs and the workers; waits for them."""
        with self._ready:
            self._closed = True
            for job in (*self._line, *self._running):
                job.cancel("the page was closed")
            self._ready.notify_all()
        for thread in self._threads:
            thread.join()
        for job in self._line:
            job.end("cancelled", "the page was closed")
        self._line.clear()

    def _check(self, uploads: Sequence[Upload], settings: Settings) -> None:
        if not uploads:
            raise SettingError("no picture: drop one first")
        self.limits.check_files(len(uploads))
        config = self.adapter.models.config(settings.model)
        if config.unet.mask:
            raise SettingError(
                f"{settings.model} fills in what a mask marks, and this page has no mask; "
                "use it in ComfyUI or with python -m moesr upscale --mask"
            )
        total = config.process.timesteps
        if settings.steps is not None and settings.steps > total:
            raise SettingError(f"{settings.steps} steps: {settings.model} has {total} timesteps, choose 1 to {total}")
        scale = config.scale if settings.scale is None else settings.scale
        first: MoESRError | None = None
        for upload in uploads:
            try:
                self.limits.check_output(upload.name, *size(upload, self.limits), scale)
                return
            except MoESRError as error:
                first = first or error
        raise SettingError(str(first))

    def _start_threads(self) -> None:
        if not self._threads:
            self._threads = [
                threading.Thread(target=self._work, args=(worker,), name=f"moesr-{i}", daemon=True)
                for i, worker in enumerate(self._workers)
            ]
            for thread in self._threads:
                thread.start()

    def _work(self, worker: Worker) -> None:
        while (job := self._next()) is not None:
            began = time.monotonic()
            try:
                job.check()
                worker.run(job)
            except Stopped as stop:
                job.end("cancelled", str(stop))
            except MoESRError as error:
                job.end("failed", str(error))
            except Exception as error:  # a broken job must not take the page with it
                log.exception("a job failed")
                job.end("failed", f"something went wrong ({type(error).__name__}); the page's log says more")
            job.seconds = time.monotonic() - began
            with self._ready:
                self._running.remove(job)
                if job.state == "done":
                    self._usual = job.seconds if not self._usual else 0.7 * self._usual + 0.3 * job.seconds
        worker.close()

    def _next(self) -> Job | None:
        """The next job whose client still waits; None when the desk is closed."""
        with self._ready:
            while not self._closed:
                if self._line:
                    job = self._line.popleft()
                    if job.stopping or job.gone:
                        job.end("cancelled", "cancelled")
                        continue
                    self._running.append(job)
                    return job
                self._ready.wait()
            return None
