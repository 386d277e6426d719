"""The LR image as the networks see it: near latent size for the experts, at output size for the first stage."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .resize import Matrices, resize
from .tile_windows import Window, crop

#: LR pixels around a window that a bicubic kernel can see.
_MARGIN = 8


#: How LR images are brought to output size for the first stage: MATLAB's bicubic, clamped; or torch's (a = -0.75), not
#: clamped, with which ResShift was trained. An image of that size already is left as it is.
RESIZES: dict[str, Callable[[Tensor, tuple[int, int], Matrices], Tensor]] = {
    "matlab": lambda image, size, matrices: resize(image, size, matrices).clamp(-1, 1),
    "torch": lambda image, size, _: F.interpolate(image, size=size, mode="bicubic", align_corners=False),
}


def compute_latent_size(height: int, width: int, *, scale: int, factor: int, multiple: int) -> tuple[int, int]:
    """Height and width of the latent of an LR image, padded so that both are multiples and whole LR pixels."""
    unit = multiple * factor // math.gcd(multiple * factor, scale)  # LR pixels that make whole multiples
    return math.ceil(height / unit) * unit * scale // factor, math.ceil(width / unit) * unit * scale // factor


class Condition:
    """LR images, padded so that every network takes them, as a value that windows are cut from.

    lr: [B, 3, H, W] in [-1, 1], perhaps with a mask of 0 and 1 as the fourth channel. scale: the model's; factor:
    output pixels per latent cell; multiple: of the latent's sides; `cells` are those sides. The experts see the LR
    image at `detail` times the latent's size (arXiv 2310.12004, section 3.1; ResShift, section 4). Padding is at the
    right and bottom, by reflection, as often as it takes. With `wrap` opposite borders are neighbours and nothing is
    padded: an image whose size does not fit is resampled, periodically, to one that does. lr_resize: a key of RESIZES.
    """

    def __init__(
        self, lr: Tensor, scale: int, factor: int, multiple: int, wrap: bool = False, detail: int = 1,
        lr_resize: str = "matlab",
    ) -> None:  # fmt: skip
        self.scale, self.factor, self.wrap, self.detail = scale, factor, wrap, detail
        self.size = (lr.shape[-2] * scale, lr.shape[-1] * scale)
        self.cells = compute_latent_size(lr.shape[-2], lr.shape[-1], scale=scale, factor=factor, multiple=multiple)
        height, width = (side * factor // scale for side in self.cells)
        self._lr = _sharpen_mask(periodic_resize(lr, (height, width))) if wrap else pad(lr, (height, width))
        self._enlarge, self._matrices = RESIZES[lr_resize], Matrices()
        self._resized = self._resample((self.cells[0] * detail, self.cells[1] * detail))

    @property
    def filled(self) -> tuple[int, int]:
        """Sides of the latent's part that is no padding, in cells, rounded up."""
        return self.cells if self.wrap else (-(-self.size[0] // self.factor), -(-self.size[1] // self.factor))

    def crop(self, image: int, window: Window) -> Tensor:
        """The condition of one window of one image, [1, 3 or 4, detail h, detail w]; windows are in latent cells."""
        return crop(self._resized[image : image + 1], window.scaled(self.detail))

    def thumbnail(self, image: int) -> Tensor:
        """One LR image at latent size, [3, h, w]."""
        return (self._resized if self.detail == 1 else self._resample(self.cells))[image, :3]

    def upsampled(self, image: int, window: Window) -> Tensor:
        """The same window of the LR image resized to output size, [1, 3, factor h, factor w] in [-1, 1].

        Only the part of the LR image that the window needs is resized, so memory is bounded by the window.
        """
        (top, height), (left, width) = self._find_span(window.y0, window.h, 2), self._find_span(window.x0, window.w, 3)
        part = crop(self._lr[image : image + 1, :3], Window(top, left, height, width))
        size = (height * self.scale, width * self.scale)
        large = part if self.scale == 1 else self._enlarge(part, size, self._matrices)
        y0 = (window.y0 * self.factor - top * self.scale) % (self._lr.shape[2] * self.scale)
        x0 = (window.x0 * self.factor - left * self.scale) % (self._lr.shape[3] * self.scale)
        return large[..., y0 : y0 + window.h * self.factor, x0 : x0 + window.w * self.factor]

    def to_cells(self, plane: Tensor) -> Tensor:
        """A plane [B, 1, H, W] of the LR image's size with a value per latent cell, [B, 1, h, w], within its range."""
        size = (self._lr.shape[2], self._lr.shape[3])
        plane = periodic_resize(plane, size) if self.wrap else pad(plane, size)
        low, high = plane.aminmax()
        return (periodic_resize if self.wrap else resize)(plane, self.cells).clamp(low, high)

    def finish(self, rows: Tensor) -> Tensor:
        """Decoded rows [3, h, W] without padding at the right; of an endless texture, at exactly the scaled size.

        Rows of padding at the bottom are left to who stores them; endless textures come with all their rows.
        """
        return periodic_resize(rows[None], self.size)[0] if self.wrap else rows[..., : self.size[1]]

    def _resample(self, size: tuple[int, int]) -> Tensor:
        """The padded LR images, with their masks, at another size."""
        if size == tuple(self._lr.shape[-2:]):
            return self._lr
        return _sharpen_mask((periodic_resize if self.wrap else resize)(self._lr, size).clamp(-1, 1))

    def _find_span(self, start: int, cells: int, dim: int) -> tuple[int, int]:
        """Start and size, in LR pixels, of what a window needs along one axis, with a margin."""
        side = self._lr.shape[dim]
        low = start * self.factor // self.scale - _MARGIN
        high = math.ceil((start + cells) * self.factor / self.scale) + _MARGIN
        if self.wrap:
            return low % side, high - low
        return max(low, 0), min(high, side) - max(low, 0)


def _sharpen_mask(image: Tensor) -> Tensor:
    """The image with its fourth channel, if it has one, as 0 and 1 again."""
    if image.shape[1] == 3:
        return image
    return torch.cat([image[:, :3], (image[:, 3:] > 0.5).to(image)], dim=1)


def pad(image: Tensor, size: tuple[int, int]) -> Tensor:
    """The image [B, C, H, W] extended to `size` at the bottom and right by reflection, as often as it takes.

    The border pixel is not repeated, unless it is the only one.
    """
    for dim in (-2, -1):
        side, wanted = image.shape[dim], size[dim - -2]
        if side != wanted:
            period = max(2 * side - 2, 1)
            index = torch.arange(wanted, device=image.device) % period
            image = image.index_select(dim, torch.where(index < side, index, period - index))
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
