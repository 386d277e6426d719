"""The loop and the parts that all stages share: steps or minutes, log, state, exact resume, on any processes."""

from __future__ import annotations

import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..atomic_files import open_new
from ..errors import NumericsError, SettingError
from ..networks.space_moe import exchange_weights
from . import losses, random_draws
from .ema import EMA
from .engine import Engine
from .run_log import Board

log = logging.getLogger(__name__)

Batch = dict[str, Tensor]
#: By name. A GPU need not be waited for as long as nobody reads them.
Losses = dict[str, float | Tensor]
#: The sum and number of every loss since the last line of the log.
Totals = dict[str, tuple[float | Tensor, int]]
#: The batch of a step, in the parts that this process computes one after the other.
NextBatch = Callable[[int], Sequence[Batch]]

#: Items on a contact sheet: the first of the data.
SHEET = 8


@dataclass(frozen=True)
class LoopConfig:
    """How long and how fast a stage trains."""

    steps: int = 1000
    #: Items of all processes together.
    batch: int = 16
    #: The learning rate warms up linearly over `warmup` steps, then falls on a cosine to `final_lr` of itself.
    lr: float = 1e-4
    warmup: int = 100
    final_lr: float = 0.1
    #: Steps between states, and between lines of the log.
    save_every: int = 200
    log_every: int = 20
    #: fp32, bf16 or fp16.
    precision: str = "fp32"
    seed: int = 0
    #: Parts in which each process computes its share of a batch.
    accumulate: int = 1
    #: Processes that load data, per training process.
    workers: int = 0


@dataclass(frozen=True)
class Budget:
    """How long a stage trains: for some minutes or, if None, for the steps of its loop."""

    minutes: float | None = None
    #: Minutes between states; None: every `save_every` steps.
    save_minutes: float | None = None


@dataclass(frozen=True)
class Done:
    """What a stage did, by this run and those that it continued."""

    #: Optimiser steps, the minutes that they took, and images per second.
    steps: int
    minutes: float
    rate: float


def learning_rate(config: LoopConfig, index: int) -> float:
    """Learning rate of step `index` (0 based)."""
    if index < config.warmup:
        return config.lr * (index + 1) / config.warmup
    progress = (index - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * (config.final_lr + (1 - config.final_lr) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2)


def autocast(config: LoopConfig, device: torch.device) -> torch.autocast:
    """The context a stage computes its forward pass in, in the precision of the config."""
    dtype = torch.float16 if config.precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=config.precision != "fp32")


