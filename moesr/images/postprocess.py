"""The two ends of a run: what of an image is upscaled, and how decoded rows become the caller's picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..errors import ImageError, SettingError
from .alpha import fill_transparent
from .canvas import Canvas
from .resize import resize_rows
from .row_bands import Rows, Store, adain_rows, pinned_rows, resized_rows, wavelet_rows

#: Rows of the result that are finished at a time, and the fewest that are tried where memory runs out. Wide results
#: take fewer rows than BAND, down to a quarter, to stay within BAND_PIXELS.
BAND, SMALLEST_BAND, BAND_PIXELS = 256, 16, 2**18


def count_band_rows(width: int) -> int:
    """Rows of a result of that width that are finished at a time."""
    return min(BAND, max(BAND // 4, BAND_PIXELS // width))


def read_colours(canvas: Canvas, device: torch.device) -> Tensor:
    """What is upscaled, [B, 3, H, W] in [-1, 1]: colours, also where nothing is seen of them."""
    rgb = canvas.rgb if canvas.alpha is None else fill_transparent(canvas.rgb, canvas.alpha)
    return rgb.to(device) * 2 - 1


def hide_masked(lr: Tensor, mask: Tensor | None) -> Tensor:
    """LR images [B, 4, H, W] for a network that fills in what is missing: hidden pixels are 0 (mid-grey), the last
    channel is 1 there and 0 elsewhere.

    mask: from `read_mask`; a pixel is hidden if the mask is at least half there. Raises SettingError without one.
    """
    if mask is None:
        raise SettingError("this model fills in what a mask marks: give a mask, white where something is missing")
    hidden = (F.adaptive_max_pool2d(mask.to(lr.device), (lr.shape[-2], lr.shape[-1])) >= 0.5).to(lr)
    hidden = hidden.expand(len(lr), -1, -1, -1)
    return torch.cat([lr * (1 - hidden), hidden], dim=1)


def fix_colour(name: str, sr: Store, image: int, lr: Tensor, wrap: bool) -> Rows:
    """The decoded rows of an image with the colours of its LR image [3, h, w]: adain, wavelet or none.

    Statistics are those of the whole image, never of a tile.
    """
    rows = sr.rows(image)
    if name == "adain":
        return pinned_rows(adain_rows(rows, sr.moments[image], lr), lr, (sr.height, sr.width))
    if name == "wavelet":
        style = resized_rows(_rows_of(lr), lr.shape[1], lr.shape[2], (sr.height, sr.width), wrap)
        return wavelet_rows(rows, lambda start, stop: style(start, stop).clamp(-1, 1), sr.height)
    return rows


def finish_image(
    canvas: Canvas, image: int, lr: Tensor, final: Rows, out: np.ndarray, *, mask: Tensor | None = None,
    wrap: bool = False, band: int | None = None,
) -> None:  # fmt: skip
    """Writes one image of the result into `out` [B, H, W, C], in bands of `band` rows (default: band_rows).

    lr: its colours [3, h, w]. final: its rows at the result's size. mask [1, h, w]: below 1 plain bicubic shows.
    """
    size = (out.shape[1], out.shape[2])
    band = count_band_rows(size[1]) if band is None else band
    plain = resized_rows(_rows_of(lr), lr.shape[1], lr.shape[2], size, wrap)
    alpha = None
    if canvas.alpha is not None:
        alpha = _Alpha(canvas.alpha[image], (lr.cpu() + 1) / 2, size, wrap)
    for start in range(0, size[0], band):
        stop = min(start + band, size[0])
        rgb = ((final(start, stop) + 1) / 2).clamp(0, 1)
        if mask is not None:
            weight = resize_rows(_rows_of(mask), mask.shape[1], mask.shape[2], size, start, stop).clamp(0, 1)
            below = ((plain(start, stop) + 1) / 2).clamp(0, 1)
            rgb = below + weight * (rgb - below)
        opacity = None
        if alpha is not None:
            opacity = alpha.rows(start, stop)
            rgb = alpha.settle(rgb.cpu(), opacity, start, stop)
        canvas.put(out, image, start, rgb, opacity)


class _Alpha:
    """Alpha [1, h, w] of one image on its way out, and what it asks of the colours [3, h, w] under it.

    Alpha is enlarged bicubically, between the least and largest alpha around each pixel: what was transparent or opaque
    stays that exactly. A network that invents texture has no place here, as every speck of alpha shows on every
    background. Colours next to transparency are held so that, laid on black or on white, no pixel is darker or brighter
    than those around it were: anything else would be a fringe.
    """

    def __init__(self, alpha: Tensor, colours: Tensor, size: tuple[int, int], wrap: bool) -> None:
        self._size, self._source = size, alpha.shape[1:]
        self._plain = resized_rows(_rows_of(alpha), alpha.shape[1], alpha.shape[2], size, wrap)
        self._low, self._high = _find_range(alpha)
        self._on_black = _find_range(alpha * colours)
        self._on_white = _find_range(alpha * (1 - colours))

    def rows(self, start: int, stop: int) -> Tensor:
        """Alpha [1, stop - start, W]."""
        return self._plain(start, stop).clamp(self._at(self._low, start, stop), self._at(self._high, start, stop))

    def settle(self, rgb: Tensor, alpha: Tensor, start: int, stop: int) -> Tensor:
        """Colours [3, stop - start, W] under that alpha, held wherever the surroundings are not all opaque."""
        weight = alpha.clamp_min(1e-4)
        black_low, black_high = (self._at(plane, start, stop) / weight for plane in self._on_black)
        white_low, white_high = (self._at(plane, start, stop) / weight for plane in self._on_white)
        held = rgb.clamp(torch.maximum(black_low, 1 - white_high), torch.minimum(black_high, 1 - white_low))
        return torch.where(self._at(self._low, start, stop) < 1, held.clamp(0, 1), rgb)

    def _at(self, plane: Tensor, start: int, stop: int) -> Tensor:
        lines = torch.arange(start, stop) * self._source[0] // self._size[0]
        columns = torch.arange(self._size[1]) * self._source[1] // self._size[1]
        return plane[:, lines][:, :, columns]


def _find_range(image: Tensor) -> tuple[Tensor, Tensor]:
    """Least and largest value of the 3 x 3 pixels around every pixel of [C, h, w]."""
    return -F.max_pool2d(-image[None], 3, stride=1, padding=1)[0], F.max_pool2d(image[None], 3, stride=1, padding=1)[0]


def _rows_of(image: Tensor) -> Rows:
    return lambda start, stop: image[:, start:stop]


def read_mask(mask: Any, images: int, name: str = "mask") -> Tensor:
    """[1 or images, 1, H, W] in [0, 1] from a PIL image, an array or a tensor [H, W] or [B, H, W]; else ImageError."""
    if isinstance(mask, Image.Image):
        mask = np.asarray(mask.convert("L"))
    values = torch.as_tensor(np.array(mask) if not isinstance(mask, Tensor) else mask)
    values = values.float() / 255 if values.dtype == torch.uint8 else values.float()
    if values.ndim not in (2, 3) or values.numel() == 0 or (values.ndim == 3 and values.shape[0] not in (1, images)):
        raise ImageError(f"{name} of shape {list(values.shape)}: give height x width, or one per image of a batch")
    return values.reshape(-1, 1, *values.shape[-2:])
