"""Time experts: which network works at which timestep, and where its weights are while it does."""

from __future__ import annotations

import itertools
import threading
import weakref
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from torch import nn

from ..errors import SettingError


class Residency(Protocol):
    """Keeps experts on the device, or brings them there."""

    def use(self, i: int) -> AbstractContextManager[nn.Module]:
        """Expert i, on the device inside the block. Using the same expert again does not load it again."""
        ...

    def prefetch(self, i: int) -> None:
        """A hint that expert i comes next. May do nothing; errors of loading it appear at `use`."""
        ...

    def close(self) -> None: ...


class ExpertBank:
    """Routes timesteps to experts: expert i works where stages[i - 1] <= t < stages[i] (arXiv 2310.12004, section 3).

    `stages` are the exclusive upper ends of the experts' ranges, ascending, for any number of experts and any split;
    expert 0 has the least noise. Raises SettingError if they do not ascend.
    """

    def __init__(self, stages: Sequence[int], residency: Residency) -> None:
        ends = [0, *stages]
        if len(ends) < 2 or any(low >= high for low, high in itertools.pairwise(ends)):
            raise SettingError(f"stages {list(stages)}: they must be ascending upper ends of ranges of timesteps")
        self.stages = tuple(stages)
        self.residency = residency
        self._next: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.stages)

    def index(self, t: int) -> int:
        """The expert of timestep t. Raises SettingError for a timestep that none was trained on."""
        if not 0 <= t < self.stages[-1]:
            raise SettingError(f"timestep {t}: the experts cover 0 to {self.stages[-1] - 1}")
        return bisect_right(self.stages, t)

    def plan(self, timesteps: Sequence[int]) -> list[tuple[int, list[int]]]:
        """(expert, its timesteps) in the order in which they run."""
        return [(i, list(steps)) for i, steps in itertools.groupby(timesteps, key=self.index)]

    def start(self, timesteps: Sequence[int]) -> None:
        """Tell the order of the coming run, so that `stage` can have the next expert loaded while one works."""
        order = [i for i, _ in self.plan(timesteps)]
        self._next = dict(itertools.pairwise(order))

    @contextmanager
    def stage(self, t: int) -> Iterator[nn.Module]:
        """The network of timestep t, on the device inside the block. Consecutive steps of one expert load it once."""
        i = self.index(t)
        with self.residency.use(i) as network:
            self._prefetch_after(i)
            yield network
            # Again: at the start the caller may still have held the expert before, and there is room for two.
            self._prefetch_after(i)

    def close(self) -> None:
        self.residency.close()

    def _prefetch_after(self, i: int) -> None:
        if i in self._next:
            self.residency.prefetch(self._next[i])


class All:
    """Residency of experts that are all on the device already."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        self._networks = list(networks)

    @contextmanager
    def use(self, i: int) -> Iterator[nn.Module]:
        yield self._networks[i]

    def prefetch(self, i: int) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Let go of all experts; the object is of no use after that."""
        self._networks.clear()


class Stream:
    """Residency of one expert at a time: the one at work, and the next, which a thread builds meanwhile; never a third.

    `build(i)` opens expert i and puts it on the device. The expert before is let go when the next is used; one that the
    caller still holds counts, and nothing is prefetched beside it. A failed build raises at `use`, and the next `use`
    tries again. Safe to share between threads: the blocks of `use` take turns.
    """

    def __init__(self, build: Callable[[int], nn.Module]) -> None:
        self._build = build
        self._turn = threading.RLock()
        self._in_use = 0
        self._active: tuple[int, nn.Module] | None = None
        self._coming: tuple[int, Future[nn.Module]] | None = None
        self._before: Callable[[], nn.Module | None] = lambda: None
        self._thread: ThreadPoolExecutor | None = None

    @contextmanager
    def use(self, i: int) -> Iterator[nn.Module]:
        with self._turn:
            network = self._activate(i)
            self._in_use += 1
            try:
                yield network
            finally:
                self._in_use -= 1

    def prefetch(self, i: int) -> None:
        """Start to build expert i in the background, if there is room for it."""
        with self._turn:
            known = [held[0] for held in (self._active, self._coming) if held is not None]
            if i in known or len(known) == 2 or self._before() is not None:
                return
            if self._thread is None:
                self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="expert")
            self._coming = (i, self._thread.submit(self._build, i))

    def close(self) -> None:
        """Let go of all experts and of the thread. Waits for a running block or build; `use` works again after that."""
        with self._turn:
            self._release()
            self._drop_coming()

    def _activate(self, i: int) -> nn.Module:
        if self._active is not None and self._active[0] == i:
            return self._active[1]
        if self._in_use:
            raise RuntimeError(f"expert {i} was asked for inside the block of another")
        self._release()
        if self._coming is not None and self._coming[0] == i:
            future, self._coming = self._coming[1], None
            network = future.result()
        else:
            self._drop_coming()
            network = self._build(i)
        self._active = (i, network)
        return network

    def _release(self) -> None:
        if self._active is not None:
            self._before = weakref.ref(self._active[1])
        self._active = None

    def _drop_coming(self) -> None:
        """Forget the expert that was prefetched. Joins the thread, so that nothing there holds it any more."""
        self._coming = None
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
            self._thread = None
