"""Large pictures in bands of rows: nothing here holds floating-point numbers of a whole one.

A picture on its way out is a `Rows`: a function that gives rows a .. b. Decoded rows come from a `Store`; colour fix,
final resize and mask are functions from Rows to Rows, and memory is bounded by the band that is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import canvas_memory
from .colour import LOW_PASS_RADIUS, Moments, low_pass, match_moments
from .resize import resize_rows

#: Rows start .. stop of a picture, float [C, stop - start, width].
Rows = Callable[[int, int], Tensor]

#: Pictures of more samples than this are stored in 16 bits.
LARGE = 2**28
_SPAN = 8.0  # stored values lie in [-4, 4]


class Store:
    """Decoded pictures, [B, C, H, W] in about [-1, 1]: written in rows, read in rows.

    In float32, or for more than LARGE samples in 16-bit fixed point with steps of 8 / 65535, a sixtieth of an 8-bit
    step; in system memory, large ones in a temporary file (canvas_memory.py). `moments` has what AdaIN needs, from the
    rows as they were put. Raises SettingError if the disk has no room for a huge one.
    """

    def __init__(
        self, images: int, channels: int, height: int, width: int, device: torch.device,
        canvas_device: torch.device | None = None,
    ) -> None:  # fmt: skip
        """device: where rows are given. canvas_device: where they are stored, by default there too."""
        self.height, self.width, self.device = height, width, device
        shape = (images, channels, height, width)
        self._large = math.prod(shape) > LARGE
        dtype = torch.int16 if self._large else torch.float32
        self._values = canvas_memory.zeros(shape, canvas_device or device, dtype)
        self.moments = [Moments() for _ in range(images)]

    def reset(self) -> None:
        self.moments = [Moments() for _ in self.moments]

    def put(self, image: int, start: int, rows: Tensor) -> None:
        """Rows [C, h, W] of one image from row `start` on; each row once."""
        stop = min(start + rows.shape[1], self.height)
        rows = rows[:, : stop - start, : self.width]
        if rows.shape[1]:
            self.moments[image].add(rows)
            if self._large:
                rows = (rows * (65535 / _SPAN)).round().clamp(-32768, 32767).to(torch.int16)
            self._values[image, :, start:stop] = rows

    def rows(self, image: int) -> Rows:
        """The rows of one image, float32 on the device."""

        def read(start: int, stop: int) -> Tensor:
            values = self._values[image, :, start:stop].to(self.device)
            return values.float() * (_SPAN / 65535) if self._large else values

        return read


def adain_rows(content: Rows, moments: Moments, style: Tensor) -> Rows:
    """AdaIN: `content`, whose statistics are `moments`, with those of the image `style` [C, h, w]."""
    target = Moments(style)
    return lambda start, stop: match_moments(content(start, stop), moments, target)


def pinned_rows(content: Rows, lr: Tensor, size: tuple[int, int]) -> Rows:
    """`content` [3, H, W] with pure black and white where all LR pixels around are: statistics would move these.

    lr: [3, h, w] in [-1, 1]; size: H, W. A sample is pinned if 5 x 5 LR pixels around it are all -1, or all 1.
    """
    high, low = (F.max_pool2d(plane[None], 5, stride=1, padding=2)[0] for plane in (lr, -lr))
    black, white = high <= -1, low <= -1
    if not bool((black | white).any()):
        return content

    def rows(start: int, stop: int) -> Tensor:
        lines = torch.arange(start, stop, device=lr.device) * lr.shape[1] // size[0]
        columns = torch.arange(size[1], device=lr.device) * lr.shape[2] // size[1]
        values = content(start, stop)
        values = torch.where(black[:, lines][:, :, columns], -torch.ones_like(values), values)
        return torch.where(white[:, lines][:, :, columns], torch.ones_like(values), values)

    return rows


def wavelet_rows(content: Rows, style: Rows, height: int) -> Rows:
    """The wavelet colour fix: content + low pass of (style - content), for pictures of `height` rows."""

    def rows(start: int, stop: int) -> Tensor:
        low, high = max(0, start - LOW_PASS_RADIUS), min(height, stop + LOW_PASS_RADIUS)
        wide = content(low, high)
        difference = style(low, high) - wide
        inside = slice(start - low, stop - low)
        return wide[:, inside] + torch.stack([low_pass(plane)[inside] for plane in difference])

    return rows


def resized_rows(source: Rows, height: int, width: int, size: tuple[int, int], wrap: bool = False) -> Rows:
    """The picture of height x width resized to `size`, of an endless texture with `wrap`; bicubic, not clamped."""
    if size == (height, width):
        return source
    if not wrap:
        return lambda start, stop: resize_rows(source, height, width, size, start, stop)

    def around(start: int, stop: int) -> Tensor:
        # Three periods beside and below each other; the one in the middle is asked for.
        parts = [source(y % height, y % height + 1) for y in range(start, stop)]
        return torch.cat([torch.cat(parts, dim=1)] * 3, dim=2)

    def rows(start: int, stop: int) -> Tensor:
        tripled = (3 * size[0], 3 * size[1])
        part = resize_rows(around, 3 * height, 3 * width, tripled, size[0] + start, size[0] + stop)
        return part[:, :, size[1] : 2 * size[1]]

    return rows
