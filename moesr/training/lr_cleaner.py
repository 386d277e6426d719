"""Training of the network that cleans LR images, which comes before all that is given what it makes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..images.resize import resize
from ..networks.lr_cleaner import LRCleaner
from ..networks.restore_estimator import RestoreEstimator
from . import weight_files
from .engine import Engine
from .loop import Batch, LoopConfig, Losses, autocast
from .perceptual import FeatureLosses, PerceptualTask


class CleanerTask(PerceptualTask):
    """L1, LPIPS and an adversary against the HR image, reduced and nothing else. Batches hold hr, lr and restore.

    Half of the images come with the true restore, half with that of the estimator, which stays as it is. start:
    weights to go on from; empty for new ones.
    """

    def __init__(
        self,
        loop: LoopConfig,
        engine: Engine,
        features: FeatureLosses,
        *,
        channels: int,
        estimator: Mapping[str, Tensor],
        start: Mapping[str, Tensor],
        metrics: str | Path | None,
    ) -> None:
        torch.manual_seed(loop.seed)
        self.estimator = RestoreEstimator().requires_grad_(False)
        self.estimator.load_state_dict(dict(estimator))
        cleaner = LRCleaner(channels)
        if start:
            cleaner.load_state_dict(dict(start))
        super().__init__(loop, engine, cleaner, features, metrics=metrics, ema=0.998, measures=[self.estimator])

    def step(self, batch: Batch, index: int) -> Losses:
        self.set_rate(index)
        lr, truth = batch["lr"], batch["restore"].float()
        restore = torch.where(torch.rand_like(truth) < 0.5, truth, self.estimator(lr))
        with autocast(self.loop, lr.device):
            cleaned = self.network(lr, restore).float()
        target = resize(batch["hr"], (lr.shape[-2], lr.shape[-1]))
        error = F.l1_loss(cleaned, target)
        report: Losses = {"l1": error.detach()}
        perceptual, against = self.compare_features(cleaned, target, index, report)
        self.engine.backward(error + perceptual)
        if against is not None:
            report["adversary"] = self.oppose(against)
        self.finish(against is not None)
        return report

    def export(self, folder: Path) -> None:
        weight_files.save(self.ema.weights(self.network), folder / "cleaner.safetensors")
