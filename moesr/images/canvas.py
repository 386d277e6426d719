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
from .files import Picture, from_pil, to_pil


@dataclass(frozen=True)
class Canvas:
    """Images as planes: rgb [B, 3, H, W] in [0, 1], alpha [B, 1, H, W] or None; `restore(rgb, alpha)` goes back."""

    rgb: Tensor
    alpha: Tensor | None
    restore: Callable[[Tensor, Tensor | None], Any]


def as_canvas(image: Any) -> Canvas:
    """The planes of a PIL image, a Picture, a uint8 array [H, W, C] or a float tensor [B, H, W, C] in [0, 1].

    C is 1, 3 or 4. Raises ImageError for another kind, shape or dtype, or for values that are not numbers.
    """
    if isinstance(image, Image.Image):
        return _of_picture(from_pil(image), to_pil)
    if isinstance(image, Picture):
        return _of_picture(image, lambda picture: picture)
    if isinstance(image, np.ndarray):
        return _of_array(image)
    if isinstance(image, Tensor):
        return _of_tensor(image)
    raise ImageError(f"{type(image).__name__} is no image: give a PIL image, a uint8 HWC array or a float BHWC tensor")


def _of_picture(picture: Picture, back: Callable[[Picture], Any]) -> Canvas:
    def restore(rgb: Tensor, alpha: Tensor | None) -> Any:
        opaque = None if alpha is None else alpha[0, 0].cpu().numpy()
        return back(replace(picture, rgb=_hwc(rgb)[0].numpy(), alpha=opaque))

    rgb = torch.tensor(picture.rgb).permute(2, 0, 1)[None]
    alpha = None if picture.alpha is None else torch.tensor(picture.alpha)[None, None]
    return Canvas(rgb, alpha, restore)


def _of_array(array: np.ndarray) -> Canvas:
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or not array.size:
        raise ImageError(f"array of {array.dtype} {array.shape}: give uint8 of height x width x 1, 3 or 4")
    planes = array[..., None] if array.ndim == 2 else array
    inner = _of_tensor(torch.from_numpy(np.ascontiguousarray(planes))[None].float() / 255)

    def restore(rgb: Tensor, alpha: Tensor | None) -> np.ndarray:
        pixels = (inner.restore(rgb, alpha)[0] * 255).round().clamp(0, 255).to(torch.uint8).numpy()
        return pixels[..., 0] if array.ndim == 2 else pixels

    return replace(inner, restore=restore)


def _of_tensor(tensor: Tensor) -> Canvas:
    if tensor.ndim != 4 or not tensor.is_floating_point() or tensor.shape[3] not in (1, 3, 4) or not tensor.numel():
        raise ImageError(
            f"tensor of {tensor.dtype} {list(tensor.shape)}: give floats of B x H x W x 1, 3 or 4 in [0, 1]"
        )
    planes = tensor.detach().float().permute(0, 3, 1, 2)
    if not bool(torch.isfinite(planes).all()):
        raise ImageError("the image has NaN or infinite values: check what made it")
    planes = planes.clamp(0, 1)
    channels = planes.shape[1]

    def restore(rgb: Tensor, alpha: Tensor | None) -> Tensor:
        if channels == 1:
            rgb = rgb.mean(dim=1, keepdim=True)
        return _hwc(rgb if alpha is None else torch.cat([rgb, alpha], dim=1)).to(tensor.dtype)

    rgb = planes.expand(-1, 3, -1, -1) if channels == 1 else planes[:, :3]
    return Canvas(rgb, planes[:, 3:4] if channels == 4 else None, restore)


def _hwc(planes: Tensor) -> Tensor:
    return planes.permute(0, 2, 3, 1).contiguous().cpu()
