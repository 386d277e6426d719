"""Blur kernels of the Real-ESRGAN degradation (arXiv 2107.10833, section 3), drawn and applied; and unsharp masking."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

#: Kernel families of a draw, in the order of their probabilities.
FAMILIES = ("iso", "aniso", "generalised iso", "generalised aniso", "plateau iso", "plateau aniso")
PROBABILITIES = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
SIZES = tuple(range(7, 22, 2))

Range = tuple[float, float]


@dataclass(frozen=True)
class Blur:
    """One kernel as numbers. sigma in pixels along its axes, angle and cutoff (of a sinc) in radians."""

    family: str
    size: int
    sigma: tuple[float, float] = (1.0, 1.0)
    angle: float = 0.0
    beta: float = 1.0
    cutoff: float = math.pi

    def __str__(self) -> str:
        if self.family == "sinc":
            return f"sinc {self.cutoff:.1f}"
        a, b = self.sigma
        return f"{self.family} {a:.1f}" if a == b else f"{self.family} {a:.1f}x{b:.1f}"

    def kernel(self) -> Tensor:
        """The kernel, float32 [size, size], sum 1: exp(-d^beta / 2), 1 / (1 + d^beta), or a circular low-pass.

        d is the squared Mahalanobis distance. The low-pass is w J1(w r) / (2 pi r), which is w^2 / (4 pi) at r = 0.
        """
        axis = torch.arange(self.size, dtype=torch.float64) - self.size // 2
        y, x = axis[:, None], axis[None, :]
        if self.family == "sinc":
            r = (x * x + y * y).sqrt()
            r[self.size // 2, self.size // 2] = 1
            kernel = self.cutoff * torch.special.bessel_j1(self.cutoff * r) / (2 * math.pi * r)
            kernel[self.size // 2, self.size // 2] = self.cutoff**2 / (4 * math.pi)
        else:
            cos, sin = math.cos(self.angle), math.sin(self.angle)
            d = ((cos * x + sin * y) / self.sigma[0]) ** 2 + ((cos * y - sin * x) / self.sigma[1]) ** 2
            plateau = self.family.startswith("plateau")
            kernel = 1 / (1 + d**self.beta) if plateau else torch.exp(-0.5 * d**self.beta)
        return (kernel / kernel.sum()).float()


def draw(rng: np.random.Generator, sigma: Range, generalised: Range, plateau: Range, sinc: float) -> Blur:
    """A kernel of random family and size; with probability `sinc` a low-pass instead. Ranges: sigma, and two of beta.

    Half of the betas lie below 1 (heavier tails than a Gaussian's) where the range allows it, half above.
    """
    size = int(rng.choice(SIZES))
    if rng.random() < sinc:
        return draw_sinc(rng, size, math.pi / 3 if size < 13 else math.pi / 5)
    family = FAMILIES[int(rng.choice(len(FAMILIES), p=PROBABILITIES))]
    x, y, angle, beta = float(rng.uniform(*sigma)), float(rng.uniform(*sigma)), float(rng.uniform(-1, 1)), 1.0
    if family.startswith(("generalised", "plateau")):
        low, high = generalised if family.startswith("generalised") else plateau
        beta = float(rng.uniform(low, 1) if rng.random() < 0.5 else rng.uniform(1, high))
    if family.endswith("aniso"):
        return Blur(family, size, (x, y), math.pi * angle, beta)
    return Blur(family, size, (x, x), 0.0, beta)


def draw_sinc(rng: np.random.Generator, size: int | None = None, lowest: float = math.pi / 3) -> Blur:
    """A low-pass with a cutoff from `lowest` to pi, of random size by default."""
    return Blur("sinc", size or int(rng.choice(SIZES)), cutoff=float(rng.uniform(lowest, math.pi)))


def filtered(image: Tensor, kernel: Tensor) -> Tensor:
    """image [C, H, W] correlated with an odd kernel [k, k], mirrored at its borders; the shape stays.

    By FFT: the time hardly depends on the kernel, and images may be smaller than it.
    """
    height, width = image.shape[-2:]
    pad = kernel.shape[-1] // 2
    size = _fast(height + 2 * pad), _fast(width + 2 * pad)
    padded = image[:, _mirrored(height, pad, size[0])][:, :, _mirrored(width, pad, size[1])]
    spectrum = torch.fft.rfft2(padded) * torch.fft.rfft2(kernel, s=size).conj()
    return torch.fft.irfft2(spectrum, s=size)[:, :height, :width]


def sharpened(image: Tensor) -> Tensor:
    """image [3, H, W] in [-1, 1] after unsharp masking: weight 0.5, 51 px, where it differs by over 10 / 255."""
    values = (image + 1) / 2
    wide = Blur("iso", 51, (8.0, 8.0)).kernel()
    detail = values - filtered(values, wide)
    mask = filtered((detail.abs() * 255 > 10).float(), wide)
    sharp = (values + 0.5 * detail).clamp(0, 1)
    return (mask * sharp + (1 - mask) * values).clamp(0, 1) * 2 - 1


def _mirrored(side: int, pad: int, length: int) -> Tensor:
    """Indices of a side that is mirrored `pad` pixels beyond its start and on to `length`, as often as it takes."""
    index = torch.arange(-pad, length - pad)
    period = max(1, 2 * (side - 1))
    index = index % period
    return torch.where(index < side, index, period - index)


@cache
def _fast(length: int) -> int:
    """The next even length with factors 2, 3 and 5 only: FFTs of others are several times slower."""
    while True:
        rest = length
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1 and length % 2 == 0:
            return length
        length += 1
