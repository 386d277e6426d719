"""Metrics that need no weights: fidelity as papers of the field report it, and a detector of grids."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ImageError
from ..images.resize import resize

#: Pixels that PSNR and SSIM leave out at each side.
BORDER = 4
_LUMA = (65.481 / 255, 128.553 / 255, 24.966 / 255)  # BT.601, studio range
_SSIM_WINDOW, _SSIM_SIGMA = 11, 1.5
_SSIM_C1, _SSIM_C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
_BLOCK = 64  # side of the blocks whose spectra are averaged: multiples of 1/8 fall on every 8th frequency
#: RMS in grey levels of the white noise that a grid is measured against at least.
_FLOOR = 1.0


def luma(image: Tensor) -> Tensor:
    """The Y channel (BT.601, 16 to 235 of 255) of RGB images [B, 3, H, W] in [0, 1], as [B, 1, H, W] in [0, 1]."""
    weights = torch.tensor(_LUMA, dtype=image.dtype, device=image.device).view(1, 3, 1, 1)
    return (image * weights).sum(1, keepdim=True) + 16 / 255


def psnr_y(image: Tensor, reference: Tensor) -> Tensor:
    """PSNR in dB on the Y channel without BORDER pixels at each side: [B]; infinite for equal images.

    image, reference: [B, 3, H, W] in [0, 1]. Raises ImageError if the sizes differ or leave nothing inside the border.
    """
    _check("PSNR", image, reference, 2 * BORDER + 1)
    return _psnr(_inside(luma(image) - luma(reference)))


def ssim_y(image: Tensor, reference: Tensor) -> Tensor:
    """SSIM on the Y channel without BORDER pixels at each side, as MATLAB's `ssim_index`: [B]; 1 for equal images.

    Wang et al. 2004: windows of 11 x 11, Gaussian with sigma 1.5, only where they lie inside the image, K = 0.01 and
    0.03 of 255; in float64. image, reference: [B, 3, H, W] in [0, 1]. Raises ImageError if the sizes differ or no
    window fits.
    """
    _check("SSIM", image, reference, 2 * BORDER + _SSIM_WINDOW)
    a, b = (_inside(255 * luma(x.double())) for x in (image, reference))
    offset = torch.arange(_SSIM_WINDOW, dtype=a.dtype, device=a.device) - _SSIM_WINDOW // 2
    kernel = torch.exp(-offset.square() / (2 * _SSIM_SIGMA**2))
    kernel = kernel / kernel.sum()

    def mean(x: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))

    mean_a, mean_b = mean(a), mean(b)
    variance_a, variance_b = mean(a * a) - mean_a.square(), mean(b * b) - mean_b.square()
    covariance = mean(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + _SSIM_C1) / (mean_a.square() + mean_b.square() + _SSIM_C1)
    structure = (2 * covariance + _SSIM_C2) / (variance_a + variance_b + _SSIM_C2)
    return (luminance * structure).mean(dim=(1, 2, 3))


def lr_psnr(image: Tensor, lr: Tensor) -> Tensor:
    """PSNR in dB of the result, reduced by MATLAB's bicubic, against the LR image it was made from: [B].

    Over all of R, G and B, so a shift of colour counts; no border is cut and nothing is rounded. image [B, 3, H, W]
    and lr [B, 3, h, w] in [0, 1]. Raises ImageError where the LR image is the larger one.
    """
    if image.shape[:2] != lr.shape[:2] or any(a < b for a, b in zip(image.shape[-2:], lr.shape[-2:])):
        raise ImageError(f"LR consistency: the result {_size(image)} must be larger than its LR {_size(lr)}")
    return _psnr(resize(image.double(), (lr.shape[-2], lr.shape[-1])) - lr)


def grid_power(image: Tensor) -> Tensor:
    """How much a regular grid of period 4 or 8 stands out: about 1 to 2 for photographs, above 3 for a grid: [B].

    The largest ratio, over the frequencies (k/8, l/8) cycles per pixel (which include k/4), of the power there to the
    mean power 2 and 3 bins to its sides along each axis where it is not 0. Power of Y, averaged over Hann-windowed
    blocks of 64 x 64 that overlap by half. The neighbours are raised by the power of white noise of one grey level,
    so that what rounding leaves in smooth pictures does not count. image: [B, 3, H, W] in [0, 1]. Raises ImageError
    below 64 x 64.
    """
    _check("grid power", image, image, _BLOCK)
    return grid_ratios(block_power(image.double())).amax(dim=(1, 2))


def block_power(image: Tensor) -> Tensor:
    """Power spectrum of Y in grey levels, mean of the windowed blocks of an image: [B, 3, H, W] -> [B, 64, 64]."""
    window = _window(image)
    blocks = (255 * luma(image))[:, 0].unfold(1, _BLOCK, _BLOCK // 2).unfold(2, _BLOCK, _BLOCK // 2)
    blocks = (blocks - blocks.mean(dim=(-2, -1), keepdim=True)) * window  # [B, rows, columns, 64, 64]
    return torch.fft.fft2(blocks).abs().square().mean(dim=(1, 2))


def grid_ratios(power: Tensor) -> Tensor:
    """Power at (k/8, l/8) cycles per pixel over that of the neighbours, 0 at k = l = 0: [B, 64, 64] -> [B, 8, 8]."""
    step = _BLOCK // 8
    beside = [_beside(power, dim)[:, ::step, ::step] for dim in (1, 2)]  # [B, 8, 8] each
    neighbours = (beside[0] + beside[1]) / 2
    neighbours[:, :, 0], neighbours[:, 0, :] = beside[0][:, :, 0], beside[1][:, 0, :]  # along the axis they lie on
    ratio = power[:, ::step, ::step] / (neighbours + _FLOOR**2 * _window(power).square().sum())
    keep = torch.ones_like(ratio)
    keep[:, 0, 0] = 0
    return ratio * keep


def _window(like: Tensor) -> Tensor:
    window = torch.hann_window(_BLOCK, dtype=like.dtype, device=like.device)
    return window[:, None] * window


def _beside(power: Tensor, dim: int) -> Tensor:
    """Mean power 2 and 3 bins to both sides; the nearest bin has a share of the peak itself (the Hann window's)."""
    return torch.stack([power.roll(shift, dim) for shift in (-3, -2, 2, 3)]).mean(dim=0)


def _psnr(difference: Tensor) -> Tensor:
    return -10 * torch.log10(difference.double().square().mean(dim=(1, 2, 3)))


def _inside(image: Tensor) -> Tensor:
    return image[..., BORDER:-BORDER, BORDER:-BORDER]


def _check(what: str, image: Tensor, reference: Tensor, smallest: int) -> None:
    if image.shape != reference.shape:
        raise ImageError(f"{what}: {_size(image)} against {_size(reference)} pixels; they must be of one size")
    if min(image.shape[-2:]) < smallest:
        raise ImageError(f"{what}: {_size(image)} pixels are too few, it needs {smallest} x {smallest}")


def _size(image: Tensor) -> str:
    return f"{image.shape[-1]} x {image.shape[-2]}"
