"""Training of the estimator of restore, which takes a minute and comes before the experts that are told its value."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..networks.estimator import RestoreEstimator
from . import weights
from .ema import EMA
from .engine import Engine
from .loop import Batch, LoopConfig, Stateful, rate


class EstimatorTask:
    """Squared error between the estimate and the truth. Batches hold lr and restore. See loop.Task."""

    name = "estimator"

    def __init__(self, loop: LoopConfig, engine: Engine) -> None:
        torch.manual_seed(loop.seed)
        self.loop, self.engine = loop, engine
        self.network = RestoreEstimator()
        self.optimiser = torch.optim.AdamW(self.network.parameters(), loop.lr)
        self.ema = EMA(self.network, 0.95)
        self.parts: dict[str, Stateful] = {"network": self.network, "optimiser": self.optimiser, "ema": self.ema}

    def to(self, device: torch.device) -> None:
        self.network.to(device)
        self.ema.to(device)

    def step(self, batch: Batch, index: int) -> dict[str, float]:
        for group in self.optimiser.param_groups:
            group["lr"] = rate(self.loop, index)
        error = F.mse_loss(self.network(batch["lr"]), batch["restore"].float())
        self.engine.backward(error)
        self.engine.step((self.optimiser, list(self.network.parameters())))
        self.ema.update(self.network)
        return {"l2": error.item()}

    def pictures(self, batch: Batch) -> Tensor | None:
        """None: it makes numbers."""

    def export(self, folder: Path) -> None:
        weights.save(self.ema.weights(self.network), folder / "estimator.safetensors")
