"""A small picture of an unfinished latent: colours are an affine map of its channels, fitted to the LR image."""

from __future__ import annotations

import math

import torch
from PIL import Image
from torch import Tensor

#: Largest side of a preview in pixels.
LARGEST = 768


def draw_preview(latent: Tensor | None, colours: Tensor) -> Image.Image:
    """The picture of a latent [C, h, w], or of the LR image alone while there is none.

    colours: the LR image at latent size, [3, h, w] in [-1, 1]. Of large latents every second or further cell is drawn.
    """
    fewer = (..., *[slice(None, None, math.ceil(max(colours.shape[1:]) / LARGEST))] * 2)
    drawn = colours[fewer] if latent is None else _map_channels(latent[fewer], colours[fewer])
    pixels = ((drawn.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0)
    return Image.fromarray(pixels.cpu().numpy())


def _map_channels(latent: Tensor, colours: Tensor) -> Tensor:
    """The colours [3, h, w] that an affine map of the latent's channels predicts, fitted by least squares."""
    channels = latent.float().cpu().flatten(1).T  # [hw, C]
    design = torch.cat([channels, torch.ones(len(channels), 1)], dim=1)
    target = colours.float().cpu().flatten(1).T
    normal = design.T @ design + 1e-4 * len(design) * torch.eye(design.shape[1])
    return (design @ torch.linalg.solve(normal, design.T @ target)).T.view(-1, *latent.shape[1:])
