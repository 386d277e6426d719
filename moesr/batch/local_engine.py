"""The local engine: one process per worker, replaced when it dies, fed and heard by a thread each."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any, cast

from ..errors import SettingError
from .journal import Journal
from .manifest import Row
from .worker import Work, describe_death

Take = Callable[[], "Row | None"]
_PARENT = Path(__file__).resolve().parents[2]


def choose_workers(device: str) -> int:
    """One per CUDA device; on a CPU one per core, as long as there are 2 GiB of free memory for each."""
    import torch

    from ..runtime import Runtime

    if device == "auto" and torch.cuda.is_available():
        return torch.cuda.device_count()
    if device not in ("auto", "cpu") or (device == "auto" and torch.backends.mps.is_available()):
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, Runtime().free_memory(torch.device("cpu")) // 2**31))


def run_local(
    work: Work, rows: Iterator[Row], journal: Journal, *, workers: int, attempts: int
) -> Iterator[dict[str, Any]]:
    """Process the rows with that many processes; journal and yield the line of each. Closing it ends the processes.

    A picture that was at work then is pending again. Raises MoESRError if workers cannot start or the journal cannot be
    written.
    """
    results: queue.Queue[dict[str, Any] | BaseException | None] = queue.Queue(maxsize=4 * workers)
    lock = threading.Lock()

    def take_row() -> Row | None:
        with lock:
            return next(rows, None)

    seats = [_Seat(_choose_device(work, i), take_row, journal, results, attempts) for i in range(workers)]
    for seat in seats:
        seat.start()
    left = workers
    try:
        while left:
            result = results.get()
            if result is None:
                left -= 1
            elif isinstance(result, BaseException):
                raise result
            else:
                yield result
    finally:
        for seat in seats:
            seat.stop()
        while any(seat.is_alive() for seat in seats):
            with contextlib.suppress(queue.Empty):
                results.get(timeout=0.05)  # a thread may wait to hand in its last word


def _choose_device(work: Work, index: int) -> Work:
    import torch

    if work.loading.get("device", "auto") != "auto" or not torch.cuda.is_available():
        return work
    device = f"cuda:{index % torch.cuda.device_count()}"
    return replace(work, loading={**work.loading, "device": device})


class _Seat(threading.Thread):
    """A thread with a process that works for it."""

    def __init__(self, work: Work, take_row: Take, journal: Journal, results: queue.Queue[Any], attempts: int) -> None:
        super().__init__(daemon=True)
        self._work, self._take_row, self._journal = work, take_row, journal
        self._results, self._attempts = results, attempts
        self._process: subprocess.Popen[str] | None = None
        self._stopped = False
        self._sign = "it left no sign"

    def run(self) -> None:
        try:
            while not self._stopped and (row := self._take_row()) is not None:
                result = self._process_row(row)
                if result is not None:
                    self._results.put(result)
        except BaseException as error:  # said by the main thread
            self._results.put(error)
        finally:
            self._end_process()
            self._results.put(None)

    def stop(self) -> None:
        """End the process at once; the thread ends by that."""
        self._stopped = True
        if self._process is not None:
            self._process.kill()

    def _process_row(self, row: Row) -> dict[str, Any] | None:
        while True:
            if self._process is None:
                self._start_process()
            process = cast("subprocess.Popen[str]", self._process)
            attempt = self._journal.start(row.id, worker=f"{os.getpid()}:{process.pid}", limit=self._attempts)
            if attempt == 0:
                return None
            if attempt > self._attempts:
                result = describe_death(row, self._attempts, self._sign)
            else:
                line = self._ask({"row": asdict(row), "attempt": attempt})
                if line is None and self._stopped:
                    self._journal.finish({"id": row.id, "status": "pending"})
                    return None
                if line is None:
                    continue
                result = json.loads(line)
            self._journal.finish(result)
            return result

    def _start_process(self) -> None:
        paths = os.pathsep.join(filter(None, [str(_PARENT), os.environ.get("PYTHONPATH")]))
        env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": str(self._work.threads), "PYTHONUTF8": "1"}
        command = [sys.executable, "-c", f"from {__package__}.worker import main; main()"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, text=True, encoding="utf-8"
        )
        first = json.loads(self._ask(asdict(self._work)) or "{}")
        if not first.get("ready") and not self._stopped:
            raise SettingError(first.get("error") or f"a worker ended while it loaded the model ({self._sign})")

    def _ask(self, question: dict[str, Any]) -> str | None:
        """The process's answer; None if it died, which is then noted in `_sign`."""
        process = cast("subprocess.Popen[str]", self._process)
        stdin, stdout, answer = cast("IO[str]", process.stdin), cast("IO[str]", process.stdout), ""
        with contextlib.suppress(OSError, ValueError):
            stdin.write(json.dumps(question) + "\n")
            stdin.flush()
            answer = stdout.readline()
        if answer.endswith("\n"):
            return answer
        self._end_process()
        return None

    def _end_process(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        for stream in (process.stdin, process.stdout):
            with contextlib.suppress(OSError, ValueError):
                cast("IO[str]", stream).close()
        code = process.wait()
        with contextlib.suppress(ValueError):
            self._sign = f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
