"""Blur kernels of the Real-ESRGAN degradation (arXiv 2107.10833, section 3) for whole batches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

#: Kernel families: exp(-d^beta / 2), 1 / (1 + d^beta), and a circular low-pass. d: squared Mahalanobis distance.
GAUSSIAN, PLATEAU, SINC = 0, 1, 2
#: Probabilities of iso, aniso, generalised iso, generalised aniso, plateau iso, plateau aniso.
PROBABILITIES = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
SIZES = np.arange(7, 22, 2)

Range = tuple[float, float]

T = TypeVar("T")


class Rows:
    """A dataclass of arrays that have one row per image. Indexed, it is the same kind for some of the images."""

    def __getitem__(self: T, rows: np.ndarray | slice) -> T:
        return type(self)(*(values[rows] for values in vars(self).values()))


@dataclass
class Kernels(Rows):
    """One blur kernel per image, as numbers."""

    family: np.ndarray  # GAUSSIAN, PLATEAU or SINC
    size: np.ndarray  # side in pixels, odd; 1: no blur
    sigma: np.ndarray  # [n, 2], pixels along the kernel's axes
    angle: np.ndarray  # radians
    beta: np.ndarray  # exponent; 1: a Gaussian
    cutoff: np.ndarray  # of a SINC, radians per pixel

    def __len__(self) -> int:
        return len(self.size)

    def tensor(self, device: torch.device | str = "cpu") -> Tensor:
        """The kernels, float32 [n, k, k] with sum 1; k is the largest size, smaller kernels have zeros around.

        The low-pass of cutoff w is w J1(w r) / (2 pi r), which is w^2 / (4 pi) at r = 0.
        """
        half = int(self.size.max()) // 2
        named = {k: torch.as_tensor(v.astype(np.float32), device=device) for k, v in vars(self).items()}
        size, family = (named[k][:, None, None] for k in ("size", "family"))
        axis = torch.arange(-half, half + 1, dtype=torch.float32, device=device)
        y, x = axis[:, None], axis[None, :]
        cos, sin = named["angle"].cos()[:, None, None], named["angle"].sin()[:, None, None]
        sx, sy = named["sigma"][:, 0, None, None], named["sigma"][:, 1, None, None]
        d = (((cos * x + sin * y) / sx) ** 2 + ((cos * y - sin * x) / sy) ** 2) ** named["beta"][:, None, None]
        kernel = torch.where(family == PLATEAU, 1 / (1 + d), torch.exp(-0.5 * d))
        if (self.family == SINC).any():
            w, r = named["cutoff"][:, None, None], (x * x + y * y).sqrt()[None]
            low = w * torch.special.bessel_j1(w * r) / (2 * math.pi * r)
            kernel = torch.where(family == SINC, torch.where(r == 0, w**2 / (4 * math.pi), low), kernel)
        kernel = kernel * ((y.abs() <= size // 2) & (x.abs() <= size // 2))
        return kernel / kernel.sum((1, 2), keepdim=True)


def draw_gaussians(rng: np.random.Generator, count: int, sigma: Range, *, probability: float, iso: float) -> Kernels:
    """Gaussian kernels with that probability of being there; sigma in pixels; `iso`: probability of equal axes."""
    sigmas = rng.uniform(*sigma, (count, 2))
    round_ = rng.random(count) < iso
    sigmas[round_, 1] = sigmas[round_, 0]
    angle = np.where(round_, 0, rng.uniform(0, np.pi, count))
    size = 2 * np.ceil(3 * sigmas.max(1)).astype(int) + 1
    size = np.where(rng.random(count) < probability, size, 1)
    return Kernels(np.zeros(count, int), size, sigmas, angle, np.ones(count), np.full(count, np.pi))


def draw_kernels(
    rng: np.random.Generator, count: int, sigma: Range, *, probability: float, generalised: Range, plateau: Range,
    sinc: float,
) -> Kernels:  # fmt: skip
    """Kernels of random family and size, there with `probability`; with probability `sinc` a low-pass instead.

    Half of the betas lie below 1 (heavier tails than a Gaussian's) where the range allows it, half above.
    """
    kind = rng.choice(len(PROBABILITIES), count, p=PROBABILITIES)
    sigmas = rng.uniform(*sigma, (count, 2))
    iso = kind % 2 == 0
    sigmas[iso, 1] = sigmas[iso, 0]
    below, share = rng.random(count) < 0.5, rng.random(count)

    def spread(low: float, high: float) -> np.ndarray:
        return np.where(below, low + (1 - low) * share, 1 + (high - 1) * share)

    beta = np.where(kind < 2, 1.0, np.where(kind < 4, spread(*generalised), spread(*plateau)))
    angle = np.where(iso, 0, rng.uniform(-np.pi, np.pi, count))
    low_pass = draw_sincs(rng, count, narrow=True)
    is_sinc = rng.random(count) < sinc
    family = np.where(is_sinc, SINC, np.where(kind < 4, GAUSSIAN, PLATEAU))
    size = np.where(rng.random(count) < probability, low_pass.size, 1)
    return Kernels(family, size, sigmas, angle, beta, low_pass.cutoff)


def draw_sincs(rng: np.random.Generator, count: int, *, probability: float = 1.0, narrow: bool = False) -> Kernels:
    """Low-passes with cutoffs from pi / 3 to pi; `narrow`: from pi / 5 where the kernel has 13 pixels or more."""
    size = rng.choice(SIZES, count)
    lowest = np.where((size >= 13) & narrow, np.pi / 5, np.pi / 3)
    cutoff = lowest + (np.pi - lowest) * rng.random(count)
    size = np.where(rng.random(count) < probability, size, 1)
    one = np.ones(count)
    return Kernels(np.full(count, SINC), size, np.stack([one, one], 1), 0 * one, one, cutoff)


def blur(images: Tensor, kernels: Tensor, sizes: np.ndarray | None = None) -> Tensor:
    """images [n, C, H, W] correlated with odd kernels [n, k, k], mirrored at borders; the shape stays.

    By FFT: the time hardly depends on the kernel, and images may be smaller than it. sizes [n, 2]: height and width of
    what is image in each sample, all by default; what lies beyond is undefined in the result.
    """
    height, width = images.shape[-2:]
    pad = kernels.shape[-1] // 2
    size = _fast_length(height + 2 * pad), _fast_length(width + 2 * pad)
    sizes = np.array([[height, width]]) if sizes is None else sizes
    sides = sizes[:1] if (sizes == sizes[:1]).all() else sizes
    rows, columns = (_mirror(sides[:, i], pad, size[i]) for i in (0, 1))
    padded = take(images, rows, columns)
    spectrum = torch.fft.rfft2(padded) * torch.fft.rfft2(kernels, s=size).conj()[:, None]
    return torch.fft.irfft2(spectrum, s=size)[..., :height, :width]


def take(images: Tensor, rows: np.ndarray, columns: np.ndarray) -> Tensor:
    """images[i, :, rows[i]][:, :, columns[i]] per sample; rows and columns [n or 1, length], 1: the same for all."""
    y, x = (torch.as_tensor(index, device=images.device) for index in (rows, columns))
    if len(rows) == 1:
        return images.index_select(-2, y[0]).index_select(-1, x[0])
    sample = torch.arange(len(images), device=images.device)[:, None, None, None]
    channel = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
    return images[sample, channel, y[:, None, :, None], x[:, None, None, :]]


def _mirror(sides: np.ndarray, pad: int, length: int) -> np.ndarray:
    """Indices [n, length] of sides that are mirrored `pad` pixels beyond their start, and on as often as it takes."""
    period = np.maximum(1, 2 * (sides[:, None] - 1))
    index = np.arange(-pad, length - pad)[None] % period
    return np.minimum(index, period - index)


@cache
def _fast_length(length: int) -> int:
    """The next even length with factors 2, 3 and 5 only: FFTs of others are several times slower."""
    while True:
        rest = length
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1 and length % 2 == 0:
            return length
        length += 1
