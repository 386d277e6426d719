"""The frequency part of the decoder: adaptive filters in the Fourier domain and their U-Net (paper, section 3.3)."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .inverted_residual import band_bytes, can_fold, fold_norm, inverted_residual
from .layers import arrange_channels, full_precision, group_norm, leaky_relu


class AdaptiveFrequencyFilter(nn.Module):
    """x + irfft2(filter(X) * X), X = rfft2(x), where a small complex network of X itself makes the filter.

    Two complex block-diagonal linear maps, leaky ReLU 0.1 between them, softshrink at 0.01. Any H and W; float32
    inside. `expansion` widens the first map. The product is not Hermitian on the DC and Nyquist columns; irfft2 drops
    that part.
    """

    def __init__(self, channels: int, expansion: int = 1, blocks: int = 8, threshold: float = 0.01) -> None:
        super().__init__()
        self.blocks, self.threshold = blocks, threshold
        width = channels // blocks
        self.w1 = _small(2, blocks, width, width * expansion)
        self.b1 = _small(2, blocks, width * expansion)
        self.w2 = _small(2, blocks, width * expansion, width)
        self.b2 = _small(2, blocks, width)

    def forward(self, x: Tensor) -> Tensor:
        with full_precision(x):
            if torch.is_grad_enabled():
                return x + self._filter(x.float(), slice(0, self.blocks)).to(x.dtype)
            out, width = torch.empty_like(x), x.shape[1] // self.blocks
            # As many blocks at a time as keep a spectrum and what is made of it in the cache; each is on its own.
            one = 4 * 8 * x[:, :width, :, : x.shape[3] // 2 + 1].numel()
            step = max(1, min(self.blocks, band_bytes(x.device) // one))
            for start in range(0, self.blocks, step):
                blocks = slice(start, min(start + step, self.blocks))
                channels = slice(blocks.start * width, blocks.stop * width)
                part = x[:, channels].float().contiguous()
                out[:, channels] = self._filter(part, blocks).add_(part)
            return out

    def _filter(self, x: Tensor, blocks: slice) -> Tensor:
        b, c, h, w = x.shape
        n = blocks.stop - blocks.start
        spectrum = torch.fft.rfft2(x, norm="ortho")  # [B, C, H, W/2 + 1]
        parts = (spectrum.real.reshape(b, n, c // n, -1), spectrum.imag.reshape(b, n, c // n, -1))
        stacked = torch.cat(parts, dim=2)  # [B, blocks, re | im channels, frequencies]
        hidden = _complex_map(stacked, self.w1[:, blocks], self.b1[:, blocks])
        hidden = leaky_relu(hidden, 0.1)
        response = F.softshrink(_complex_map(hidden, self.w2[:, blocks], self.b2[:, blocks]), self.threshold)
        real, imag = (half.reshape(spectrum.shape) for half in response.chunk(2, dim=2))
        return torch.fft.irfft2(torch.complex(real, imag) * spectrum, s=(h, w), norm="ortho")


def _small(*shape: int) -> nn.Parameter:
    """Uniform numbers with a standard deviation of 0.02."""
    return nn.Parameter(torch.empty(shape).uniform_(-0.0346, 0.0346))


def _complex_map(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A complex block-diagonal linear map as one real product. x: [B, blocks, 2 in, F] -> [B, blocks, 2 out, F]."""
    real, imag = weight.float()  # each [blocks, in, out]
    matrix = torch.cat([torch.cat([real, imag], dim=2), torch.cat([-imag, real], dim=2)], dim=1)
    shift = torch.cat(list(bias.float()), dim=1)  # [blocks, 2 out]
    out = matrix.transpose(1, 2) @ x
    return out + shift[:, :, None] if torch.is_grad_enabled() else out.add_(shift[:, :, None])


