"""Colour fixes: give a result the colours of its low-resolution source, with statistics of the whole image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_EPS = 1e-5
_LEVELS = 5
_AT_ONCE = 2**18  # pixels that become float64
#: Pixels around a pixel that its low pass depends on.
LOW_PASS_RADIUS = 2**_LEVELS - 1


def adain(content: Tensor, style: Tensor) -> Tensor:
    """Moves every sample and channel of `content` to the mean and standard deviation of `style` (AdaIN).

    Both [B, C, H, W], sizes may differ: y = (x - mean_x) / std_x * std_s + mean_s, with std = sqrt(variance + 1e-5) and
    the unbiased variance.
    """
    return torch.stack([match_moments(x, Moments(x), Moments(s)) for x, s in zip(content, style)])


def match_moments(part: Tensor, own: Moments, target: Moments) -> Tensor:
    """Any part [C, h, w] of an image with moments `own`, given those of `target`."""
    (std_x, mean_x), (std_s, mean_s) = own.statistics(), target.statistics()
    return (part - mean_x.to(part)) * (std_s / std_x).to(part) + mean_s.to(part)


class Moments:
    """Mean and standard deviation of each channel of an image that is seen in parts, as `adain` defines them.

    Kept where the parts are, so that no tile waits for a copy; on the CPU for devices that have no float64.
    """

    def __init__(self, image: Tensor | None = None) -> None:
        self._count = 0
        self._mean: Tensor = torch.zeros(())
        self._square: Tensor = torch.zeros(())  # sum of squared distances from the mean
        if image is not None:
            self.add(image)

    def add(self, part: Tensor) -> None:
        """Take in pixels [C, h, W]. Parts are merged as Chan, Golub and LeVeque do, in float64."""
        for rows in part.split(max(1, _AT_ONCE // part.shape[-1]), dim=-2):
            self._merge(rows)

    def _merge(self, part: Tensor) -> None:
        part = part if part.device.type in ("cpu", "cuda") else part.cpu()
        variance, mean = torch.var_mean(part.double(), dim=(-2, -1), correction=0)
        n = part.shape[-2] * part.shape[-1]
        total = self._count + n
        delta = mean - self._mean.to(mean)
        self._square = self._square.to(mean) + variance * n + delta.square() * self._count * n / total
        self._mean = self._mean.to(mean) + delta * n / total
        self._count = total

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Standard deviation and mean, float32 [C, 1, 1]."""
        variance = self._square / max(self._count - 1, 1)
        return (variance + _EPS).sqrt().float()[:, None, None], self._mean.float()[:, None, None]


def low_pass(plane: Tensor) -> Tensor:
    """The plane [H, W] after all 5 levels of an à-trous pyramid: [1 2 1] / 4 along both axes, dilated by 2^level.

    Borders are replicated.
    """
    plane = plane[None, None]
    for level in range(_LEVELS):
        step = 2**level
        padded = F.pad(plane, (step, step, 0, 0), mode="replicate")
        plane = (padded[..., : -2 * step] + padded[..., 2 * step :]) / 4 + plane / 2
        padded = F.pad(plane, (0, 0, step, step), mode="replicate")
        plane = (padded[..., : -2 * step, :] + padded[..., 2 * step :, :]) / 4 + plane / 2
    return plane[0, 0]
