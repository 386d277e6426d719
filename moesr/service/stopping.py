"""A run that can be stopped between any two layers: the pipeline asks before each tile, and a tile may take long."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from ..runtime import Runtime


class StoppableHost:
    """The memory of another Runtime, and `stop` to cancel with: a function that raises when the run has to end."""

    def __init__(self, memory: Runtime) -> None:
        self._memory = memory
        self.stop: Callable[[], None] | None = None

    def check(self) -> None:
        """Raise if the job has to end."""
        self._memory.check()
        if self.stop is not None:
            self.stop()

    def free_memory(self, device: torch.device) -> int:
        """Bytes that may be used on the device."""
        return self._memory.free_memory(device)

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether a smaller tile could succeed."""
        return self._memory.is_out_of_memory(error)

    def release(self) -> None:
        """Give cached memory back."""
        self._memory.release()


@contextmanager
def stoppable(host: StoppableHost, check: Callable[[], None]) -> Iterator[None]:
    """Inside, every layer of a network that this thread runs calls `check` first, and so does `host`.

    What `check` raises ends the run. On a slow machine a tile takes longer than anyone likes to wait.
    """
    thread = threading.get_ident()

    def before(*_: object) -> None:
        if threading.get_ident() == thread:
            check()

    host.stop = check
    handle = register_module_forward_pre_hook(before)
    try:
        yield
    finally:
        handle.remove()
        host.stop = None
