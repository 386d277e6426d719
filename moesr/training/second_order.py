"""The second-order degradation of Real-ESRGAN with its published ranges (arXiv 2107.10833, sections 3 and 4.1)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from . import blur
from .blur import Blur, Range
from .defects import Noise, draw_noise, jpeg, noisy

MODES = ("area", "bilinear", "bicubic")


@dataclass(frozen=True)
class Order:
    """The published ranges of one of the two orders of `blind`."""

    blur: float  # probability
    sigma: Range
    resize: tuple[float, float, float]  # probabilities of up, down, keep
    factor: Range
    noise: Range
    poisson: Range
    generalised: Range = (0.5, 4)
    plateau: Range = (1, 2)
    sinc: float = 0.1
    gaussian: float = 0.5
    grey: float = 0.4
    quality: tuple[int, int] = (30, 95)


FIRST = Order(1.0, (0.2, 3), (0.2, 0.7, 0.1), (0.15, 1.5), noise=(1, 30), poisson=(0.05, 3))
SECOND = Order(0.8, (0.2, 1.5), (0.3, 0.4, 0.3), (0.3, 1.2), noise=(1, 25), poisson=(0.05, 2.5))
FINAL_SINC = 0.8


@dataclass(frozen=True)
class OrderNumbers:
    """What one order does: blur, resize by a factor, noise, JPEG."""

    blur: Blur | None
    factor: float
    mode: str
    noise: Noise
    quality: int

    def __str__(self) -> str:
        parts = [*([str(self.blur)] if self.blur else []), f"{self.mode} x{self.factor:.2f}", str(self.noise)]
        return ", ".join([*parts, f"JPEG {self.quality}"])


@dataclass(frozen=True)
class BlindNumbers:
    """What `blind` does to one image. jpeg_last: the second JPEG comes after the final resize and sinc, not before."""

    first: OrderNumbers
    second: OrderNumbers
    sinc: Blur | None
    mode: str
    jpeg_last: bool

    def __str__(self) -> str:
        return f"{self.first}; {self.second}" + (f"; {self.sinc}" if self.sinc else "")


def draw(rng: np.random.Generator) -> BlindNumbers:
    """The numbers of one image."""
    first, second = _draw_order(rng, FIRST), _draw_order(rng, SECOND)
    sinc = blur.draw_sinc(rng) if rng.random() < FINAL_SINC else None
    return BlindNumbers(first, second, sinc, str(rng.choice(MODES)), bool(rng.random() < 0.5))


def apply(image: Tensor, numbers: BlindNumbers, size: tuple[int, int], rng: np.random.Generator) -> Tensor:
    """image [3, H, W] in [0, 1] degraded to `size` (height, width), about [0, 1]; the generator gives the noise.

    The factors of the first order are of the image's size, those of the second of `size`.
    """
    first, second = numbers.first, numbers.second
    image = jpeg(_order(image, first, (image.shape[-2], image.shape[-1]), rng), first.quality)
    image = _order(image, second, size, rng)
    if not numbers.jpeg_last:
        image = jpeg(image, second.quality)
    image = _resized(image, size, numbers.mode)
    if numbers.sinc:
        image = blur.filtered(image, numbers.sinc.kernel())
    return jpeg(image, second.quality) if numbers.jpeg_last else image


def _draw_order(rng: np.random.Generator, order: Order) -> OrderNumbers:
    kernel = None
    if rng.random() < order.blur:
        kernel = blur.draw(rng, order.sigma, order.generalised, order.plateau, order.sinc)
    low, high = order.factor
    direction = int(rng.choice(3, p=order.resize))
    factor = (float(rng.uniform(1, high)), float(rng.uniform(low, 1)), 1.0)[direction]
    mode = str(rng.choice(MODES))
    noise = draw_noise(rng, order.gaussian, order.noise, order.poisson, order.grey)
    return OrderNumbers(kernel, factor, mode, noise, int(rng.integers(order.quality[0], order.quality[1] + 1)))


def _order(image: Tensor, numbers: OrderNumbers, size: tuple[int, int], rng: np.random.Generator) -> Tensor:
    """Blur, resize to factor x size, noise."""
    if numbers.blur:
        image = blur.filtered(image, numbers.blur.kernel())
    height, width = (max(1, int(side * numbers.factor)) for side in size)
    return noisy(_resized(image, (height, width), numbers.mode), numbers.noise, rng)


def _resized(image: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Without antialiasing, as published: aliasing is one of the defects to undo."""
    options = {} if mode == "area" else {"align_corners": False}
    return F.interpolate(image[None], size=size, mode=mode, **options)[0].clamp(0, 1)
