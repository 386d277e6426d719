"""The queue of a page: a worker for each device, first come, first served."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from pathlib import Path

from ..errors import MoESRError, SettingError
from ..hosting.model_runner import Stopped
from ..settings import resolve
from .job import FinishedPicture, Job
from .limits import LOCAL, Limits
from .page_host import PageHost
from .results import delete_old
from .uploads import read_size
from .worker import Worker

log = logging.getLogger(__name__)

#: Jobs that can be found again by their id.
_REMEMBERED = 500
#: Seconds between two looks for old files.
_CLEANING = 20.0


class QueueFullError(SettingError):
    """No more jobs are taken now."""

    __module__ = "moesr"


class JobQueue:
    """Takes jobs and has them done in order, one at a time on each device.

    Jobs whose client has left are dropped. Old results and uploads are deleted as new jobs come. Threads start with the
    first job and end with `close`.
    """

    def __init__(
        self, host: PageHost, limits: Limits = LOCAL, *, devices: Sequence[str] = ("auto",), dtype: str = "auto"
    ) -> None:
        self.host, self.limits = host, limits
        self.results = host.folder / "results"
        self._workers = [Worker(host, limits, self.results, host.make_source(device, dtype)) for device in devices]
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._ready = threading.Condition()
        self._closed = False
        self._threads: list[threading.Thread] = []
        self._typical_seconds = 0.0  # that a job takes
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._opened_at = time.time()
        self._cleaned_at = float("-inf")

    def submit(self, job: Job) -> Job:
        """The job, at the end of the queue.

        Raises QueueFullError, and SettingError for no or too many pictures, for a model or settings that cannot be, for
        a model that needs a mask, or if none of the pictures can be done, in the words of the first.
        """
        self._check(job)
        self.delete_old_files()
        with self._ready:
            if self._closed:
                raise QueueFullError("the page is closing; start it again")
            ahead = [other for other in self._waiting if not other.is_abandoned and not other.is_cancelled]
            if len(ahead) >= self.limits.waiting:
                raise QueueFullError(f"{len(ahead)} jobs are waiting already; try again in a few minutes")
            self._jobs[job.id] = job
            if len(self._jobs) > _REMEMBERED:
                self._jobs.popitem(last=False)
            self._waiting.append(job)
            self._start_threads()
            self._ready.notify()
        return job

    def find(self, job_id: str) -> Job | None:
        """The job with that id, if it is one of the last."""
        return self._jobs.get(job_id)

    def find_result(self, path: Path) -> tuple[Job, FinishedPicture] | None:
        """The job and the result that a file is, if the job is one of the last."""
        pairs = ((job, result) for job in list(self._jobs.values()) for result in list(job.results))
        return next((pair for pair in pairs if pair[1].path == path), None)

    def cancel_jobs_of(self, client: str) -> None:
        """That client has gone away: nobody waits for its jobs any more."""
        with self._ready:
            theirs = [job for job in (*self._waiting, *self._running) if client and job.client == client]
        for job in theirs:
            job.cancel("the client has left")

    def count_ahead(self, job: Job) -> int:
        """Jobs that have to end before this one can begin: 0 for one at work, or about to be."""
        with self._ready:
            if job not in self._waiting:
                return 0
            before = list(self._waiting)[: self._waiting.index(job)]
            before = [other for other in before if not other.is_abandoned and not other.is_cancelled]
            busy = len(self._running) - len(self._workers) + 1
            return len(before) + max(busy, 0)

    def estimate_wait(self, job: Job) -> float | None:
        """Seconds until a waiting job begins, about; None while nobody can tell."""
        with self._ready:
            left = [running.progress.seconds_left for running in self._running]
            typical = self._typical_seconds
        ahead = self.count_ahead(job)
        if not left or left[0] is None or (ahead > 1 and not typical):
            return None
        return (left[0] + max(ahead - 1, 0) * typical) / len(self._workers)

    def delete_old_files(self) -> None:
        """Delete old uploads and results, and the oldest if they take too much room; looks now and then only."""
        now = time.monotonic()
        if now - self._cleaned_at > _CLEANING:
            self._cleaned_at = now
            folders = [self.results, *(self.host.upload_folders if self.host.standalone else [])]
            delete_old(folders, self.limits.keep_seconds, self.limits.disk_bytes, self._opened_at)

    def close(self) -> None:
        """Stop all jobs and the workers; waits for them."""
        with self._ready:
            self._closed = True
            for job in (*self._waiting, *self._running):
                job.cancel("the page was closed")
            self._ready.notify_all()
        for thread in self._threads:
            thread.join()
        for job in self._waiting:
            job.end("cancelled", "the page was closed")
        self._waiting.clear()

    def _check(self, job: Job) -> None:
        if not job.uploads:
            raise SettingError("no picture: drop one first")
        self.limits.check_files(len(job.uploads))
        config = self.host.facts.read_config(job.model)
        if config.unet.mask:
            raise SettingError(
                f"{job.model} fills in what a mask marks, and this page has no mask; "
                "use it in ComfyUI or with python -m moesr upscale --mask"
            )
        scale = resolve(config, **job.settings).scale
        first: MoESRError | None = None
        for upload in job.uploads:
            try:
                width, height = read_size(upload, self.limits)
                if job.size is not None:
                    scale = job.size.find_scale(width, height)
                self.limits.check_output(upload.name, width, height, scale)
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
            state, error = "failed", ""
            try:
                job.check()
                state, error = worker.run(job)
            except Stopped as stop:
                state, error = "cancelled", str(stop)
            except MoESRError as failure:
                error = str(failure)
            except Exception as failure:  # a broken job must not take the page with it
                log.exception("a job failed")
                error = f"something went wrong ({type(failure).__name__}); the page's log says more"
            job.seconds = time.monotonic() - began
            job.end(state, error)
            with self._ready:
                self._running.remove(job)
                if job.state == "done":
                    usual = self._typical_seconds
                    self._typical_seconds = job.seconds if not usual else 0.7 * usual + 0.3 * job.seconds
        worker.close()

    def _next(self) -> Job | None:
        """The next job whose client still waits; None when the queue is closed."""
        with self._ready:
            while not self._closed:
                if self._waiting:
                    job = self._waiting.popleft()
                    if job.is_cancelled or job.is_abandoned:
                        job.end("cancelled", "cancelled")
                        continue
                    self._running.append(job)
                    return job
                self._ready.wait()
            return None
