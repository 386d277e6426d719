"""Adversaries of the decoder: over pixels, as VQ-GAN has it, or over the deep features that LPIPS computes anyway."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from ..networks.layers import full_precision


class PatchDiscriminator(nn.Module):
    """PatchGAN: scores of overlapping patches of an image [B, 3, H, W] -> [B, 1, h, w].

    Spectrally normalised (Miyato et al., arXiv 1802.05957), so that no statistics of a batch enter a score.
    """

    def __init__(self, channels: int = 64, layers: int = 3) -> None:
        super().__init__()
        parts: list[nn.Module] = [nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        width = channels
        for i in range(1, layers + 1):
            out = channels * min(2**i, 8)
            stride = 2 if i < layers else 1
            parts += [spectral_norm(nn.Conv2d(width, out, 4, stride=stride, padding=1)), nn.LeakyReLU(0.2)]
            width = out
        parts.append(spectral_norm(nn.Conv2d(width, 1, 4, padding=1)))
        self.layers = nn.Sequential(*parts)

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(image)


class FeatureDiscriminator(nn.Module):
    """Scores of frozen deep features (Projected GANs, Sauer et al., arXiv 2111.01007): a head for each of their scales.

    forward(features) takes a list of [B, C, h, w] of unit length over channels, as LPIPS.embed gives them, and returns
    the scores of all scales, [B, n]. It learns within hundreds of steps, a PatchGAN within tens of thousands, and costs
    little where LPIPS computes the features anyway.
    """

    def __init__(self, widths: tuple[int, ...], channels: int = 64) -> None:
        super().__init__()
        self.heads = nn.ModuleList(_head(width, channels) for width in widths)

    def forward(self, features: list[Tensor]) -> Tensor:
        # elements of a unit vector shrink with its length; the heads expect numbers around 1
        scores = [head(f * f.shape[1] ** 0.5) for head, f in zip(self.heads, features)]
        return torch.cat([score.float().mean(1).flatten(1) for score in scores], dim=1)


def _head(width: int, channels: int) -> nn.Sequential:
    return nn.Sequential(
        spectral_norm(nn.Conv2d(width, channels, 1)),
        nn.LeakyReLU(0.2),
        spectral_norm(nn.Conv2d(channels, channels, 3, padding=1)),
        nn.LeakyReLU(0.2),
        spectral_norm(nn.Conv2d(channels, 1, 1)),
    )


def augment_pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """DiffAugment (Zhao et al., arXiv 2006.10738), the same for both images of a pair: [B, 3, H, W] in [-1, 1].

    Half of the pairs get other brightness, saturation and contrast; half are moved by up to an eighth, with grey behind
    them; a quarter get a grey hole of a quarter of their side. Drawn from torch's generator; differentiable.
    """
    count, height, width = len(a), a.shape[-2], a.shape[-1]
    draw = torch.rand(10, count, 1, 1, 1)
    draw = draw.to(a.device, non_blocking=True)
    colour, moved, holed = draw[0] < 0.5, draw[1] < 0.5, draw[2] < 0.25
    brightness = torch.where(colour, (draw[3] - 0.5) * 0.5, 0.0)
    saturation = torch.where(colour, 0.5 + draw[4], 1.0)
    contrast = torch.where(colour, 0.75 + draw[5] / 2, 1.0)
    y, x = (torch.arange(n, device=a.device) for n in (height, width))
    dy, dx = (torch.where(moved, (d - 0.5) * n / 4, 0.0).round() for d, n in ((draw[6], height), (draw[7], width)))
    grid = torch.stack(
        [((x[None, None] - dx[:, 0]) * 2 + 1) / width - 1 + 0 * y[None, :, None],
         ((y[None, :, None] - dy[:, 0]) * 2 + 1) / height - 1 + 0 * x[None, None]], dim=-1,
    )  # fmt: skip
    top, left = draw[8] * height * 0.75, draw[9] * width * 0.75
    rows = (y[:, None] >= top) & (y[:, None] < top + height / 4)
    columns = (x >= left) & (x < left + width / 4)
    keep = (~(rows & columns & holed)).to(a.dtype)

    def change(image: Tensor) -> Tensor:
        image = image + brightness
        mean = image.mean(dim=1, keepdim=True)
        image = mean + (image - mean) * saturation
        mean = image.mean(dim=(1, 2, 3), keepdim=True)
        image = mean + (image - mean) * contrast
        with full_precision(image):
            image = F.grid_sample(image.float(), grid, mode="nearest", align_corners=False)
        return image * keep

    return change(a), change(b)
