"""Transparency: colours for the pixels that have none."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def fill_transparent(rgb: Tensor, alpha: Tensor) -> Tensor:
    """Gives fully transparent pixels the colours of their visible neighbours, so that upscaling makes no fringe.

    rgb [B, C, H, W] with straight (not premultiplied) colours, alpha [B, 1, H, W] in [0, 1]; the type of rgb is kept.
    Pixels with alpha > 0 are never changed. Push-pull: averages weighted by alpha over ever larger blocks until every
    pixel has a colour, then back down, where only holes are filled. Returns `rgb` itself if there is no hole, or no
    colour to fill it with.
    """
    low, high = alpha.aminmax()
    if low == high or low > 0:
        return rgb
    work = torch.promote_types(rgb.dtype, torch.float32)
    return _fill(rgb.to(work), alpha.to(work).clamp_min(0)).to(rgb.dtype)


def _fill(colour: Tensor, weight: Tensor) -> Tensor:
    visible = weight > 0
    height, width = colour.shape[-2:]
    if height * width == 1 or visible.all():
        return colour
    total = _halve(weight)
    coarse = _halve(colour * weight) / total.clamp_min(torch.finfo(total.dtype).tiny)
    spread = F.interpolate(_fill(coarse, total), size=(height, width), mode="bilinear", align_corners=False)
    return torch.where(visible, colour, spread)


def _halve(image: Tensor) -> Tensor:
    return F.avg_pool2d(image, 2, ceil_mode=True, count_include_pad=False)
