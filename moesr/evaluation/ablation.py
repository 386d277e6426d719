"""The same model without one of its parts, to measure what the part is worth."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..diffusion.experts import All, ExpertBank, Residency
from ..errors import SettingError
from ..model import SRModel
from ..networks.frequency import AdaptiveFrequencyFilter

PARTS = ("latent", "experts", "filters")


def remove_part(model: SRModel, part: str) -> SRModel:
    """A model with the weights of `model` that works without one part.

    latent: it decodes the latent of the bicubic image instead of a sampled one (residual shift only). experts: the time
    experts work in reversed order. filters: the frequency filters change nothing. Raises SettingError for another name,
    or if the model does not have the part.
    """
    if part == "latent":
        if model.process.kind != "residual_shift":
            raise SettingError("without latent: only models of residual shifting encode the bicubic image")
        # A residual of zero is a clean latent of y.
        bank = ExpertBank(model.config.stages, All([_Zero(model.config.unet.out_channels)] * len(model.config.stages)))
        return replace(model, bank=bank, process=replace(model.process, predict="residual"))
    if part == "experts":
        count = len(model.config.stages)
        if count < 2:
            raise SettingError("without experts: the model has a single expert, there is no order to reverse")
        return replace(model, bank=ExpertBank(model.config.stages, _Reversed(model.bank.residency, count)))
    if part == "filters":
        autoencoder = copy.deepcopy(model.autoencoder)
        parents = [m for m in autoencoder.modules() if isinstance(getattr(m, "filter", None), AdaptiveFrequencyFilter)]
        if not parents:
            raise SettingError("without filters: the model's decoder has no frequency filters")
        for parent in parents:
            parent.filter = nn.Identity()
        return replace(model, autoencoder=autoencoder)
    raise SettingError(f"without {part!r} is unknown: choose one of {', '.join(PARTS)}")


class _Zero(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def embed(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        return t

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        return torch.zeros_like(x[:, :1]).expand(-1, self.channels, -1, -1)


class _Reversed:
    """Residency that gives the last expert in place of the first, and so on."""

    def __init__(self, residency: Residency, count: int) -> None:
        self.residency, self.count = residency, count

    @contextmanager
    def use(self, i: int) -> Iterator[nn.Module]:
        with self.residency.use(self.count - 1 - i) as network:
            yield network

    def prefetch(self, i: int) -> None:
        self.residency.prefetch(self.count - 1 - i)

    def close(self) -> None:
        self.residency.close()
