"""The two ends of a run: what of an image is upscaled, and how decoded rows become the caller's picture."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..errors import ImageError
from .alpha import fill_transparent
from .assembly import Rows, Store, adain_rows, resized_rows, wavelet_rows
from .canvas import Canvas
from .resize import resize_rows

#: Rows of the result that are finished at a time.
BAND = 256


def planes(canvas: Canvas, device: torch.device) -> tuple[Tensor, int]:
    """What is upscaled, [N, 3, H, W] in [-1, 1], and how many of it are colours; alpha that varies follows as grey."""
    if canvas.alpha is None:
        return canvas.rgb.to(device) * 2 - 1, len(canvas.rgb)
    planes = fill_transparent(canvas.rgb, canvas.alpha)
    if not _constant(canvas.alpha):
        planes = torch.cat([planes, canvas.alpha.expand(-1, 3, -1, -1)])
    return planes.to(device) * 2 - 1, len(canvas.rgb)


def result_size(canvas: Canvas, sr: Store, scale: float | None) -> tuple[int, int]:
    """Height and width of the result: LR size times the asked scale, to the nearest pixel."""
    if scale is None:
        return sr.height, sr.width
    height, width = canvas.rgb.shape[-2:]
    return max(1, math.floor(height * scale + 0.5)), max(1, math.floor(width * scale + 0.5))


def fix_colour(name: str, sr: Store, image: int, lr: Tensor, wrap: bool) -> Rows:
    """The decoded rows of an image with the colours of its LR image [3, h, w]: adain, wavelet or none.

    Statistics are those of the whole image, never of a tile.
    """
    rows = sr.rows(image)
    if name == "adain":
        return adain_rows(rows, sr.moments[image], lr)
    if name == "wavelet":
        style = resized_rows(_rows_of(lr), lr.shape[1], lr.shape[2], (sr.height, sr.width), wrap)
        return wavelet_rows(rows, lambda start, stop: style(start, stop).clamp(-1, 1), sr.height)
    return rows


def finish(canvas: Canvas, lr: Tensor, final: list[Rows], size: tuple[int, int], mask: Any, wrap: bool) -> Any:
    """The result in the caller's kind: [0, 1], masked, with its alpha, band by band."""
    out = canvas.empty(*size)
    images = len(canvas.rgb)
    weights = None if mask is None else _mask(mask, lr[:images])
    for image in range(images):
        small = lr[image]
        plain = resized_rows(_rows_of(small), small.shape[1], small.shape[2], size, wrap)
        alpha = None if canvas.alpha is None else _alpha_rows(canvas.alpha[image], final, image, images, size)
        for start in range(0, size[0], BAND):
            stop = min(start + BAND, size[0])
            rgb = ((final[image](start, stop) + 1) / 2).clamp(0, 1)
            if weights is not None:
                part = weights[image % len(weights)]
                weight = resize_rows(_rows_of(part), part.shape[1], part.shape[2], size, start, stop).clamp(0, 1)
                below = ((plain(start, stop) + 1) / 2).clamp(0, 1)
                rgb = below + weight * (rgb - below)
            canvas.put(out, image, start, rgb, None if alpha is None else alpha(start, stop))
    return canvas.restore(out)


def _alpha_rows(alpha: Tensor, final: list[Rows], image: int, images: int, size: tuple[int, int]) -> Rows:
    """Alpha [1, h, W] of the result: upscaled like a grey image, between the least and largest alpha around each pixel.

    So what was transparent or opaque stays that exactly, and a constant alpha needs no network.
    """
    if len(final) == images:
        return lambda start, stop: alpha.flatten()[0].expand(1, stop - start, size[1])
    high = F.max_pool2d(alpha[None], 3, stride=1, padding=1)[0]
    low = -F.max_pool2d(-alpha[None], 3, stride=1, padding=1)[0]
    columns = torch.arange(size[1]) * alpha.shape[2] // size[1]

    def rows(start: int, stop: int) -> Tensor:
        lines = torch.arange(start, stop) * alpha.shape[1] // size[0]
        grey = (final[images + image](start, stop).cpu().mean(dim=0, keepdim=True) + 1) / 2
        return grey.clamp(low[:, lines][:, :, columns], high[:, lines][:, :, columns])

    return rows


def _rows_of(image: Tensor) -> Rows:
    return lambda start, stop: image[:, start:stop]


def _constant(values: Tensor) -> bool:
    return bool((values == values.flatten()[0]).all())


def _mask(mask: Any, lr: Tensor) -> Tensor:
    """[1 or B, 1, H, W] in [0, 1] on lr's device, from a PIL image, an array or a tensor [H, W] or [B, H, W]."""
    if isinstance(mask, Image.Image):
        mask = np.asarray(mask.convert("L"))
    values = torch.as_tensor(np.asarray(mask) if not isinstance(mask, Tensor) else mask)
    values = values.float() / 255 if values.dtype == torch.uint8 else values.float()
    if values.ndim not in (2, 3) or values.numel() == 0 or (values.ndim == 3 and values.shape[0] not in (1, len(lr))):
        raise ImageError(f"mask of shape {list(values.shape)}: give height x width, or one for each image of the batch")
    return values.reshape(-1, 1, *values.shape[-2:]).to(lr.device)
