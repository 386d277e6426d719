"""Noise, JPEG and rounding: what cameras and files do to pixels."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .blur import Range

_LUMA = torch.tensor([0.299, 0.587, 0.114])[:, None, None]


@dataclass(frozen=True)
class Noise:
    """Gaussian noise of `strength` / 255, or `strength` times the shot noise; `grey`: the same in all channels."""

    kind: str
    strength: float
    grey: bool

    def __str__(self) -> str:
        return f"{'grey ' if self.grey else ''}{self.kind} {self.strength:.{1 if self.kind == 'gaussian' else 2}f}"


def draw_noise(rng: np.random.Generator, gaussian: float, sigma: Range, poisson: Range, grey: float) -> Noise:
    """Gaussian noise with probability `gaussian`, else Poisson, in their ranges; grey with probability `grey`."""
    normal = rng.random() < gaussian
    strength = float(rng.uniform(*(sigma if normal else poisson)))
    return Noise("gaussian" if normal else "poisson", strength, bool(rng.random() < grey))


def noisy(image: Tensor, noise: Noise, rng: np.random.Generator) -> Tensor:
    """image [3, H, W] in [0, 1] with noise from the generator, clamped."""
    shape = (1 if noise.grey else 3, *image.shape[-2:])
    if noise.kind == "gaussian":
        added = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)) * (noise.strength / 255)
    else:
        levels = (image * 255).round().clamp(0, 255)
        # photons of the brightest pixel: as many as the image has grey levels, up to a power of two
        photons = 2 ** int(np.ceil(np.log2(max(1, len(torch.unique(levels))))))
        source = levels / 255
        source = (source * _LUMA).sum(0, keepdim=True) if noise.grey else source
        counts = torch.from_numpy(rng.poisson((source * photons).double().numpy()))
        added = (counts.float() / photons - source) * noise.strength
    return (image + added).clamp(0, 1)


def jpeg(image: Tensor, quality: int) -> Tensor:
    """image [3, H, W], clamped to [0, 1], as a JPEG of that quality (chroma 4:2:0) gives it back."""
    pixels = (image.permute(1, 2, 0) * 255).round().clamp(0, 255).to(torch.uint8).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    with Image.open(buffer) as decoded:
        return torch.tensor(np.asarray(decoded)).permute(2, 0, 1).float() / 255


def quantise(image: Tensor) -> Tensor:
    """The nearest 8-bit image, in [-1, 1] like its input: what a file would hold."""
    return ((image + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1
