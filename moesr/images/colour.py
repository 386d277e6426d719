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


def match_moments(part: Tensor, own: Moments, target: Moments) -> Tensor:
    """AdaIN of any part [C, h, w] of an image with moments `own`, given those of `target`, channel by channel.

    y = (x - mean_x) / std_x * std_s + mean_s, with std = sqrt(variance + 1e-5) and the unbiased variance. All three
    may lie on different devices.
    """
    std_x, mean_x, std_s, mean_s = (value.to(part) for moments in (own, target) for value in moments.statistics())
    return (part - mean_x) * (std_s / std_x) + mean_s


class Moments:
    """Mean and standard deviation of each channel of an image that comes in parts.

    Computed on the device of the parts, so that nothing waits for a copy: in float64, in float32 where there is none.
    """

    def __init__(self, image: Tensor | None = None) -> None:
        self._parts: list[tuple[int, Tensor, Tensor]] = []  # pixels, variance [C] and mean [C] of each part
        self._found: tuple[Tensor, Tensor] | None = None
        if image is not None:
            self.add(image)

    def add(self, part: Tensor) -> None:
        """Count pixels [C, h, W] in."""
        dtype = torch.float64 if part.device.type in ("cpu", "cuda") else torch.float32
        for rows in part.split(max(1, _AT_ONCE // part.shape[-1]), dim=-2):
            variance, mean = torch.var_mean(rows.to(dtype), dim=(-2, -1), correction=0)
            self._parts.append((rows.shape[-2] * rows.shape[-1], variance, mean))
        self._found = None

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Standard deviation and mean, float32 [C, 1, 1]."""
        if self._found is None:
            count = sum(n for n, _, _ in self._parts)
            zero = torch.zeros_like(self._parts[0][2])
            mean = sum((m * (n / count) for n, _, m in self._parts), start=zero)
            variance = sum(((v + (m - mean).square()) * (n / max(count - 1, 1)) for n, v, m in self._parts), start=zero)
            self._found = (variance + _EPS).sqrt().float()[:, None, None], mean.float()[:, None, None]
        return self._found


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
