"""How an LR image comes from an HR one."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from ..errors import SettingError
from ..images.resize import resize
from .data import Degrade


def degradation(name: str, scale: int) -> Degrade:
    """The degradation of that name. `bicubic`: MATLAB bicubic / scale, rounded to 8 bit, as benchmarks make their LR.

    Raises SettingError for an unknown name.
    """
    if name != "bicubic":
        raise SettingError(f"degradation {name!r} is unknown: choose bicubic")

    def bicubic(hr: Tensor, rng: np.random.Generator) -> Tensor:
        lr = resize(hr[None], (hr.shape[-2] // scale, hr.shape[-1] // scale))[0]
        return quantise(lr)

    return bicubic


def quantise(image: Tensor) -> Tensor:
    """The nearest 8-bit image, in [-1, 1] like its input: what a file would hold."""
    return ((image + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1
