"""The loop of a run that ends at a planned time: steps, log, contact sheets, state and exports, on one device."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..errors import NumericsError, SettingError
from . import draws
from .loop import Batch, LoopConfig, Task, rate

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Budget:
    """How long a stage trains: for some minutes, or, if None, for the steps of its loop."""

    minutes: float | None
    #: State, export and contact sheet are written this often, and at the end.
    save_minutes: float = 10.0


@dataclass(frozen=True)
class Done:
    """What a stage did: steps, minutes, and images per second of the data alone and of everything."""

    steps: int
    minutes: float
    data_rate: float
    rate: float


def run_timed(task: Task, next_batch: Callable[[int], Batch], loop: LoopConfig, folder: Path, budget: Budget) -> Done:
    """Train until the budget is spent, from the state in `folder` if there is one, and export there.

    next_batch(step) gives the batch of a step, on the device. The task is given positions 0 .. loop.steps instead of
    steps: with a budget of minutes they are the share of it that has passed. So warm-up, cosine and everything that
    begins later are planned to that time, however fast the machine is. A run that is killed loses what came after the
    last state, and goes on with the time that was left. Raises NumericsError for a loss that is not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    task.to(task.engine.device)
    step, before, data_seconds = _restore(task, folder / "state.pt")
    start = saved = time.monotonic()
    totals: dict[str, list[float]] = {}
    sheet = _first_rows(next_batch(0), 8)
    first, images = step, 0
    bar = tqdm(total=loop.steps, desc=folder.name)

    def seconds() -> float:
        return before + time.monotonic() - start

    def position() -> int:
        if budget.minutes is None:
            return step
        return min(loop.steps, int(seconds() / (60 * budget.minutes) * loop.steps))

    def save() -> None:
        _save(task, folder / "state.pt", {"step": step, "seconds": seconds(), "data": data_seconds})
        task.export(folder)
        with torch.no_grad():
            pictures = task.pictures(sheet)
        if pictures is not None:
            write_sheet(pictures, folder / "sheets" / f"{step:06d}.png")

    while (at := position()) < loop.steps:
        torch.manual_seed(draws.key(loop.seed, step))
        began = time.monotonic()
        batch = next_batch(step)
        _synchronise(task.engine.device)
        data_seconds += time.monotonic() - began
        for name, value in task.step(batch, at).items():
            if not math.isfinite(value):
                raise NumericsError(f"step {step}: loss {name} is {value}; last good state is {folder / 'state.pt'}")
            total = totals.setdefault(name, [0.0, 0])
            total[0], total[1] = total[0] + value, total[1] + 1
        step, images = step + 1, images + len(batch["hr"])
        bar.n = at
        bar.update(0)
        if step % loop.log_every == 0:
            means = {name: round(total / count, 5) for name, (total, count) in totals.items()}
            facts = {"step": step, "seconds": round(seconds(), 1), "lr": rate(loop, at)}
            facts["images_per_second"] = round(images / (time.monotonic() - start), 3)
            with (folder / "log.jsonl").open("a") as file:
                file.write(json.dumps({**facts, **means}) + "\n")
            totals = {}
        if time.monotonic() - saved > 60 * budget.save_minutes:
            save()
            saved = time.monotonic()
    bar.close()
    save()
    spent = max(time.monotonic() - start, 1e-9)
    size = len(sheet["hr"]) if step == first else images / (step - first)
    done = Done(step, seconds() / 60, step * size / max(data_seconds, 1e-9), images / spent)
    log.info(
        "%s: %d steps in %.1f minutes; data alone %.1f images/s, everything %.2f images/s",
        folder.name, done.steps, done.minutes, done.data_rate, done.rate,
    )  # fmt: skip
    return done


def write_sheet(images: Tensor, path: Path) -> None:
    """Images [B, 3, H, W] in [-1, 1], one below the other, as a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = ((torch.cat(list(images.float().cpu()), dim=1) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())).save(path)


def _first_rows(batch: Batch, count: int) -> Batch:
    return {name: value[:count] for name, value in batch.items()}


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _save(task: Task, path: Path, facts: dict[str, float]) -> None:
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save({**facts, "parts": {k: dict(p.state_dict()) for k, p in task.parts.items()}}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _restore(task: Task, path: Path) -> tuple[int, float, float]:
    """Step, and seconds spent so far and of them on data."""
    if not path.exists():
        return 0, 0.0, 0.0
    state = torch.load(path, map_location="cpu", weights_only=True)
    try:
        for name, part in task.parts.items():
            part.load_state_dict(state["parts"][name])
    except (KeyError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise SettingError(f"{path}: is of another config ({reason}); train into another folder") from error
    log.info("resuming %s at step %d", path, state["step"])
    return int(state["step"]), float(state["seconds"]), float(state["data"])