class ConvNorm(nn.Module):
    """Convolution without bias, then batch norm."""

    def __init__(self, channels: int, out_channels: int, kernel: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.block = nn.Sequential()
        self.block.add_module(
            "conv", nn.Conv2d(channels, out_channels, kernel, padding=kernel // 2, groups=groups, bias=False)
        )
        self.block.add_module("norm", nn.BatchNorm2d(out_channels))

    @property
    def layers(self) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
        """The convolution and its norm."""
        return cast("tuple[nn.Conv2d, nn.BatchNorm2d]", tuple(self.block))

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class InvertedResidual(nn.Module):
    """1 x 1 to four times the width, 3 x 3 depthwise, 1 x 1 back, leaky ReLU 0.1 between; skip if in == out.

    forward adds the convolution `short` of `source`, the block's other branch. As it is used, batch norms are folded
    and the wide features exist in bands only (inverted_residual.py).
    """

    def __init__(self, channels: int, out_channels: int, expansion: int = 4) -> None:
        super().__init__()
        hidden = channels * expansion
        self.skip = channels == out_channels
        self.block = nn.ModuleDict(
            {
                "exp_1x1": ConvNorm(channels, hidden),
                "conv_3x3": ConvNorm(hidden, hidden, 3, groups=hidden),
                "red_1x1": ConvNorm(hidden, out_channels),
            }
        )

    def forward(self, x: Tensor, source: Tensor, short: nn.Conv2d) -> Tensor:
        layers = [cast(ConvNorm, self.block[name]) for name in ("exp_1x1", "conv_3x3", "red_1x1")]
        if can_fold(x, short, *(layer.layers for layer in layers)):
            convolutions = [fold_norm(*layer.layers, x.dtype) for layer in layers]
            return inverted_residual(convolutions, x, self.skip, short, source)
        h = F.leaky_relu(layers[0](x), 0.1)
        h = F.leaky_relu(layers[1](h), 0.1)
        h = layers[2](h)
        return (x + h if self.skip else h) + short(source)


class AFFBlock(nn.Module):
    """u = InvertedResidual(GN(x)) + conv1x1(x); u + AdaptiveFrequencyFilter(GN(u)). [B, in, H, W] -> [B, out, H, W]."""

    def __init__(self, channels: int, out_channels: int, expansion: int = 1, groups: int = 32) -> None:
        super().__init__()
        self.norm1 = group_norm(channels, 1e-5, groups)
        self.mlp = InvertedResidual(channels, out_channels)
        self.up_dim = nn.Conv2d(channels, out_channels, 1)
        self.norm2 = group_norm(out_channels, 1e-5, groups)
        self.filter = AdaptiveFrequencyFilter(out_channels, expansion)

    def forward(self, x: Tensor) -> Tensor:
        x = arrange_channels(x)
        u = self.mlp(self.norm1(x), x, self.up_dim)
        filtered = self.filter(self.norm2(u))
        return u + filtered if torch.is_grad_enabled() else u.add_(filtered)


def find_folded_layers(network: nn.Module) -> list[nn.Module]:
    """The layers whose weights are read where they are used, and not by a forward of their own."""
    blocks = [block for block in network.modules() if isinstance(block, AFFBlock)]
    return [layer for block in blocks for layer in (*block.mlp.modules(), block.up_dim)]


class AFFUNet(nn.Module):
    """Nine AFF blocks on three scales, at full resolution and below (paper, fig. 4). Sides: multiples of 4."""

    def __init__(
        self, channels: int, mult: tuple[int, ...] = (1, 1, 2, 2), expansion: int = 1, groups: int = 32
    ) -> None:
        super().__init__()
        c0, c1, c2, c3 = (channels * m for m in mult)

        def shuffle_up(wide: int, out: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(wide, out * 4, 1), nn.PixelShuffle(2))

        self.conv1 = AFFBlock(c0, c1, expansion, groups)
        self.conv2 = AFFBlock(c1, c2, expansion, groups)
        self.conv3 = AFFBlock(c2, c3, expansion, groups)
        self.context_refine = nn.Sequential(*(AFFBlock(c3, c3, expansion, groups) for _ in range(4)))
        self.up3 = shuffle_up(c3, c2)
        self.up_conv3 = AFFBlock(c2 * 2, c2, expansion, groups)
        self.up2 = shuffle_up(c2, c1)
        self.up_conv2 = AFFBlock(c1 * 2, c0, expansion, groups)

    def forward(self, x: Tensor) -> Tensor:
        full = self.conv1(x)
        half = self.conv2(F.max_pool2d(full, 2))
        quarter = self.context_refine(self.conv3(F.max_pool2d(half, 2)))
        half = self.up_conv3(torch.cat([half, self.up3(quarter)], dim=1))
        return self.up_conv2(torch.cat([full, self.up2(half)], dim=1))
