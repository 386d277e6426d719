"""Colour fixes: give a result the colours of its low-resolution source, with statistics of the whole image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ImageError, SettingError

COLOUR_FIXES = ("adain", "wavelet", "none")
_EPS = 1e-5
_LEVELS = 5
#: Pixels around a pixel that its low pass depends on.
LOW_PASS_RADIUS = 2**_LEVELS - 1


def colour_fix(name: str, content: Tensor, style: Tensor) -> Tensor:
    """`content` [B, C, H, W] with the colours of `style`, by the method called `name`: one of COLOUR_FIXES.

    "none" returns `content` itself; "wavelet" needs a style of the same size. Raises SettingError for another name.
    """
    if name == "adain":
        return adain(content, style)
    if name == "wavelet":
        return wavelet(content, style)
    if name == "none":
        return content
    raise SettingError(f"colour fix {name!r} does not exist; use one of {', '.join(COLOUR_FIXES)}")


def adain(content: Tensor, style: Tensor) -> Tensor:
    """Moves every sample and channel of `content` to the mean and standard deviation of `style` (AdaIN).

    Both [B, C, H, W], sizes may differ: y = (x - mean_x) / std_x * std_s + mean_s, with std = sqrt(variance + 1e-5) and
    the unbiased variance. Computed in at least float32; the type of `content` is kept.
    """
    std_x, mean_x = _statistics(content)
    std_s, mean_s = _statistics(style)
    return torch.addcmul(mean_s, content - mean_x, std_s / std_x).to(content.dtype)


def wavelet(content: Tensor, style: Tensor) -> Tensor:
    """High frequencies of `content` with the low frequencies of `style`, split by a 5-level à-trous pyramid.

    Both [B, C, H, W] of one size, of any size. A level is a [1 2 1] / 4 blur along both axes, dilated by 2^level, with
    replicated borders. The split is linear, so content - low(content) + low(style) = content + low(style - content).
    """
    if content.shape != style.shape:
        raise ImageError(f"colour fix: style {tuple(style.shape)} is not {tuple(content.shape)}; resize it first")
    result = torch.empty_like(content)
    planes = zip(content.flatten(0, 1), style.flatten(0, 1), result.flatten(0, 1), strict=True)
    for source, target, out in planes:  # one [H, W] at a time bounds the memory
        out.copy_(source + low_pass(target.to(_work(target)) - source))
    return result


class Moments:
    """Mean and standard deviation of each channel of an image that is seen in parts, as `adain` defines them."""

    def __init__(self) -> None:
        self._count = 0
        self._mean: Tensor = torch.zeros(())
        self._square: Tensor = torch.zeros(())  # sum of squared distances from the mean

    def add(self, part: Tensor) -> None:
        """Take in pixels [C, h, W]. Parts are merged as Chan, Golub and LeVeque do, in float64."""
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


def _statistics(image: Tensor) -> tuple[Tensor, Tensor]:
    """Standard deviation and mean [B, C, 1, 1]; one pixel has variance 0."""
    image = image.to(_work(image))
    single = image.shape[-2] * image.shape[-1] == 1
    variance, mean = torch.var_mean(image, dim=(-2, -1), correction=0 if single else 1, keepdim=True)
    return (variance + _EPS).sqrt(), mean


def low_pass(plane: Tensor) -> Tensor:
    """The plane [H, W] after all levels of the pyramid."""
    plane = plane[None, None]
    for level in range(_LEVELS):
        step = 2**level
        padded = F.pad(plane, (step, step, 0, 0), mode="replicate")
        plane = (padded[..., : -2 * step] + padded[..., 2 * step :]) / 4 + plane / 2
        padded = F.pad(plane, (0, 0, step, step), mode="replicate")
        plane = (padded[..., : -2 * step, :] + padded[..., 2 * step :, :]) / 4 + plane / 2
    return plane[0, 0]


def _work(image: Tensor) -> torch.dtype:
    return torch.promote_types(image.dtype, torch.float32)
