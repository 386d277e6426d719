"""LR fusion: the decoder looks at the LR image, as much as the fidelity weight says (paper, section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .layers import NormResBlock, add_residual, leaky_relu


class DenseBlock(nn.Module):
    """Five convolutions, each seeing all earlier features; leaky ReLU 0.2; residual x 0.2."""

    def __init__(self, channels: int, growth: int = 32) -> None:
        super().__init__()
        widths = [channels + i * growth for i in range(5)]
        self.conv1 = nn.Conv2d(widths[0], growth, 3, padding=1)
        self.conv2 = nn.Conv2d(widths[1], growth, 3, padding=1)
        self.conv3 = nn.Conv2d(widths[2], growth, 3, padding=1)
        self.conv4 = nn.Conv2d(widths[3], growth, 3, padding=1)
        self.conv5 = nn.Conv2d(widths[4], channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        features = x
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            features = torch.cat([features, leaky_relu(conv(features), 0.2)], dim=1)
        return add_residual(x, self.conv5(features), 0.2)


class RRDB(nn.Module):
    """Three dense blocks with a residual x 0.2 around them."""

    def __init__(self, channels: int, growth: int = 32) -> None:
        super().__init__()
        self.rdb1 = DenseBlock(channels, growth)
        self.rdb2 = DenseBlock(channels, growth)
        self.rdb3 = DenseBlock(channels, growth)

    def forward(self, x: Tensor) -> Tensor:
        return add_residual(x, self.rdb3(self.rdb2(self.rdb1(x))), 0.2)


class LRFusion(nn.Module):
    """F = F_d + w C([F_lr, F_d]): decoder features corrected by those of the LR image.

    decoded, lr: [B, channels, H, W]. fidelity w: 0 leaves the decoder alone (generative), 1 is the trained value
    (faithful); a tensor that broadcasts to [B, 1, H, W] sets it per image or per place.
    """

    def __init__(self, channels: int, growth: int = 32, blocks: int = 2, groups: int = 32) -> None:
        super().__init__()
        self.encode_enc_1 = NormResBlock(channels * 2, channels, groups, skip="conv_out")
        self.encode_enc_2 = nn.Sequential(*(RRDB(channels, growth) for _ in range(blocks)))
        self.encode_enc_3 = NormResBlock(channels, channels, groups)

    def forward(self, decoded: Tensor, lr: Tensor, fidelity: float | Tensor) -> Tensor:
        if not isinstance(fidelity, Tensor) and fidelity == 0.0:
            return decoded
        correction = self.encode_enc_3(self.encode_enc_2(self.encode_enc_1(torch.cat([lr, decoded], dim=1))))
        if isinstance(fidelity, Tensor):
            return decoded + fidelity.to(correction.dtype) * correction
        return add_residual(decoded, correction, fidelity)
