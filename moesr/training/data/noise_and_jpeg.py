"""Noise, JPEG and rounding for whole batches: what cameras and files do to pixels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .kernels import Range, Rows, take
from .resample import ceil_to

#: ITU-T T.81, tables K.1 and K.2: steps of luminance and chrominance at quality 50, by rows.
_LUMINANCE = """16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99"""
_CHROMINANCE = """17 18 24 47 99 99 99 99 18 21 26 66 99 99 99 99 24 26 56 99 99 99 99 99 47 66 99 99 99 99 99 99
99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99"""
_STEPS = np.array([[int(n) for n in text.split()] for text in (_LUMINANCE, _CHROMINANCE)]).reshape(2, 8, 8)
_LUMA = (0.299, 0.587, 0.114)


@dataclass
class Noise(Rows):
    """One kind of noise per image."""

    gaussian: np.ndarray  # standard deviation in grey levels of 255; 0: none
    poisson: np.ndarray  # share of the shot noise; 0: none
    grey: np.ndarray  # True: the same in all channels


def draw_noise(
    rng: np.random.Generator, count: int, sigma: Range, poisson: Range, *, gaussian: float, grey: float,
    probability: float = 1.0,
) -> Noise:  # fmt: skip
    """Noise with that probability: Gaussian with probability `gaussian`, else Poisson; grey with probability `grey`."""
    there, normal = rng.random(count) < probability, rng.random(count) < gaussian
    strengths = rng.uniform(*sigma, count), rng.uniform(*poisson, count)
    return Noise(strengths[0] * (there & normal), strengths[1] * (there & ~normal), rng.random(count) < grey)


def add_noise(images: Tensor, noise: Noise, generator: torch.Generator) -> Tensor:
    """images [n, 3, H, W] in [0, 1] with noise from the generator, which must be on their device; clamped.

    Poisson noise counts as many photons in the brightest pixel as the image has grey levels, up to a power of two.
    """
    result = images.clone()
    for grey in (False, True):
        rows = np.flatnonzero((noise.gaussian > 0) & (noise.grey == grey))
        if len(rows):
            shape = (len(rows), 1 if grey else 3, *images.shape[-2:])
            drawn = torch.randn(shape, generator=generator, device=images.device)
            at = torch.as_tensor(rows, device=images.device)
            result[at] = images[at] + drawn * _column(noise.gaussian[rows] / 255, images)
        rows = np.flatnonzero((noise.poisson > 0) & (noise.grey == grey))
        if len(rows):
            at = torch.as_tensor(rows, device=images.device)
            part = images[at]
            levels = (part * 255).round().clamp(0, 255)
            found = torch.zeros(len(rows), 256, device=images.device)
            found.scatter_(1, levels.flatten(1).long(), 1.0)
            photons = (2 ** found.sum(1).log2().ceil())[:, None, None, None]
            source = levels / 255
            if grey:
                luma = torch.tensor(_LUMA, device=source.device)[:, None, None]
                source = (source * luma).sum(1, keepdim=True)
            counts = torch.poisson(source * photons, generator=generator)
            result[at] = part + (counts / photons - source) * _column(noise.poisson[rows], images)
    return result.clamp_(0, 1)


def compress_jpeg(images: Tensor, quality: np.ndarray, full: np.ndarray, sizes: np.ndarray) -> Tensor:
    """images [n, 3, H, W], clamped to [0, 1], as libjpeg writes and reads them at that quality (1 to 100).

    quality 0 leaves a sample as it is. full: chroma 4:4:4, else 4:2:0. sizes [n, 2]: height and width of what is image
    in each sample; what lies beyond is undefined in the result.
    """
    result = images
    for chroma in (False, True):
        rows = np.flatnonzero((quality > 0) & (full == chroma))
        if not len(rows):
            continue
        if len(rows) == len(images):
            return _jpeg(images, quality, chroma, sizes)
        result = result.clone() if result is images else result
        at = torch.as_tensor(rows, device=images.device)
        result[at] = _jpeg(images[at], quality[rows], chroma, sizes[rows])
    return result


def quantisation_steps(quality: np.ndarray) -> np.ndarray:
    """Steps [n, 2, 8, 8] of luminance and chrominance, as libjpeg scales them."""
    q = np.asarray(quality)[:, None, None, None].astype(int)
    factor = np.where(q < 50, 5000 // np.maximum(q, 1), 200 - 2 * q)
    return ((_STEPS * factor + 50) // 100).clip(1, 255)


def quantise(images: Tensor) -> Tensor:
    """The nearest 8-bit values of images in [0, 1]: what a file would hold."""
    return (images * 255).round().clamp(0, 255) / 255


@cache
def dct_matrix() -> np.ndarray:
    """The orthonormal DCT-II of 8 samples: [frequency, sample]."""
    k = np.arange(8)
    matrix = np.cos((2 * k[None] + 1) * k[:, None] * np.pi / 16) / 2
    matrix[0] /= np.sqrt(2)
    return matrix.astype(np.float32)


def _jpeg(images: Tensor, quality: np.ndarray, full: bool, sizes: np.ndarray) -> Tensor:
    height, width = images.shape[-2:]
    unit = 8 if full else 16
    sides = sizes[:1] if (sizes == (height, width)).all() else sizes
    rows, columns = (
        np.minimum(np.arange(ceil_to(n, unit))[None], sides[:, i, None] - 1) for i, n in enumerate((height, width))
    )
    whole = len(sides) == 1 and height % unit == 0 and width % unit == 0
    rgb = (images if whole else take(images, rows, columns)).mul(255).round_().clamp_(0, 255)
    r, g, b = rgb.unbind(1)
    y = 0.299 * r + 0.587 * g + 0.114 * b
    chroma = torch.stack([(b - y) / 1.772, (r - y) / 1.402], 1).round_()  # [n, 2, H, W], without its 128
    y = y.round_()
    if not full:
        chroma = F.avg_pool2d(chroma, 2).add_(0.01).round_()
    steps = torch.as_tensor(quantisation_steps(quality).astype(np.float32), device=images.device)
    y = _code(y[:, None] - 128, steps[:, :1]) + 128
    chroma = _code(chroma, steps[:, 1:])
    if not full:  # libjpeg's triangle filter
        chroma = F.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False).round_()
    y, cb, cr = y[:, 0], chroma[:, 0], chroma[:, 1]
    rgb = torch.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], 1)
    return (rgb.round_().clamp_(0, 255) / 255)[..., :height, :width]


def _code(planes: Tensor, steps: Tensor) -> Tensor:
    """planes [n, C, H, W] around 0 through DCT, quantisation with steps [n, 1, 8, 8], and back, whole numbers."""
    n, channels, height, width = planes.shape
    dct = torch.as_tensor(dct_matrix(), device=planes.device)
    blocks = dct @ planes.reshape(n, channels, height // 8, 8, width)
    blocks = blocks.reshape(n, channels, height // 8, 8, width // 8, 8) @ dct.T
    steps = steps[:, :, None, :, None, :]
    blocks = (blocks / steps).round_() * steps
    blocks = (blocks @ dct).reshape(n, channels, height // 8, 8, width)
    return (dct.T @ blocks).reshape(planes.shape).round_().clamp_(-128, 127)


def _column(values: np.ndarray, like: Tensor) -> Tensor:
    return torch.as_tensor(values.astype(np.float32), device=like.device)[:, None, None, None]
