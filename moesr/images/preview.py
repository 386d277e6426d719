"""A small picture of an unfinished latent: decoded small, or an affine map of its channels, fitted to the LR image."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..networks.autoencoder import Autoencoder

#: Largest side of a preview in pixels.
LARGEST = 768
#: Largest side, in cells, of a latent that is decoded for a preview; larger ones are averaged.
DECODED = 80


def draw_preview(latent: Tensor | None, colours: Tensor) -> Image.Image:
    """The picture of a latent [C, h, w], or of the LR image alone while there is none.

    colours: the LR image at latent size, [3, h, w] in [-1, 1]. Of large latents every second or further cell is drawn.
    """
    fewer = (..., *[slice(None, None, math.ceil(max(colours.shape[1:]) / LARGEST))] * 2)
    return _to_image(colours[fewer] if latent is None else _map_channels(latent[fewer], colours[fewer]))


def decode_preview(autoencoder: Autoencoder, latent: Tensor, colours: Tensor) -> Image.Image:
    """The picture that a decoder with `lr_skip`, whose latents have no colours of their own, makes of them.

    latent: [C, h, w]. colours: as in `draw_preview`.
    """
    first = next(autoencoder.parameters())
    shrink = math.ceil(max(latent.shape[1:]) / DECODED)
    z, lr = (F.avg_pool2d(x[None].to(first), shrink, ceil_mode=True) for x in (latent, colours))
    height, width = z.shape[2:]
    z, lr = (F.pad(x, (0, -width % 4, 0, -height % 4), mode="replicate") for x in (z, lr))
    large = F.interpolate(lr, scale_factor=float(autoencoder.config.factor), mode="bicubic")
    decoded = autoencoder.decode(z, autoencoder.window_features(large))[0].float()
    return _to_image(decoded[:, : height * autoencoder.config.factor, : width * autoencoder.config.factor])


def _to_image(drawn: Tensor) -> Image.Image:
    pixels = ((drawn.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0)
    return Image.fromarray(pixels.cpu().numpy())


def _map_channels(latent: Tensor, colours: Tensor) -> Tensor:
    """The colours [3, h, w] that an affine map of the latent's channels predicts, fitted by least squares."""
    channels = latent.float().cpu().flatten(1).T  # [hw, C]
    design = torch.cat([channels, torch.ones(len(channels), 1)], dim=1)
    target = colours.float().cpu().flatten(1).T
    normal = design.T @ design + 1e-4 * len(design) * torch.eye(design.shape[1])
    return (design @ torch.linalg.solve(normal, design.T @ target)).T.view(-1, *latent.shape[1:])
