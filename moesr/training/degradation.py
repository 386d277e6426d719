"""How an LR image comes from an HR one. Numbers are drawn first, pixels follow: the same generator, the same LR."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from ..errors import SettingError
from ..images.resize import resize
from . import blur, second_order
from .blur import Blur
from .defects import Noise, draw_noise, jpeg, noisy, quantise
from .second_order import MODES, BlindNumbers

#: A degradation: (HR [3, H, W] in [-1, 1], random generator) -> LR [3, H / scale, W / scale] in [-1, 1].
Degrade = Callable[[Tensor, np.random.Generator], Tensor]

NAMES = "bicubic, mild, mixed or mixed:P (bicubic with probability P, else mild), blind, blind:usm"


def degradation(name: str, scale: int) -> Degradation:
    """The degradation of that name, as a training config or `--degradation` says it; its LR always has 8 bits.

    `bicubic`: MATLAB bicubic / scale, as benchmarks make their LR. `mild`: an ordinary photograph, see Mild. `mixed:P`:
    bicubic with probability P (0.5 by default), else mild. `blind`: Real-ESRGAN's second order, see Blind; `blind:usm`
    sharpens the HR first, which then is the target too. Raises SettingError for any other name.
    """
    plain = {"bicubic": Bicubic, "mild": Mild, "mixed": Mixed, "blind": Blind}
    if name in plain:
        return plain[name](scale)
    if name == "blind:usm":
        return Blind(scale, usm=True)
    if name.startswith("mixed:"):
        try:
            probability = float(name.removeprefix("mixed:"))
        except ValueError:
            probability = -1.0
        if 0 <= probability <= 1:
            return Mixed(scale, probability)
        raise SettingError(f"degradation {name!r}: write the probability of bicubic as a number from 0 to 1, mixed:0.6")
    raise SettingError(f"degradation {name!r} is unknown: choose {NAMES}")


@dataclass(frozen=True)
class Degradation(ABC):
    """Makes the LR of an HR image [3, H, W] in [-1, 1], sides at least 32 and multiples of `scale`.

    `draw` takes all numbers from the generator, `apply` does the pixels, with only noise from the generator.
    """

    scale: int

    def __call__(self, hr: Tensor, rng: np.random.Generator) -> Tensor:
        return self.apply(hr, self.draw(rng), rng)

    @abstractmethod
    def draw(self, rng: np.random.Generator) -> Any:
        """The numbers of one image. Their `str` says in a few words what happens to it."""

    @abstractmethod
    def apply(self, hr: Tensor, numbers: Any, rng: np.random.Generator) -> Tensor:
        """The LR [3, H / scale, W / scale] in [-1, 1], 8-bit values."""

    def target(self, hr: Tensor) -> Tensor:
        """What a network should make of the LR: the HR itself, unless the degradation sharpens it."""
        return hr

    def size(self, hr: Tensor) -> tuple[int, int]:
        """Height and width of the LR."""
        return hr.shape[-2] // self.scale, hr.shape[-1] // self.scale


class Bicubic(Degradation):
    """MATLAB bicubic. Draws nothing."""

    def draw(self, rng: np.random.Generator) -> str:
        return "bicubic"

    def apply(self, hr: Tensor, numbers: str, rng: np.random.Generator) -> Tensor:
        return quantise(resize(hr[None], self.size(hr))[0])


@dataclass(frozen=True)
class MildNumbers:
    """What `mild` does to one image; None: not at all."""

    blur: Blur | None
    mode: str
    noise: Noise | None
    quality: int | None

    def __str__(self) -> str:
        quality = f"JPEG {self.quality}" if self.quality else None
        return ", ".join(str(part) for part in (self.blur, self.mode, self.noise, quality) if part)


class Mild(Degradation):
    """An ordinary photograph from a phone or the web: each of slight blur, slight noise and JPEG in half of them.

    Gaussian blur of 0.1 to 0.6 LR pixels, iso or aniso; MATLAB bicubic, antialiased bilinear, or area; Gaussian noise
    up to 8 / 255 or shot noise, grey or in colour; JPEG quality 50 to 95, once, on the LR.
    """

    def draw(self, rng: np.random.Generator) -> MildNumbers:
        kernel, noise, quality = None, None, None
        if rng.random() < 0.5:
            x, y = (float(s) * self.scale for s in rng.uniform(0.1, 0.6, 2))
            iso, angle = rng.random() < 0.5, float(rng.uniform(0, np.pi))
            sigma = (x, x) if iso else (x, y)
            size = 2 * int(np.ceil(3 * max(sigma))) + 1
            kernel = Blur("iso" if iso else "aniso", size, sigma, 0.0 if iso else angle)
        mode = str(rng.choice(MODES, p=(0.25, 0.25, 0.5)))
        if rng.random() < 0.5:
            noise = draw_noise(rng, 0.5, (1, 8), (0.1, 0.6), 0.5)
        if rng.random() < 0.5:
            quality = int(rng.integers(50, 96))
        return MildNumbers(kernel, mode, noise, quality)

    def apply(self, hr: Tensor, numbers: MildNumbers, rng: np.random.Generator) -> Tensor:
        image = (hr + 1) / 2
        if numbers.blur:
            image = blur.filtered(image, numbers.blur.kernel())
        size = self.size(hr)
        if numbers.mode == "bicubic":
            image = resize(image[None], size)[0]
        else:  # an area is its own antialiasing
            options = {"antialias": True} if numbers.mode == "bilinear" else {}
            image = F.interpolate(image[None], size=size, mode=numbers.mode, **options)[0]
        if numbers.noise:
            image = noisy(image, numbers.noise, rng)
        if numbers.quality:
            image = jpeg(image, numbers.quality)
        return quantise(image * 2 - 1)


@dataclass(frozen=True)
class Choice:
    """Which part of a mixture makes this image, and its numbers."""

    part: Degradation
    numbers: Any

    def __str__(self) -> str:
        return str(self.numbers)


@dataclass(frozen=True)
class Mixed(Degradation):
    """Bicubic with that probability, else mild."""

    probability: float = 0.5

    def draw(self, rng: np.random.Generator) -> Choice:
        part = Bicubic(self.scale) if rng.random() < self.probability else Mild(self.scale)
        return Choice(part, part.draw(rng))

    def apply(self, hr: Tensor, numbers: Choice, rng: np.random.Generator) -> Tensor:
        return numbers.part.apply(hr, numbers.numbers, rng)


@dataclass(frozen=True)
class Blind(Degradation):
    """Real-ESRGAN's second-order degradation with its published ranges (arXiv 2107.10833, sections 3 and 4.1).

    Twice: blur, resize, noise, JPEG. Then the resize to LR size and a sinc filter, before or after the second JPEG.
    """

    usm: bool = False

    def target(self, hr: Tensor) -> Tensor:
        return blur.sharpened(hr) if self.usm else hr

    def draw(self, rng: np.random.Generator) -> BlindNumbers:
        return second_order.draw(rng)

    def apply(self, hr: Tensor, numbers: BlindNumbers, rng: np.random.Generator) -> Tensor:
        image = second_order.apply((self.target(hr) + 1) / 2, numbers, self.size(hr), rng)
        return quantise(image * 2 - 1)
