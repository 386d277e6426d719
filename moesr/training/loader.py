"""Batches by loader processes, for one of several training processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import SettingError
from .engine import Engine
from .loop import Batch, LoopConfig

#: An item of the training data by its index, which counts over all processes.
ReadItem = Callable[[int], Mapping[str, Tensor]]


class Loader:
    """Batches of items for one of several processes: item k is in batch k // loop.batch. Call it with a step.

    Raises SettingError for a batch that processes and parts do not divide.
    """

    def __init__(self, read_item: ReadItem, loop: LoopConfig, engine: Engine) -> None:
        shares = engine.processes * engine.parts
        if loop.batch % shares:
            raise SettingError(
                f"batch {loop.batch}: {engine.processes} processes x {engine.parts} parts do not divide it; "
                f"choose a multiple of {shares}"
            )
        self._items, self._loop, self._engine = _Items(read_item), loop, engine
        self._step, self._parts, self._iterator = -1, [], iter(())

    def __call__(self, step: int) -> list[Batch]:
        if step == self._step:
            return self._parts
        if step != self._step + 1 or step == 0:
            order, pin = self._list_parts(step), self._engine.device.type == "cuda"
            workers = self._loop.workers
            self._iterator = iter(DataLoader(self._items, batch_sampler=order, num_workers=workers, pin_memory=pin))
        self._step, self._parts = step, [next(self._iterator) for _ in range(self._engine.parts)]
        return self._parts

    def _list_parts(self, start: int) -> Iterator[list[int]]:
        """Indices of this process's parts from step `start`: part p of n has every n-th item of a batch."""
        engine, batch = self._engine, self._loop.batch
        for step in range(start, self._loop.steps):
            for part in range(engine.parts):
                first = step * batch + part * engine.processes + engine.process
                yield list(range(first, (step + 1) * batch, engine.processes * engine.parts))


class _Items(Dataset[Batch]):
    def __init__(self, read_item: ReadItem) -> None:
        self.read_item = read_item

    def __getitem__(self, index: int) -> Batch:
        return {**self.read_item(index), "index": torch.tensor(index)}
