"""Training of the estimator of restore, which takes a minute and comes before the experts that are given its value."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F

from ..networks.restore_estimator import RestoreEstimator
from . import weight_files
from .engine import Engine
from .loop import Batch, LoopConfig, Losses, Task


class EstimatorTask(Task):
    """Squared error between the estimate and the truth. Batches hold lr and restore."""

    def __init__(self, loop: LoopConfig, engine: Engine) -> None:
        torch.manual_seed(loop.seed)
        super().__init__(loop, engine, RestoreEstimator(), ema=0.95)

    def step(self, batch: Batch, index: int) -> Losses:
        self.set_rate(index)
        error = F.mse_loss(self.network(batch["lr"]), batch["restore"].float())
        self.engine.backward(error)
        self.finish()
        return {"l2": error.detach()}

    def export(self, folder: Path) -> None:
        weight_files.save(self.ema.weights(self.network), folder / "estimator.safetensors")
