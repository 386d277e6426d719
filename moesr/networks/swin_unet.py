"""ResShift's network: a UNet of residual blocks with windowed attention (ResShift, section 4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..config import SwinUNetConfig
from .layers import Upsample, group_norm, timestep_embedding
from .swin_layers import SwinLayer
from .unet import Block, Downsample, ResBlock

#: Channels of the LR image's features before they are halved for the first time; each halving doubles them.
FEATURES = 16


class SwinUNet(nn.Module):
    """Predicts the clean latent (or what the process says) from a noisy one and the LR image.

    forward(z [B, in_channels, H, W], t [B], lr [B, 3, d H, d W] with d = `config.detail`) -> [B, out_channels, H, W]; H
    and W are multiples of `config.multiple`. lr is in [-1, 1], and has the mask as a fourth channel where the network
    takes one. It enters at the first convolution only. t may be its embedding [B or 1, E], from `embed`. Raises
    ValueError for a size that is no multiple.
    """

    def __init__(self, config: SwinUNetConfig) -> None:
        super().__init__()
        self.config = config
        base, mult, groups = config.model_channels, config.channel_mult, config.norm_groups
        emb = base * 4
        self.time_embed = nn.Sequential(nn.Linear(base, emb), nn.SiLU(), nn.Linear(emb, emb))
        self.feature_extractor, lr_channels = _feature_extractor(3 + config.mask, config.lr_downsamples)

        def layers(channels: int, level: int, first: bool) -> list[nn.Module]:
            out = mult[level] * base
            parts: list[nn.Module] = [ResBlock(channels, out, emb, groups, config.scale_shift)]
            attends = first and 2**level in config.attention_downsamples
            return [*parts, self._attention(out, level)] if attends else parts

        def resample(channels: int, resize: str) -> nn.Module:
            if config.resblock_resample:
                return ResBlock(channels, channels, emb, groups, config.scale_shift, resize)
            return Downsample(channels) if resize == "down" else Upsample(channels)

        blocks: list[nn.Module] = [Block(nn.Conv2d(config.in_channels + lr_channels, base, 3, padding=1))]
        channels, skips, last = base, [base], len(mult) - 1
        for level, n in enumerate(config.num_res_blocks):
            for i in range(n):
                blocks.append(Block(*layers(channels, level, i == 0)))
                channels = mult[level] * base
                skips.append(channels)
            if level != last:
                blocks.append(Block(resample(channels, "down")))
                skips.append(channels)
        self.input_blocks = nn.ModuleList(blocks)

        self.middle_block = Block(
            ResBlock(channels, channels, emb, groups, config.scale_shift),
            self._attention(channels, last),
            ResBlock(channels, channels, emb, groups, config.scale_shift),
        )

        blocks = []
        for level, n in reversed(list(enumerate(config.num_res_blocks))):
            for i in range(n + 1):
                parts = layers(channels + skips.pop(), level, i == 0)
                channels = mult[level] * base
                if level and i == n:
                    parts.append(resample(channels, "up"))
                blocks.append(Block(*parts))
        self.output_blocks = nn.ModuleList(blocks)
        self.out = nn.Sequential(
            group_norm(channels, 1e-5, groups), nn.SiLU(), nn.Conv2d(channels, config.out_channels, 3, padding=1)
        )

    def _attention(self, channels: int, level: int) -> SwinLayer:
        c = self.config
        window, shift = c.window_of(level)
        heads = c.swin_channels // c.num_head_channels
        return SwinLayer(
            channels, c.swin_channels, c.swin_depth, heads, window, shift, c.mlp_channels, c.shift_mask, c.norm_groups
        )

    def embed(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        """The embedding [B, E] of timesteps [B], which `forward` takes in their place: one step, one embedding."""
        return self.time_embed(timestep_embedding(t, self.config.model_channels).to(dtype))

    def forward(self, z: Tensor, t: Tensor, lr: Tensor) -> Tensor:
        if z.shape[-2] % self.config.multiple or z.shape[-1] % self.config.multiple:
            raise ValueError(f"latent of {list(z.shape[-2:])}: pad its sides to multiples of {self.config.multiple}")
        emb = self.embed(t, z.dtype) if t.ndim == 1 else t
        h, skips = torch.cat([z, self.feature_extractor(lr)], dim=1), []
        for block in self.input_blocks:
            h = block(h, emb)
            skips.append(h)
        h = self.middle_block(h, emb)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), emb)
        return self.out(h)


def _feature_extractor(channels: int, halvings: int) -> tuple[nn.Sequential, int]:
    """Convolution, SiLU, convolution of stride 2 for every halving of the LR image; and the channels it ends with."""
    layers: list[nn.Module] = []
    for i in range(halvings):
        width = FEATURES * 2**i
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.SiLU(), Downsample(width, 2 * width)]
        channels = 2 * width
    return nn.Sequential(*layers), channels
