"""Losses of what images look like: LPIPS, and an adversary that judges the features that LPIPS computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..evaluation.lpips import LPIPS
from . import losses
from .adversary import FeatureDiscriminator, augment_pair
from .engine import Engine
from .loop import LoopConfig, Losses, Task, autocast

#: Taps of LPIPS's VGG whose features the adversary judges, at 1/2 to 1/8 of the resolution, and their widths.
TAPS, VGG_WIDTHS = slice(1, 4), (128, 256, 512)


@dataclass(frozen=True)
class FeatureLosses:
    """Weights of the losses of features."""

    #: Of LPIPS, by network.
    lpips: Mapping[str, float]
    adversary: float
    #: Step from which the adversary counts.
    adversary_start: int


class PerceptualTask(Task):
    """A stage whose images are compared by features. metrics: the folder of LPIPS's weights."""

    def __init__(
        self, loop: LoopConfig, engine: Engine, network: nn.Module, features: FeatureLosses, *,
        metrics: str | Path | None, **more: Any,
    ) -> None:  # fmt: skip
        self.features = features
        self.distances = {name: LPIPS(name, metrics) for name in features.lpips}
        super().__init__(
            loop, engine, network, betas=(0.9, 0.99), **more,
            adversary=FeatureDiscriminator(VGG_WIDTHS) if "vgg" in features.lpips else None,
        )  # fmt: skip
        self.measures = [*self.measures, *self.distances.values()]

    def compare_features(
        self, out: Tensor, hr: Tensor, index: int, report: Losses
    ) -> tuple[Tensor, list[Tensor] | None]:
        """Of images [B, 3, H, W] in [-1, 1]: LPIPS at a random offset minus the adversary's score, weighted.

        Also the features that the adversary learns from, true ones before fake ones; None before it counts. Both images
        go through the same DiffAugment before VGG, so that the adversary cannot memorise the training images.
        LPIPS-vgg uses these features too, so it costs nothing more.
        """
        loss, against = out.new_zeros(()), None
        shifted, real = losses.crop_randomly(out, hr)
        with autocast(self.loop, hr.device):
            for name, distance in self.distances.items():
                pair = augment_pair(shifted, real) if name == "vgg" else (shifted, real)
                fake = distance.embed(pair[0])
                with torch.no_grad():
                    true = distance.embed(pair[1])
                value = distance.distance(fake, true).mean()
                loss = loss + self.features.lpips[name] * value
                report[name] = value.detach()
                if name == "vgg" and self.adversary is not None and index >= self.features.adversary_start:
                    loss = loss - self.features.adversary * self.judge(fake[TAPS])
                    against = [torch.cat([x, y.detach()]) for x, y in zip(true[TAPS], fake[TAPS])]
        return loss, against
