"""The loop all stages share: data in order, steps, log, pictures, state on disk, exact resume, on any processes."""

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
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate
from tqdm import tqdm

from ..errors import NumericsError, SettingError
from . import draws
from .board import Board
from .engine import Engine

log = logging.getLogger(__name__)

Batch = dict[str, Tensor]

#: Items that pictures of a run show: the first of its data.
SHOWN = 4


class Stateful(Protocol):
    """Anything with a state dict: a module, an optimiser, an EMA."""

    def state_dict(self) -> Any: ...
    def load_state_dict(self, state: Any, /) -> object: ...


class Task(Protocol):
    """A stage of training. `parts` are saved and restored; its `engine` computes gradients and makes the steps.

    `to` moves everything to a device. `step` works on a batch, or on a part of one, and returns its losses. `pictures`
    of a batch are [B, 3, H, W] in [-1, 1], from the LR image to the HR image, or None for a stage that makes none.
    """

    parts: dict[str, Stateful]
    engine: Engine

    def to(self, device: torch.device) -> None: ...
    def step(self, batch: Batch, index: int) -> dict[str, float]: ...
    def pictures(self, batch: Batch) -> Tensor | None: ...
    def export(self, folder: Path) -> None: ...


@dataclass(frozen=True)
class LoopConfig:
    """How long and how fast. The learning rate warms up linearly, then falls on a cosine to `final_lr` of itself.

    `batch` is that of all processes together, of which each computes its share in `accumulate` parts. `precision` is
    fp32, bf16 or fp16. `workers` load data, a process; pictures are made every `image_every` steps (0: at every save).
    """

    steps: int = 1000
    batch: int = 16
    lr: float = 1e-4
    warmup: int = 100
    final_lr: float = 0.1
    save_every: int = 200
    log_every: int = 20
    precision: str = "fp32"
    seed: int = 0
    accumulate: int = 1
    workers: int = 0
    image_every: int = 0


def rate(config: LoopConfig, index: int) -> float:
    """Learning rate of step `index` (0 based)."""
    if index < config.warmup:
        return config.lr * (index + 1) / config.warmup
    progress = (index - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * (config.final_lr + (1 - config.final_lr) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2)


def autocast(config: LoopConfig, device: torch.device) -> torch.autocast:
    """The context a stage computes its forward pass in, in the precision of the config."""
    dtype = torch.float16 if config.precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=config.precision != "fp32")


def run(task: Task, data: Dataset[Batch], config: LoopConfig, folder: Path, workers: int = 0) -> None:
    """Train to `config.steps`, from the state in `folder` if there is one, and export the result there.

    Item k of the data is in batch k // config.batch, and batches come in order, however many processes share them;
    random numbers are functions of the seed, the step and the item. The state is written every `save_every` steps to
    a temporary name and renamed. Losses go to log.jsonl, and with pictures to TensorBoard. Raises NumericsError on a
    loss or a weight that is not finite: the last good state stays. Raises SettingError for a batch that does not
    divide, or a state that is not this task's.
    """
    engine = task.engine
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    task.to(engine.device)
    start, totals = _restore(task, folder / "state.pt")
    if engine.means({"start": start})["start"] != start:
        raise SettingError(f"{folder}: not the same for all processes; machines must share the folder of a run")
    board = Board(folder, start) if engine.main else None
    if engine.main:
        _cut(folder / "log.jsonl", start)
    steps = _steps(_batches(data, config, start, max(workers, config.workers), engine), engine.parts)
    bar = tqdm(steps, total=config.steps, initial=start, desc=folder.name, disable=not engine.main)
    since = time.perf_counter()
    for index, parts in enumerate(bar, start):
        losses = engine.means(_step(task, parts, index, config.seed))
        for name, value in losses.items():
            if not math.isfinite(value):
                raise NumericsError(f"step {index}: loss {name} is {value}; last good state is {folder / 'state.pt'}")
            totals[name] = [totals.get(name, [0.0, 0])[0] + value, totals.get(name, [0.0, 0])[1] + 1]
        done = index + 1
        if done % config.log_every == 0 or done == config.steps:
            means: dict[str, float] = {k: total / count for k, (total, count) in totals.items()}
            totals = {}
            if engine.main and board is not None:
                row = {**means, "step": done, "seconds": time.perf_counter() - since, "lr": rate(config, index)}
                with (folder / "log.jsonl").open("a") as file:
                    file.write(json.dumps(row) + "\n")
                board.numbers({**means, "lr": row["lr"]}, done)
                bar.set_postfix({k: f"{v:.4g}" for k, v in means.items()})
        saving = done % config.save_every == 0 or done == config.steps
        if engine.main and board is not None:
            if saving:
                _save(task, done, totals, folder / "state.pt")
                task.export(folder)
            if done % config.image_every == 0 if config.image_every else saving:
                board.pictures(_pictures(task, data, engine), done)
    if engine.main and board is not None:
        if start >= config.steps:  # stopped between the last state and its export
            task.export(folder)
        board.close()
    engine.wait()
    log.info("%s: %d steps done", folder.name, config.steps)


