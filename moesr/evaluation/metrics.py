"""Metrics of fidelity, as papers of the field report them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ImageError

_LUMA = (65.481 / 255, 128.553 / 255, 24.966 / 255)  # BT.601, studio range


def luma(image: Tensor) -> Tensor:
    """The Y channel (BT.601, 16 to 235 of 255) of RGB images [B, 3, H, W] in [0, 1], as [B, 1, H, W] in [0, 1]."""
    weights = torch.tensor(_LUMA, dtype=image.dtype, device=image.device).view(1, 3, 1, 1)
    return (image * weights).sum(1, keepdim=True) + 16 / 255


def psnr_y(image: Tensor, reference: Tensor, border: int = 4) -> Tensor:
    """PSNR in dB on the Y channel without `border` pixels at each side: [B]; infinite for equal images.

    image, reference: [B, 3, H, W] in [0, 1]. Raises ImageError if the sizes differ or leave nothing inside the border.
    """
    if image.shape != reference.shape or min(image.shape[-2:]) <= 2 * border:
        raise ImageError(
            f"{list(image.shape)} against {list(reference.shape)}: PSNR needs equal sizes above {2 * border}"
        )
    inside = slice(border, -border or None)
    difference = (luma(image) - luma(reference))[..., inside, inside].double()
    return -10 * torch.log10(difference.square().mean(dim=(1, 2, 3)))
