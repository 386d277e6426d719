"""What users hand over (PIL, array, tensor) as one batch of planes, and the way back to the same kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import ImageError
from .files import Picture, from_pil, luma, to_pil

#: Between channels: the largest difference, and the largest mean one, of what counts as grey.
_NEUTRAL_NOISE, _NEUTRAL_TINT = 6.5 / 255, 0.5 / 255


@dataclass(frozen=True)
class Canvas:
    """Images as planes: rgb [B, 3, H, W] in [0, 1], alpha [B, 1, H, W] or None.

    The result is written row by row into an array of `samples` (8 or 16 bits, or float32), and `restore` makes the
    caller's kind of it: an array [B, H, W, C] with C = 1 grey, 3 RGB, or 4 with alpha.
    """

    rgb: Tensor
    alpha: Tensor | None
    grey: bool
    samples: np.dtype[Any]
    restore: Callable[[np.ndarray], Any]
    neutral: tuple[bool, ...] = ()
    """Per image: its three channels are equal, as in most black-and-white pictures; so are those of the result."""

    def part(self, start: int, stop: int) -> Canvas:
        alpha = None if self.alpha is None else self.alpha[start:stop]
        return replace(self, rgb=self.rgb[start:stop], alpha=alpha, neutral=self.neutral[start:stop])

    def empty(self, height: int, width: int) -> np.ndarray:
        channels = (1 if self.grey else 3) + (self.alpha is not None)
        return np.empty((len(self.rgb), height, width, channels), self.samples)

    def put(self, out: np.ndarray, image: int, start: int, rgb: Tensor, alpha: Tensor | None) -> None:
        """Write rows of one image, [3, h, W] and [1, h, W] in [0, 1], rounded to the nearest sample."""
        is_grey = self.grey or bool(self.neutral and self.neutral[image])
        if out.dtype == np.uint8 and alpha is None and not is_grey:  # bytes leave the device, not floats
            out[image, start : start + rgb.shape[1]] = (rgb * 255).round().byte().permute(1, 2, 0).cpu().numpy()
            return
        pixels = rgb.permute(1, 2, 0).cpu().numpy()
        if is_grey:
            pixels = luma(pixels) if self.grey else np.repeat(luma(pixels), 3, axis=2)
        if alpha is not None:
            pixels = np.concatenate([pixels, alpha.permute(1, 2, 0).cpu().numpy()], axis=2)
        if out.dtype.kind == "u":
            pixels = np.rint(pixels * np.float32(np.iinfo(out.dtype).max))
        out[image, start : start + pixels.shape[0]] = pixels


def as_canvas(image: Any) -> Canvas:
    """The planes of a PIL image, a Picture, a uint8 array [H, W, C] or a float tensor [B, H, W, C] in [0, 1].

    C is 1, 3 or 4. Raises ImageError for another kind, shape or dtype, or for values that are not numbers.
    """
    if isinstance(image, Image.Image):
        canvas = _read_picture(replace(from_pil(image), bits=8), to_pil)
    elif isinstance(image, Picture):
        canvas = _read_picture(image, lambda picture: picture)
    elif isinstance(image, np.ndarray):
        canvas = _read_array(image)
    elif isinstance(image, Tensor):
        canvas = _read_tensor(image)
    else:
        kind = type(image).__name__
        raise ImageError(f"{kind} is no image: give a PIL image, a uint8 HWC array or a float BHWC tensor")
    alphas = [None] * len(canvas.rgb) if canvas.alpha is None else list(canvas.alpha)
    return replace(canvas, neutral=tuple(_is_neutral(rgb, alpha) for rgb, alpha in zip(canvas.rgb, alphas)))


def _is_neutral(rgb: Tensor, alpha: Tensor | None) -> bool:
    """True if the channels [3, H, W] are equal wherever something is seen, but for what lossy compression does to them.

    That is noise around grey; a tint, however faint, is to one side.
    """
    difference = (rgb[[0, 2]] - rgb[[1]]).flatten(1)
    if alpha is not None:
        difference = difference[:, alpha.flatten() > 0]
    if not difference.numel():
        return True
    return bool(difference.abs().max() <= _NEUTRAL_NOISE and difference.mean(1).abs().max() <= _NEUTRAL_TINT)


def _read_picture(picture: Picture, back: Callable[[Picture], Any]) -> Canvas:
    def restore(out: np.ndarray) -> Any:
        colours = 1 if picture.grey else 3
        rgb = np.broadcast_to(out[0, ..., :colours], (*out.shape[1:3], 3))
        alpha = None if picture.alpha is None else out[0, ..., colours]
        return back(replace(picture, rgb=rgb, alpha=alpha))

    picture = picture.floats()
    rgb = torch.tensor(picture.rgb).permute(2, 0, 1)[None]
    alpha = None if picture.alpha is None else torch.tensor(picture.alpha)[None, None]
    samples = np.dtype(np.uint16 if picture.bits == 16 else np.uint8)
    return Canvas(rgb, alpha, picture.grey, samples, restore)


def _read_array(array: np.ndarray) -> Canvas:
    planes = array[..., None] if array.ndim == 2 else array
    if array.dtype != np.uint8 or planes.ndim != 3 or planes.shape[2] not in (1, 3, 4) or not array.size:
        raise ImageError(f"array of {array.dtype} {array.shape}: give uint8 of height x width x 1, 3 or 4")
    canvas = _read_tensor(torch.from_numpy(np.array(planes))[None].float() / 255)

    def restore(out: np.ndarray) -> np.ndarray:
        return out[0, ..., 0] if array.ndim == 2 else out[0]

    return replace(canvas, samples=np.dtype(np.uint8), restore=restore)


def _read_tensor(tensor: Tensor) -> Canvas:
    if tensor.ndim != 4 or not tensor.is_floating_point() or tensor.shape[3] not in (1, 3, 4) or not tensor.numel():
        raise ImageError(
            f"tensor of {tensor.dtype} {list(tensor.shape)}: give floats of B x H x W x 1, 3 or 4 in [0, 1]"
        )
    planes = tensor.detach().float().permute(0, 3, 1, 2)
    # One by one: a long batch is neither copied nor checked as a whole.
    if not all(bool(torch.isfinite(image).all()) for image in planes):
        raise ImageError("the image has NaN or infinite values: check what made it")
    low, high = planes.aminmax()
    planes = planes.clamp(0, 1) if low < 0 or high > 1 else planes
    channels = planes.shape[1]
    rgb = planes.expand(-1, 3, -1, -1) if channels == 1 else planes[:, :3]
    alpha = planes[:, 3:4] if channels == 4 else None

    def restore(out: np.ndarray) -> Tensor:
        return torch.from_numpy(out).to(tensor.dtype)

    return Canvas(rgb, alpha, channels == 1, np.dtype(np.float32), restore)
