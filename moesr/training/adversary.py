"""Adversaries of the decoder: over pixels, as VQ-GAN has it, or over the deep features that LPIPS computes anyway."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


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
    the scores of all scales, [B, n]. It learns within hundreds of steps where a PatchGAN takes tens of thousands, and
    costs next to nothing where the features are there for a perceptual loss.
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