def _step(task: Task, parts: list[Batch], index: int, seed: int) -> dict[str, float]:
    totals: dict[str, float] = {}
    for part in parts:
        torch.manual_seed(draws.key(seed, index))  # what is drawn for a whole batch is the same in all its parts
        with task.engine.part():
            losses = task.step(_moved(part, task.engine.device), index)
        for name, value in losses.items():
            totals[name] = totals.get(name, 0.0) + value / len(parts)
    return totals


def _pictures(task: Task, data: Dataset[Batch], engine: Engine) -> Tensor | None:
    count = min(SHOWN, len(data))  # type: ignore[arg-type]  # Dataset does not say that it has a length
    batch = default_collate([_Numbered(data)[i] for i in range(count)])
    with torch.no_grad():
        return task.pictures(_moved(batch, engine.device))


def _moved(batch: Batch, device: torch.device) -> Batch:
    # draws read the index on the CPU
    return {k: v if k == "index" else v.to(device, non_blocking=True) for k, v in batch.items()}


class _Numbered(Dataset[Batch]):
    """Items with their index."""

    def __init__(self, data: Dataset[Batch]) -> None:
        self.data = data

    def __getitem__(self, index: int) -> Batch:
        return {**self.data[index], "index": torch.tensor(index)}


class _Shares(Sampler[list[int]]):
    """Indices of the parts that one process computes, step after step: part p of n is every n-th item of a batch."""

    def __init__(self, start: int, stop: int, batch: int, parts: list[int], of: int) -> None:
        self.start, self.stop, self.batch, self.parts, self.of = start, stop, batch, parts, of

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.stop):
            for part in self.parts:
                yield list(range(step * self.batch + part, (step + 1) * self.batch, self.of))

    def __len__(self) -> int:
        return max(0, self.stop - self.start) * len(self.parts)


def _batches(data: Dataset[Batch], config: LoopConfig, start: int, workers: int, engine: Engine) -> Iterable[Batch]:
    of = engine.processes * engine.parts
    if config.batch % of:
        raise SettingError(
            f"batch {config.batch}: {engine.processes} processes x {engine.parts} parts do not divide it; "
            f"choose a multiple of {of}"
        )
    parts = [part * engine.processes + engine.process for part in range(engine.parts)]
    order = _Shares(start, config.steps, config.batch, parts, of)
    pin = engine.device.type == "cuda"
    return DataLoader(_Numbered(data), batch_sampler=order, num_workers=workers, pin_memory=pin)


def _steps(parts: Iterable[Batch], count: int) -> Iterator[list[Batch]]:
    """The parts of each step together; they are small against what computing with them takes."""
    held: list[Batch] = []
    for part in parts:
        held.append(part)
        if len(held) == count:
            yield held
            held = []


def _restore(task: Task, path: Path) -> tuple[int, dict[str, list[float]]]:
    if not path.exists():
        return 0, {}
    state = torch.load(path, map_location="cpu", weights_only=True)
    try:
        for name, part in task.parts.items():
            part.load_state_dict(state["parts"][name])
    except (KeyError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise SettingError(f"{path}: is of another config ({reason}); train into another folder") from error
    task.engine.load_state_dict(state.get("scaler", {}))
    log.info("resuming %s at step %d", path, state["step"])
    return int(state["step"]), state.get("totals", {})


def _save(task: Task, step: int, totals: dict[str, list[float]], path: Path) -> None:
    parts = {k: dict(p.state_dict()) for k, p in task.parts.items()}
    for name, part in parts.items():
        if not all(bool(torch.isfinite(v).all()) for v in part.values() if isinstance(v, Tensor)):
            raise NumericsError(f"step {step - 1}: weights of {name} are not numbers; last good state is {path}")
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save({"step": step, "totals": totals, "scaler": task.engine.state_dict(), "parts": parts}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _cut(path: Path, step: int) -> None:
    """Leave out of a log what was done after the state that a run resumes from."""
    if not path.exists():
        return
    lines = path.read_text().splitlines()
    kept = [line for line in lines if _step_of(line) <= step]
    if len(kept) < len(lines):
        partial = path.with_suffix(".partial")
        partial.write_text("".join(line + "\n" for line in kept))
        os.replace(partial, path)


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):  # cut off in the middle
        return math.inf
