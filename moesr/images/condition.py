"""The LR image as the networks are shown it: at latent size for the experts, at output size for the first stage."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .resize import resize
from .windows import Window, crop

#: LR pixels around a window that a bicubic kernel can see.
_MARGIN = 8


class Condition:
    """LR images, padded so that every network takes them, as a value that windows are cut from.

    lr: [B, 3, H, W] in [-1, 1]. scale: the model's; factor: output pixels a latent cell; multiple: of the latent's
    sides. `latent` [B, 3, h, w] is the LR image at latent size (arXiv 2310.12004, section 3.1). Padding is at the right
    and bottom, by reflection, by replication where that is not possible. With `wrap` opposite borders are neighbours
    and nothing is padded: an image whose size does not fit is resampled, periodically, to one that does.
    """

    def __init__(self, lr: Tensor, scale: int, factor: int, multiple: int, wrap: bool = False) -> None:
        self.scale, self.factor, self.wrap = scale, factor, wrap
        self.size = (lr.shape[-2] * scale, lr.shape[-1] * scale)
        unit = multiple * factor // math.gcd(multiple * factor, scale)  # LR pixels that make whole multiples
        height, width = (math.ceil(side / unit) * unit for side in lr.shape[-2:])
        self._lr = periodic_resize(lr, (height, width)) if wrap else pad(lr, (height, width))
        cells = (height * scale // factor, width * scale // factor)
        resample = periodic_resize if wrap else resize
        self.latent = self._lr if cells == (height, width) else resample(self._lr, cells).clamp(-1, 1)

    @property
    def cells(self) -> tuple[int, int]:
        """Height and width of the latent canvas."""
        return self.latent.shape[-2], self.latent.shape[-1]

    def crop(self, image: int, window: Window) -> Tensor:
        """The condition of one window of one image, [1, 3, h, w]; windows are in latent cells."""
        return crop(self.latent[image : image + 1], window)

    def upsampled(self, image: int, window: Window) -> Tensor:
        """The same window of the LR image resized to output size, [1, 3, factor h, factor w] in [-1, 1].

        Only the part of the LR image that the window needs is resized, so memory is bounded by the window.
        """
        (top, height), (left, width) = self._span(window.y0, window.h, 2), self._span(window.x0, window.w, 3)
        part = crop(self._lr[image : image + 1], Window(top, left, height, width))
        large = resize(part, (height * self.scale, width * self.scale)).clamp(-1, 1)
        y0 = (window.y0 * self.factor - top * self.scale) % (self._lr.shape[2] * self.scale)
        x0 = (window.x0 * self.factor - left * self.scale) % (self._lr.shape[3] * self.scale)
        return large[..., y0 : y0 + window.h * self.factor, x0 : x0 + window.w * self.factor]

    def finish(self, rows: Tensor) -> Tensor:
        """Decoded rows [3, h, W] without padding at the right; of an endless texture, at exactly the scaled size.

        Rows of padding at the bottom are left to who stores them; endless textures come with all their rows.
        """
        return periodic_resize(rows[None], self.size)[0] if self.wrap else rows[..., : self.size[1]]

    def _span(self, start: int, cells: int, dim: int) -> tuple[int, int]:
        """Start and size, in LR pixels, of what a window needs along one axis, with a margin."""
        side = self._lr.shape[dim]
        low = start * self.factor // self.scale - _MARGIN
        high = math.ceil((start + cells) * self.factor / self.scale) + _MARGIN
        if self.wrap:
            return low % side, high - low
        return max(low, 0), min(high, side) - max(low, 0)


def pad(image: Tensor, size: tuple[int, int]) -> Tensor:
    """The image [B, C, H, W] extended to `size` at the bottom and right, by reflection, else by replication."""
    down, right = size[0] - image.shape[-2], size[1] - image.shape[-1]
    for amount, side, edges in ((down, -2, (0, 0, 0, down)), (right, -1, (0, right, 0, 0))):
        if amount:
            image = F.pad(image, edges, mode="reflect" if amount < image.shape[side] else "replicate")
    return image


def periodic_resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Bicubic resize of one period of an endless texture, [B, C, H, W] -> [B, C, *size]."""
    for dim in (-2, -1):
        side, wanted = image.shape[dim], size[dim]
        if side == wanted:
            continue
        around = list(image.shape[-2:])
        around[dim] = 3 * wanted
        image = resize(torch.cat([image] * 3, dim=dim), (around[0], around[1])).narrow(dim, wanted, wanted)
    return image
