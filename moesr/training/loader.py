"""Batches by loader processes, for one of several training processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..errors import SettingError
from .engine import Engine
from .loop import Batch, LoopConfig


class Items(Dataset[Batch]):
    """Single items with their index: item k of a source is its batch k of one, so no batch depends on the processes."""

    def __init__(self, next_item: Callable[[int], Mapping[str, Tensor]]) -> None:
        self.next_item = next_item

    def __getitem__(self, index: int) -> Batch:
        return {**self.next_item(index), "index": torch.tensor(index)}


class Loader:
    """Batches of items for one of several processes: item k is in batch k // loop.batch. Call it with a step.

    Raises SettingError for a batch that processes and parts do not divide.
    """

    def __init__(self, items: Dataset[Batch], loop: LoopConfig, engine: Engine) -> None:
        of = engine.processes * engine.parts
        if loop.batch % of:
            raise SettingError(
                f"batch {loop.batch}: {engine.processes} processes x {engine.parts} parts do not divide it; "
                f"choose a multiple of {of}"
            )
        self._items, self._loop, self._engine = items, loop, engine
        self._step, self._parts, self._iterator = -1, [], iter(())

    def __call__(self, step: int) -> list[Batch]:
        if step == self._step:
            return self._parts
        if step != self._step + 1 or step == 0:
            order = _Order(self._loop, self._engine, step)
            pin = self._engine.device.type == "cuda"
            workers = self._loop.workers
            self._iterator = iter(DataLoader(self._items, batch_sampler=order, num_workers=workers, pin_memory=pin))
        self._step, self._parts = step, [next(self._iterator) for _ in range(self._engine.parts)]
        return self._parts


class _Order(Sampler[list[int]]):
    """Indices of the parts that one process computes, step after step: part p of n is every n-th item of a batch."""

    def __init__(self, loop: LoopConfig, engine: Engine, start: int) -> None:
        self.loop, self.engine, self.start = loop, engine, start

    def __iter__(self) -> Iterator[list[int]]:
        engine, batch = self.engine, self.loop.batch
        for step in range(self.start, self.loop.steps):
            for part in range(engine.parts):
                first = step * batch + part * engine.processes + engine.process
                yield list(range(first, (step + 1) * batch, engine.processes * engine.parts))