class Task(ABC):
    """A stage of training: its networks, optimisers and averages, which `parts` names for the state file.

    network: what is averaged. parameters: those of it that are trained, by default all. measures: frozen networks that
    losses need. gamma: of the exchange of weights between space experts (EWA) after every step.
    """

    def __init__(
        self,
        loop: LoopConfig,
        engine: Engine,
        network: nn.Module,
        *,
        ema: float,
        parameters: list[nn.Parameter] | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        adversary: nn.Module | None = None,
        measures: Sequence[nn.Module] = (),
        gamma: float | None = None,
    ) -> None:
        self.gamma = gamma
        self.loop, self.engine, self.network, self.adversary, self.measures = loop, engine, network, adversary, measures
        self.parameters = list(network.parameters()) if parameters is None else parameters
        self.optimiser = torch.optim.AdamW(self.parameters, loop.lr, betas=betas, weight_decay=0)
        self.ema = EMA(network, ema)
        self.parts: dict[str, Any] = {"network": network, "optimiser": self.optimiser, "ema": self.ema}
        self.opponent: torch.optim.Optimizer | None = None
        if adversary is not None:
            self.opponent = torch.optim.AdamW(adversary.parameters(), loop.lr, betas=(0.5, 0.9), weight_decay=0)
            self.parts |= {"adversary": adversary, "opponent": self.opponent}

    def to(self, device: torch.device) -> None:
        """Move everything to a device."""
        for module in (self.network, *self.measures, *([self.adversary] if self.adversary else [])):
            module.to(device)
        self.ema.to(device)

    @abstractmethod
    def step(self, batch: Batch, index: int) -> Losses:
        """Add the gradients of a batch, or of a part of one; after the last part make the step. Returns the losses."""

    def pictures(self, batch: Batch) -> Tensor | None:
        """Rows of a contact sheet, [B, 3, H, W] in [-1, 1], by the present weights; None: the stage makes no images."""
        return None

    @abstractmethod
    def export(self, folder: Path) -> None:
        """Write the results into a folder."""

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Inside the block the network has its averaged weights and is in eval mode."""
        kept = {name: value.clone() for name, value in self.network.state_dict().items()}
        training = [module for module in self.network.modules() if module.training]
        self.network.load_state_dict(self.ema.weights(self.network))
        self.network.eval()
        try:
            yield
        finally:
            self.network.load_state_dict(kept)
            for module in training:
                module.training = True

    def set_rate(self, index: int) -> None:
        """Give all optimisers the learning rate of a step."""
        for optimiser in (self.optimiser, *([self.opponent] if self.opponent else [])):
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(self.loop, index)

    def judge(self, fake: Any) -> Tensor:
        """The mean score that the adversary gives results. The adversary gets no gradient."""
        assert self.adversary is not None
        self.adversary.requires_grad_(False)
        with autocast(self.loop, self.engine.device):
            score = self.adversary(fake).float().mean()
        self.adversary.requires_grad_(True)
        return score

    def oppose(self, true_and_fake: Any) -> Tensor:
        """Add the adversary's gradients, and return its hinge loss: 1 where it cannot tell true items from fake ones.

        true_and_fake: a batch of true items, followed by as many fake ones.
        """
        assert self.adversary is not None
        with autocast(self.loop, self.engine.device):
            scores = self.engine.forward(self.adversary, self.adversary, true_and_fake).float()
        loss = losses.hinge_discriminator(*scores.chunk(2))
        self.engine.backward(loss)
        return loss.detach()

    def finish(self, opposed: bool = False) -> None:
        """After the last part of a batch: make the step of the network, and of the adversary if it has gradients."""
        steps: list[tuple[torch.optim.Optimizer, list[nn.Parameter] | None]] = [(self.optimiser, self.parameters)]
        if opposed and self.opponent is not None:
            steps.append((self.opponent, None))
        if self.engine.step(*steps):
            if self.gamma is not None:
                exchange_weights(self.network, self.gamma)
            self.ema.update(self.network)


def run(task: Task, next_batch: NextBatch, loop: LoopConfig, folder: Path, budget: Budget | None = None) -> Done:
    """Train until the budget is spent, from the state in `folder` if there is one, and export the result there.

    The task is given positions 0 .. loop.steps. Without a limit of time they are steps. With one they are the share of
    the time that has passed, so that warm-up, cosine and all that begins later are planned to it. Random numbers are
    functions of the seed, the step and the item. Raises NumericsError on a loss or a weight that is not finite: the
    last good state stays. Raises SettingError for a state that is not this task's.
    """
    engine, budget = task.engine, budget or Budget()
    path = folder / "state.pt"
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(loop.seed)
    task.to(engine.device)
    facts, totals = _restore(task, path)
    first = step = int(facts["step"])
    if engine.average_numbers({"step": step})["step"] != step:
        raise SettingError(f"{folder}: not the same for all processes; machines must share the folder of a run")
    board = Board(folder, step) if engine.main else None
    sheet = {name: value[:SHEET] for name, value in _move(next_batch(0)[0], engine.device).items()}
    exported, data_seconds = -1, facts["data"]
    start = last_save = time.monotonic()

    def count_seconds() -> float:
        return facts["seconds"] + time.monotonic() - start

    def find_position() -> int:
        return step if budget.minutes is None else int(count_seconds() / (60 * budget.minutes) * loop.steps)

    def read_totals() -> None:  # of all processes, so that all stop together
        sums = engine.average_numbers({name: float(total) for name, (total, _) in totals.items()})
        for name, total in sums.items():
            totals[name] = total, totals[name][1]
            if not math.isfinite(total):
                raise NumericsError(f"step {step - 1}: loss {name} is {total}; last good state is {path}")

    def write_row() -> None:
        read_totals()
        row = {"step": step, "seconds": round(count_seconds(), 2), "lr": learning_rate(loop, at)}
        row["images_per_second"] = round((step - first) * loop.batch / (time.monotonic() - start), 3)
        row |= {name: float(total) / count for name, (total, count) in totals.items()}
        totals.clear()
        if board is not None:
            board.write_row(row, step)

    def export() -> None:
        read_totals()
        if board is not None:
            if step > first:
                _save(task, {"step": step, "seconds": count_seconds(), "data": data_seconds}, totals, path)
            _show(task, sheet, folder, board, step)

    with tqdm(total=loop.steps, initial=step, desc=folder.name, disable=not engine.main) as bar:
        while (at := find_position()) < loop.steps:
            began = time.monotonic()
            parts = [_move(part, engine.device) for part in next_batch(step)]
            data_seconds += time.monotonic() - began
            for name, value in _step(task, parts, at, random_draws.make_seed(loop.seed, step)).items():
                total, count = totals.get(name, (0.0, 0))
                totals[name] = total + value, count + 1
            step += 1
            bar.n = at
            bar.update(0)
            if step % loop.log_every == 0 or find_position() >= loop.steps:
                write_row()
            minutes = (time.monotonic() - last_save) / 60
            if step % loop.save_every == 0 if budget.save_minutes is None else minutes > budget.save_minutes:
                export()
                exported, last_save = step, time.monotonic()
    if exported != step:  # at the end, or where a run was stopped between its last state and the export
        export()
    if board is not None:
        board.close()
    engine.wait()
    done = Done(step, count_seconds() / 60, step * loop.batch / max(count_seconds(), 1e-9))
    log.info(
        "%s: %d steps in %.1f minutes, of them %.2f waiting for data; %.2f images/s",
        folder.name, done.steps, done.minutes, data_seconds / 60, done.rate,
    )  # fmt: skip
    return done


def _step(task: Task, parts: Sequence[Batch], at: int, seed: int) -> Losses:
    totals: Losses = {}
    for part in parts:
        torch.manual_seed(seed)  # what is drawn for a whole batch is the same in all its parts
        with task.engine.part():
            values = task.step(part, at)
        for name, value in values.items():
            totals[name] = totals.get(name, 0.0) + value / len(parts)
    return totals


def _show(task: Task, sheet: Batch, folder: Path, board: Board, step: int) -> None:
    task.export(folder)
    with torch.no_grad(), task.averaged_weights():
        pictures = task.pictures(sheet)
    if pictures is not None:
        board.write_sheet(pictures, step)


def _move(batch: Batch, device: torch.device) -> Batch:
    # draws read the index on the CPU
    return {k: v if k == "index" else v.to(device, non_blocking=True) for k, v in batch.items()}


def _restore(task: Task, path: Path) -> tuple[dict[str, float], Totals]:
    """Step, seconds spent and of them on data; and for the next line of the log the sum and number of every loss."""
    if not path.exists():
        return {"step": 0, "seconds": 0.0, "data": 0.0}, {}
    state = torch.load(path, map_location="cpu", weights_only=True)
    try:
        for name, part in task.parts.items():
            part.load_state_dict(state["parts"][name])
    except (KeyError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise SettingError(f"{path}: is of another config ({reason}); train into another folder") from error
    task.engine.load_state_dict(state["scaler"])
    log.info("resuming %s at step %d", path, state["step"])
    return {k: state[k] for k in ("step", "seconds", "data")}, state["totals"]


def _save(task: Task, facts: dict[str, float], totals: Totals, path: Path) -> None:
    parts = {name: dict(part.state_dict()) for name, part in task.parts.items()}
    for name, part in parts.items():
        if not all(bool(torch.isfinite(v).all()) for v in part.values() if isinstance(v, Tensor)):
            step = int(facts["step"]) - 1
            raise NumericsError(f"step {step}: weights of {name} are not numbers; last good state is {path}")
    with open_new(path, replaces=True) as file:
        torch.save({**facts, "totals": totals, "scaler": task.engine.state_dict(), "parts": parts}, file)
