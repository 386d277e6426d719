"""How degraded an LR image is, as one number: what the model's setting `restore` means.

A photograph has a spectrum of about 1 / f^2. For each of the 63 DCT coefficients of an LR block beside its mean, we
compute the variances of signal and noise after every operation: blurs multiply both by their squared gain, noise and
JPEG steps add to the noise. signal / (signal + noise) is the share of the coefficient that the best linear filter
(Wiener's) could restore. `restore` is sqrt(1 - the mean share), so that it grows evenly with the strength of noise. It
depends on the operations, not on the picture, and grows with every further defect: 0 for a bicubic reduction alone,
about 0.3 for noise of 6 levels, and up to 1 for `blind`.
"""

from __future__ import annotations

import numpy as np

from .kernels import Kernels
from .noise_and_jpeg import Noise, quantisation_steps

#: Variance of the signal at 1 cycle per pixel, in squared grey levels: 1 / f^2 with a contrast of 55 levels at 256 px.
_POWER = 100.0
#: Variance of rounding to 8 bits.
_ROUNDING = 1 / 12
_INDEX = np.arange(8)
#: Frequency of each coefficient in cycles per LR pixel, along one axis.
_AXIS = _INDEX / 16


class Survival:
    """Signal and noise of coefficients [n, 8, 8] of LR images. density: pixels of a stage per LR pixel, [n] or one."""

    def __init__(self, count: int) -> None:
        square = _AXIS[:, None] ** 2 + _AXIS[None] ** 2
        square[0, 0] = 1
        self.signal = np.tile(_POWER / square, (count, 1, 1))
        self.noise = np.zeros_like(self.signal)
        self.clean = self._shares()

    def blur(self, kernels: Kernels, density: np.ndarray | float) -> None:
        """Weaken signal and noise as a blur does."""
        if (kernels.size == 1).all():
            return
        kernel = kernels.tensor().numpy().astype(float)
        half = kernel.shape[-1] // 2
        density = np.broadcast_to(density, len(kernels))
        angle = 2 * np.pi * _AXIS[None, :, None] / density[:, None, None] * np.arange(-half, half + 1)
        cos, sin = np.cos(angle), np.sin(angle)  # [n, 8, k]
        gain = cos @ kernel @ cos.transpose(0, 2, 1) - sin @ kernel @ sin.transpose(0, 2, 1)
        self.signal = self.signal * gain**2
        self.noise = self.noise * gain**2

    def reduce(self, density: np.ndarray) -> None:
        """Remove the frequencies that a resize to fewer pixels than the LR cannot hold."""
        fits = _AXIS[None] <= density[:, None] / 2
        fits = fits[:, :, None] & fits[:, None]
        self.signal = self.signal * fits
        self.noise = self.noise * fits

    def add_noise(self, noise: Noise, density: np.ndarray | float) -> None:
        """Add Gaussian noise, or shot noise at half of white with 256 photons. More pixels average more of it."""
        variance = noise.gaussian**2 + (255 * noise.poisson) ** 2 * 0.5 / 256
        self.noise = self.noise + (variance / np.maximum(density, 1) ** 2)[:, None, None]

    def compress(self, quality: np.ndarray, density: np.ndarray | float) -> None:
        """Add the noise of a JPEG's steps, step^2 / 12."""
        density = np.broadcast_to(density, len(quality))
        steps = quantisation_steps(np.maximum(quality, 1))[:, 0].astype(float)
        index = np.clip(np.rint(_INDEX[None] / density[:, None]), 0, 7).astype(int)
        row = np.arange(len(quality))[:, None, None]
        variance = steps[row, index[:, :, None], index[:, None, :]] ** 2 / 12
        there = (quality > 0) / np.maximum(density, 1) ** 2
        self.noise = self.noise + variance * there[:, None, None]

    def restore(self) -> np.ndarray:
        """How degraded the images are, float32 [n] in [0, 1]."""
        share = (self._shares() / self.clean).reshape(len(self.signal), -1)[:, 1:].mean(1)
        return np.sqrt(np.clip(1 - share, 0, 1)).astype(np.float32)

    def _shares(self) -> np.ndarray:
        return self.signal / (self.signal + self.noise + _ROUNDING)
