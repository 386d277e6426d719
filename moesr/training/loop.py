"""The loop all stages share: data in order, steps, log, state on disk, exact resume."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from ..errors import NumericsError

log = logging.getLogger(__name__)

Batch = dict[str, Tensor]


class Stateful(Protocol):
    """Anything with a state dict: a module, an optimiser, an EMA."""

    def state_dict(self) -> Any: ...
    def load_state_dict(self, state: Any, /) -> object: ...


class Task(Protocol):
    """A stage of training. `parts` are saved and restored; `step` does one optimiser step and returns its losses."""

    parts: dict[str, Stateful]

    def step(self, batch: Batch, index: int) -> dict[str, float]: ...
    def export(self, folder: Path) -> None: ...


@dataclass(frozen=True)
class LoopConfig:
    """How long and how fast. The learning rate warms up linearly, then falls on a cosine to `final_lr` of itself."""

    steps: int = 1000
    batch: int = 16
    lr: float = 1e-4
    warmup: int = 100
    final_lr: float = 0.1
    save_every: int = 200
    log_every: int = 20
    precision: str = "fp32"
    seed: int = 0


def rate(config: LoopConfig, index: int) -> float:
    """Learning rate of step `index` (0 based)."""
    if index < config.warmup:
        return config.lr * (index + 1) / config.warmup
    progress = (index - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * (config.final_lr + (1 - config.final_lr) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2)


def autocast(config: LoopConfig, device: torch.device) -> torch.autocast:
    """The context a stage computes its forward pass in: bf16 where the config says so."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.precision == "bf16")


def run(task: Task, data: Dataset[Batch], config: LoopConfig, folder: Path, workers: int = 0) -> None:
    """Train to `config.steps`, from the state in `folder` if there is one, and export the result there.

    The state is written every `save_every` steps to a temporary name and renamed. Losses go to log.jsonl. Raises
    NumericsError on a loss that is not finite; the last good state stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    start = _restore(task, folder / "state.pt")
    bar = tqdm(_batches(data, config, start, workers), total=config.steps, initial=start, desc=folder.name)
    totals: dict[str, float] = {}
    since = time.perf_counter()
    for index, batch in enumerate(bar, start):
        losses = task.step(batch, index)
        for name, value in losses.items():
            if not math.isfinite(value):
                raise NumericsError(f"step {index}: loss {name} is {value}; last good state is {folder / 'state.pt'}")
            totals[name] = totals.get(name, 0.0) + value
        done = index + 1
        if done % config.log_every == 0 or done == config.steps:
            row = {k: round(v / config.log_every, 5) for k, v in totals.items()}
            row |= {"step": done, "seconds": round(time.perf_counter() - since, 1), "lr": rate(config, index)}
            with (folder / "log.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            bar.set_postfix({k: v for k, v in row.items() if k in totals})
            totals = {}
        if done % config.save_every == 0 or done == config.steps:
            _save(task, done, folder / "state.pt")
            task.export(folder)
    log.info("%s: %d steps done", folder.name, config.steps)


class _Range(Sampler[int]):
    def __init__(self, start: int, stop: int) -> None:
        self.indices = range(start, stop)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


def _batches(data: Dataset[Batch], config: LoopConfig, start: int, workers: int) -> Iterable[Batch]:
    order = _Range(start * config.batch, config.steps * config.batch)
    return DataLoader(data, batch_size=config.batch, sampler=order, num_workers=workers, drop_last=True)


def _restore(task: Task, path: Path) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    for name, part in task.parts.items():
        part.load_state_dict(state["parts"][name])
    torch.set_rng_state(state["rng"])
    log.info("resuming %s at step %d", path, state["step"])
    return int(state["step"])


def _save(task: Task, step: int, path: Path) -> None:
    partial = path.with_suffix(".partial")
    parts = {k: dict(p.state_dict()) for k, p in task.parts.items()}
    torch.save({"step": step, "rng": torch.get_rng_state(), "parts": parts}, partial)
    os.replace(partial, path)
