"""Measuring: runs that alternate, so that whatever else the machine does meets all of them; products counted; peaks."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ...runtime import trim_memory

Run = Callable[[], Any]

#: Side of the square matrices whose product is the yardstick: on a CPU, and on devices, which small ones do not fill.
MATRIX, DEVICE_MATRIX = 2048, 8192
#: Seconds between two readings of the memory in use.
WATCH_SECONDS = 0.003


@dataclass(frozen=True)
class Row:
    """One line of the table; None where something does not apply."""

    name: str
    seconds: float | None
    #: 10^12 products of convolutions, matrices and attention.
    tmac: float | None = None
    #: Products per second, as a share of those of a matrix product of the same dtype in the same run.
    share_of_matrix_rate: float | None = None
    #: Seconds of the plain networks over these.
    speedup_over_reference: float | None = None
    #: MiB of memory at most, beyond what was in use before the run.
    peak_mib: float | None = None
    #: 10^9 bytes per second that a copy reads and writes.
    gb_per_second: float | None = None

    def values(self) -> dict[str, Any]:
        """By column, rounded to what can be measured."""
        digits = {"tmac": 4, "share_of_matrix_rate": 3, "speedup_over_reference": 2, "peak_mib": 0, "seconds": 5}
        return {k: round(v, digits.get(k, 1)) if isinstance(v, float) else v for k, v in asdict(self).items()}


class Stopwatch:
    """Seconds of a call on a device: of the wall, or of this process's CPU time for machines that others use too.

    CPU time (clock "cpu", on the CPU only) adds up all threads, so compare it between runs of one thread.
    """

    def __init__(self, device: torch.device, clock: str = "wall") -> None:
        self.device = device
        self._now = time.perf_counter if clock == "wall" else time.process_time

    def __call__(self, run: Run) -> float:
        wait_for(self.device)
        if self.device.type == "cuda":  # events: the device's own clock
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run()
            end.record()
            wait_for(self.device)
            return begin.elapsed_time(end) / 1000
        start = self._now()
        run()
        wait_for(self.device)
        return self._now() - start

    def alternating(self, runs: list[Run], rounds: int, warm: bool = True) -> list[list[float]]:
        """Seconds of every run, [run][round], where each round has all of them in turn."""
        if warm:  # twice on a device: libraries choose their kernels at first use
            for run in runs * (1 if self.device.type == "cpu" else 2):
                run()
        rows = [[self(run) for run in runs] for _ in range(rounds)]
        return [list(column) for column in zip(*rows)]


def wait_for(device: torch.device) -> None:
    """Return when the device has done all that is queued on it."""
    backend = getattr(torch, device.type, None)
    if device.type != "cpu" and backend is not None:
        backend.synchronize()


def allocated_bytes(device: torch.device) -> int | None:
    """Bytes of tensors on a device, or of this process's anonymous memory on the CPU; None where that is unknown."""
    if device.type == "cpu":
        trim_memory()
        return read_anonymous_bytes()
    if device.type == "mps":
        return torch.mps.current_allocated_memory()
    count: Any = getattr(getattr(torch, device.type, None), "memory_allocated", None)
    return None if count is None else count(device)


def median_ratio(above: list[float], below: list[float]) -> float:
    """The median of the ratios of pairs, one per round."""
    return median(a / b for a, b in zip(above, below))


def prepare_matrix_product(dtype: torch.dtype, device: torch.device, side: int) -> Run:
    """The yardstick: a product of two square matrices."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(side, side, generator=generator).to(device, dtype) for _ in range(2))
    return lambda: a @ b


def count_products(run: Run) -> float:
    """10^12 products of convolutions, matrices and attention in a run, which is called: give it networks on `meta`.

    Gradients are on, so that nothing is done in bands: rows that two bands both compute do not count twice.
    """
    with torch.inference_mode(False), torch.enable_grad(), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 2e12


class Peak:
    """The most bytes that a block used, beyond those in use before it.

    On CUDA what torch allocated. Elsewhere anonymous memory of this process, read every WATCH_SECONDS; None where the
    system does not tell (it does on Linux). What is mapped from files does not count.
    """

    def __init__(self) -> None:
        self.bytes: int | None = None

    @property
    def mib(self) -> float | None:
        return None if self.bytes is None else self.bytes / 2**20


@contextmanager
def peak(device: torch.device) -> Iterator[Peak]:
    """Measure the most memory that the block uses. Read it after the block."""
    used = Peak()
    gc.collect()
    if device.type in ("cuda", "xpu"):
        backend = getattr(torch, device.type)
        backend.reset_peak_memory_stats(device)
        before = backend.memory_allocated(device)
        yield used
        used.bytes = backend.max_memory_allocated(device) - before
        return
    trim_memory()
    start = read_anonymous_bytes()
    if start is None:
        yield used
        return
    highest, done = [start], threading.Event()

    def watch() -> None:
        # The system keeps a high-water mark of files and anonymous memory together only, and mapped files come and go.
        while not done.wait(WATCH_SECONDS):
            highest[0] = max(highest[0], read_anonymous_bytes() or 0)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield used
    finally:
        done.set()
        watcher.join()
    used.bytes = max(highest[0], read_anonymous_bytes() or 0) - start


def read_anonymous_bytes() -> int | None:
    """Bytes of anonymous memory of this process; None where the system does not tell."""
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))
    except (OSError, ValueError, IndexError, StopIteration):
        return None
