"""How LR images come from HR ones, in batches on any device. Numbers are drawn first (NumPy), pixels follow (torch)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import SettingError
from .kernels import Kernels, Range, Rows, blur, draw_gaussians, draw_kernels, draw_sincs
from .noise_and_jpeg import Noise, add_noise, compress_jpeg, draw_noise, quantise
from .resample import AREA, BICUBIC, SMOOTH_BICUBIC, SMOOTH_BILINEAR, resample
from .restore_value import Survival

NAMES = "bicubic, mild, web, blind, or a mixture like bicubic=1,mild=1,blind=2"


def degradation(name: str, scale: int) -> Degradation:
    """The degradation of that name, in a training config or after `--degradation`. Its LR always has 8 bits.

    `bicubic`: MATLAB bicubic, as benchmarks make their LR. `mild`, `web`, `blind`: see Mild, Web, Blind.
    NAME=WEIGHT,NAME=WEIGHT...: each image by one of these, in proportion to the weights. Raises SettingError for any
    other name.
    """
    plain = {"bicubic": Bicubic, "mild": Mild, "web": Web, "blind": Blind}
    if name in plain:
        return plain[name](scale)
    if "=" in name:
        items = [item.partition("=") for item in name.split(",")]
        weights = [_number(weight) for _, _, weight in items]
        if min(weights) < 0 or not 0 < sum(weights) < np.inf:
            raise SettingError(f"degradation {name!r}: weights must be positive; write them like bicubic=1,blind=2")
        parts = tuple(degradation(part.strip(), scale) for part, _, _ in items)
        return Mixture(scale, parts, tuple(weight / sum(weights) for weight in weights))
    raise SettingError(f"degradation {name!r} is unknown: choose {NAMES}")


@dataclass(frozen=True)
class Degradation(ABC):
    """Makes LR images of HR images [n, 3, H, W] in [0, 1], on their device; H and W are multiples of `scale`, from 32.

    First `draw`, then `apply`. What `draw` gives depends on the generator's state alone, not on the device. Noise comes
    from a torch generator of the device. There are no gradients.
    """

    scale: int

    @abstractmethod
    def draw(self, rng: np.random.Generator, count: int) -> Any:
        """The numbers of `count` images."""

    @abstractmethod
    def apply(self, hr: Tensor, numbers: Any, generator: torch.Generator) -> Tensor:
        """The LR images [n, 3, H / scale, W / scale] in [0, 1], 8-bit values."""

    @abstractmethod
    def restore(self, numbers: Any) -> np.ndarray:
        """How degraded each LR image is, float32 [n] in [0, 1]; 0 is a reduction alone. See restore_value.py."""

    def size(self, hr: Tensor) -> tuple[int, int]:
        """Height and width of the LR."""
        return hr.shape[-2] // self.scale, hr.shape[-1] // self.scale


@dataclass
class Stage(Rows):
    """Blur, resize, noise and JPEG, in this order."""

    kernels: Kernels
    factor: np.ndarray  # of the resize
    mode: np.ndarray  # of the resize, see resample.py
    noise: Noise
    quality: np.ndarray  # of the JPEG, 1 to 100; 0: none
    full_chroma: np.ndarray  # True: 4:4:4, else 4:2:0

    def apply(self, images: Tensor, sizes: np.ndarray, targets: np.ndarray, generator: torch.Generator) -> Tensor:
        """All but the JPEG. sizes, targets [n, 2]: height and width of what is image before and after."""
        images = _blur(images, self.kernels, sizes)
        images = resample(images, sizes, targets, self.mode).clamp_(0, 1)
        return add_noise(images, self.noise, generator)

    def compress(self, images: Tensor, sizes: np.ndarray) -> Tensor:
        """The JPEG."""
        return compress_jpeg(images, self.quality, self.full_chroma, sizes)


class Once(Degradation):
    """One stage: the resize is the reduction to LR size."""

    def apply(self, hr: Tensor, numbers: Stage, generator: torch.Generator) -> Tensor:
        sizes, targets = _sizes(hr.shape[-2:], len(hr)), _sizes(self.size(hr), len(hr))
        return quantise(numbers.compress(numbers.apply(hr, sizes, targets, generator), targets))

    def restore(self, numbers: Stage) -> np.ndarray:
        left = Survival(len(numbers.quality))
        left.blur(numbers.kernels, self.scale)
        left.add_noise(numbers.noise, 1)
        left.compress(numbers.quality, 1)
        return left.restore()


class Bicubic(Once):
    """MATLAB bicubic and nothing else."""

    def draw(self, rng: np.random.Generator, count: int) -> Stage:
        kernels = draw_gaussians(rng, count, (1, 1), probability=0, iso=1)
        none = np.zeros(count)
        noise, mode = Noise(none, none, none > 0), np.full(count, SMOOTH_BICUBIC)
        return Stage(kernels, none + 1, mode, noise, none.astype(int), none > 0)


class Mild(Once):
    """An ordinary photograph from a phone or a camera: slight blur, slight noise and JPEG, each in half of them.

    Gaussian blur of 0.1 to 0.6 LR pixels, iso or aniso; MATLAB bicubic, antialiased bilinear, or area; Gaussian noise
    up to 8 / 255 or shot noise, grey or in colour; JPEG quality 50 to 95, once, on the LR, a quarter of them 4:4:4.
    """

    def draw(self, rng: np.random.Generator, count: int) -> Stage:
        sigma = 0.1 * self.scale, 0.6 * self.scale
        kernels = draw_gaussians(rng, count, sigma, probability=0.5, iso=0.5)
        mode = rng.choice((AREA, SMOOTH_BILINEAR, SMOOTH_BICUBIC), count, p=(0.25, 0.25, 0.5))
        noise = draw_noise(rng, count, (1, 8), (0.1, 0.6), gaussian=0.5, grey=0.5, probability=0.5)
        quality = rng.integers(50, 96, count) * (rng.random(count) < 0.5)
        return Stage(kernels, np.ones(count), mode, noise, quality, rng.random(count) < 0.25)


class Web(Once):
    """The set `degraded` of validation: blur, noise and JPEG in every image, evenly in fixed ranges.

    Gaussian blur of 0.6 to 1.5 HR pixels (x4; in proportion for other scales), MATLAB bicubic, Gaussian noise of 2 to
    12 / 255 in colour, JPEG quality 40 to 90 in 4:2:0.
    """

    def draw(self, rng: np.random.Generator, count: int) -> Stage:
        sigma = 0.15 * self.scale, 0.375 * self.scale
        kernels = draw_gaussians(rng, count, sigma, probability=1, iso=1)
        noise = draw_noise(rng, count, (2, 12), (0, 0), gaussian=1, grey=0)
        none = np.zeros(count)
        return Stage(kernels, none + 1, np.full(count, SMOOTH_BICUBIC), noise, rng.integers(40, 91, count), none > 0)


@dataclass(frozen=True)
class Order:
    """The published ranges of one of the two orders of `blind`."""

    blur: float  # probability
    sigma: Range  # pixels
    resize: tuple[float, float, float]  # probabilities of up, down, keep
    factor: Range  # of the resize
    noise: Range  # standard deviation in grey levels
    poisson: Range  # share of the shot noise

    def draw(self, rng: np.random.Generator, count: int) -> Stage:
        """The numbers of `count` images."""
        kernels = draw_kernels(
            rng, count, self.sigma, probability=self.blur, generalised=(0.5, 4), plateau=(1, 2), sinc=0.1
        )
        direction, share = rng.choice(3, count, p=self.resize), rng.random(count)
        low, high = self.factor
        factor = np.choose(direction, (1 + (high - 1) * share, low + (1 - low) * share, np.ones(count)))
        mode = rng.integers(AREA, BICUBIC + 1, count)
        noise = draw_noise(rng, count, self.noise, self.poisson, gaussian=0.5, grey=0.4)
        return Stage(kernels, factor, mode, noise, rng.integers(30, 96, count), np.zeros(count, bool))


FIRST = Order(1.0, (0.2, 3), (0.2, 0.7, 0.1), (0.15, 1.5), noise=(1, 30), poisson=(0.05, 3))
SECOND = Order(0.8, (0.2, 1.5), (0.3, 0.4, 0.3), (0.3, 1.2), noise=(1, 25), poisson=(0.05, 2.5))


@dataclass
class BlindNumbers(Rows):
    """What `blind` does."""

    first: Stage  # factor: of the HR size
    second: Stage  # factor: of the LR size
    mode: np.ndarray  # of the final resize
    sincs: Kernels  # after the final resize
    jpeg_last: np.ndarray  # True: the second JPEG comes after the final resize and sinc, not before


@dataclass(frozen=True)
class Blind(Degradation):
    """Real-ESRGAN's second-order degradation with its published ranges (arXiv 2107.10833, sections 3 and 4.1).

    Twice: blur, resize, noise, JPEG. Then the resize to LR size and a sinc filter, before or after the second JPEG.
    """

    def draw(self, rng: np.random.Generator, count: int) -> BlindNumbers:
        first, second = FIRST.draw(rng, count), SECOND.draw(rng, count)
        sincs = draw_sincs(rng, count, probability=0.8)
        return BlindNumbers(first, second, rng.integers(AREA, BICUBIC + 1, count), sincs, rng.random(count) < 0.5)

    def apply(self, hr: Tensor, numbers: BlindNumbers, generator: torch.Generator) -> Tensor:
        # Samples differ in size. A GPU does all at once, each as large as the largest; a CPU wastes nothing on edges.
        each = 1 if hr.device.type == "cpu" else len(hr)
        parts = [slice(k, k + each) for k in range(0, len(hr), each)]
        return torch.cat([self._apply(hr[p], numbers[p], generator) for p in parts])

    def _apply(self, hr: Tensor, numbers: BlindNumbers, generator: torch.Generator) -> Tensor:
        first, second = numbers.first, numbers.second
        whole, small = _sizes(hr.shape[-2:], len(hr)), _sizes(self.size(hr), len(hr))
        sizes = np.maximum(1, (whole * first.factor[:, None]).astype(int))
        images = first.compress(first.apply(hr, whole, sizes, generator), sizes)
        before, sizes = sizes, np.maximum(1, (small * second.factor[:, None]).astype(int))
        images = second.apply(images, before, sizes, generator)
        last, full = numbers.jpeg_last, second.full_chroma
        images = compress_jpeg(images, second.quality * ~last, full, sizes)
        images = resample(images, sizes, small, numbers.mode).clamp_(0, 1)
        images = _blur(images, numbers.sincs, small)
        return quantise(compress_jpeg(images, second.quality * last, full, small))

    def restore(self, numbers: BlindNumbers) -> np.ndarray:
        left = Survival(len(numbers.mode))
        first, second, last = numbers.first, numbers.second, numbers.jpeg_last
        left.blur(first.kernels, self.scale)
        left.reduce(density := self.scale * first.factor)
        left.add_noise(first.noise, density)
        left.compress(first.quality, density)
        left.blur(second.kernels, density)
        left.reduce(second.factor)
        left.add_noise(second.noise, second.factor)
        left.compress(second.quality * ~last, second.factor)
        left.blur(numbers.sincs, 1)
        left.compress(second.quality * last, 1)
        return left.restore()


@dataclass
class Choice:
    """The images of a batch that one part of a mixture makes."""

    part: Degradation
    rows: np.ndarray  # of the batch
    numbers: Any  # of `part`, one row per image of `rows`


@dataclass(frozen=True)
class Mixture(Degradation):
    """Each image by one of the parts, with the probability of its share."""

    parts: tuple[Degradation, ...]
    shares: tuple[float, ...]

    def draw(self, rng: np.random.Generator, count: int) -> list[Choice]:
        which = rng.choice(len(self.parts), count, p=self.shares)
        rows = [np.flatnonzero(which == i) for i in range(len(self.parts))]
        return [Choice(part, at, part.draw(rng, len(at))) for part, at in zip(self.parts, rows) if len(at)]

    def apply(self, hr: Tensor, numbers: list[Choice], generator: torch.Generator) -> Tensor:
        parts = [c.part.apply(hr[c.rows], c.numbers, generator) for c in numbers]
        return torch.cat(parts)[self._order(numbers)]

    def restore(self, numbers: list[Choice]) -> np.ndarray:
        return np.concatenate([c.part.restore(c.numbers) for c in numbers])[self._order(numbers)]

    @staticmethod
    def _order(numbers: list[Choice]) -> np.ndarray:
        return np.argsort(np.concatenate([choice.rows for choice in numbers]))


def _blur(images: Tensor, kernels: Kernels, sizes: np.ndarray) -> Tensor:
    if (kernels.size == 1).all():
        return images
    return blur(images, kernels.tensor().to(images.device), sizes)


def _sizes(size: tuple[int, ...], count: int) -> np.ndarray:
    return np.tile(np.array(size, int), (count, 1))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return -1.0
