"""The time expert: LDM's UNet with a Space MoE after every attention block (paper, section 3 and appendix A.1)."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import UNetConfig
from .adapters import Adapter, add_adapter, spread
from .layers import Upsample, arrange_channels, attention, group_norm, timestep_embedding
from .space_moe import SpaceMoE


class ResBlock(nn.Module):
    """The time embedding between two convolutions, residual around both. x: [B, C, H, W], emb: [B, E].

    With e = Linear(SiLU(emb)) that is h + e; with `scale_shift`, norm(h) * (1 + scale) + shift of the halves of e.
    resize: "up" doubles both sides in front of the first convolution (nearest), "down" halves them (mean of 2 x 2).
    ranks: of adapters at both convolutions, whose strengths are then the last channels of emb, if it has them.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        emb_channels: int,
        groups: int = 32,
        scale_shift: bool = False,
        resize: str = "",
        ranks: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        self.resize = resize
        self.emb_channels = emb_channels
        self.scale_shift = scale_shift
        self.in_layers = nn.Sequential(
            group_norm(channels, 1e-5, groups), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, out_channels * (1 + scale_shift)))
        self.out_layers = nn.Sequential(
            group_norm(out_channels, 1e-5, groups),
            nn.SiLU(),
            nn.Identity(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
        )
        same = channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1)
        self.in_adapter = Adapter(channels, out_channels, ranks) if ranks else None
        self.out_adapter = Adapter(out_channels, out_channels, ranks) if ranks else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        strengths = None
        if emb.shape[1] > self.emb_channels:
            emb, strengths = emb[:, : self.emb_channels], emb[:, self.emb_channels :, None, None]
        e = self.emb_layers(emb)[:, :, None, None]
        norm, activate, convolve = self.in_layers
        h = activate(norm(x))
        if self.resize:
            h, x = self._resize(h), self._resize(x)
        h = add_adapter(convolve(h), self.in_adapter, h, strengths)
        norm, activate, _, convolve = self.out_layers
        if self.scale_shift:
            scale, shift = e.chunk(2, dim=1)
            h = activate(norm(h) * (1 + scale) + shift)
        else:
            h = activate(norm(h + e))
        return self.skip_connection(x) + add_adapter(convolve(h), self.out_adapter, h, strengths)

    def _resize(self, x: Tensor) -> Tensor:
        if self.resize == "up":
            return F.interpolate(x, scale_factor=2.0, mode="nearest")
        return F.avg_pool2d(x, 2)


class AttentionBlock(nn.Module):
    """Multi-head self-attention over all positions, heads split before q, k and v (LDM's legacy order)."""

    def __init__(self, channels: int, head_channels: int, groups: int = 32) -> None:
        super().__init__()
        self.heads = channels // head_channels
        self.norm = group_norm(channels, 1e-5, groups)
        self.qkv = nn.Conv1d(channels, channels * 3, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        qkv = self.qkv(self.norm(x).flatten(2))  # [B, 3C, HW], channels ordered head, then q | k | v
        q, k, v = qkv.reshape(b, self.heads, 3, c // self.heads, h * w).transpose(-1, -2).unbind(2)
        out = attention(q, k, v).transpose(-1, -2).reshape(b, c, h * w)
        return x + self.proj_out(out).reshape(b, c, h, w)


class Downsample(nn.Module):
    """3 x 3 convolution of stride 2."""

    def __init__(self, channels: int, out_channels: int | None = None) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, out_channels or channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Block(nn.Sequential):
    """Layers in a row; the residual blocks among them are given the time embedding too."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # type: ignore[override]  # nn.Sequential takes one input
        for layer in self:
            x = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
        return x


class UNet(nn.Module):
    """Predicts noise, clean latent or residual (the process says which) from a noisy latent joined to its condition.

    forward(x [B, in_channels, H, W], t [B]) -> [B, out_channels, H, W]; H and W multiples of `config.multiple`. t may
    be their embedding [B or 1, E], from `embed`. The condition is the last channels of x, or is given apart as `lr`.
    Level `i` works at 1 / 2^i of the latent; attention and Space MoE stand where the rate is in
    `attention_downsamples`, and always in the middle.

    A network with `config.adapter_ranks` also takes `settings` [B or 1, 2]: restore (0 for a clean LR image, 1 for a
    heavily degraded one) and fidelity (0 generative, 1 faithful). The embedding carries them to the residual blocks.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        base, mult, n, groups = config.model_channels, config.channel_mult, config.num_res_blocks, config.norm_groups
        emb = base * 4
        self.time_embed = nn.Sequential(nn.Linear(base, emb), nn.SiLU(), nn.Linear(emb, emb))
        block = partial(ResBlock, emb_channels=emb, groups=groups, ranks=config.adapter_ranks)

        def layers(channels: int, out: int, rate: int) -> list[nn.Module]:
            attends = rate in config.attention_downsamples
            return [block(channels, out), *(self._attention(out) if attends else [])]

        blocks: list[nn.Module] = [Block(nn.Conv2d(config.in_channels, base, 3, padding=1))]
        channels, skips, last = base, [base], len(mult) - 1
        for level, m in enumerate(mult):
            for _ in range(n):
                blocks.append(Block(*layers(channels, m * base, 2**level)))
                channels = m * base
                skips.append(channels)
            if level != last:
                blocks.append(Block(Downsample(channels)))
                skips.append(channels)
        self.input_blocks = nn.ModuleList(blocks)

        self.middle_block = Block(
            block(channels, channels),
            *self._attention(channels),
            block(channels, channels),
        )

        blocks = []
        for level in reversed(range(len(mult))):
            for i in range(n + 1):
                parts = layers(channels + skips.pop(), mult[level] * base, 2**level)
                channels = mult[level] * base
                if level and i == n:
                    parts.append(Upsample(channels))
                blocks.append(Block(*parts))
        self.output_blocks = nn.ModuleList(blocks)
        self.out = nn.Sequential(
            group_norm(channels, 1e-5, groups), nn.SiLU(), nn.Conv2d(channels, config.out_channels, 3, padding=1)
        )

    def _attention(self, channels: int) -> list[nn.Module]:
        config = self.config
        layers: list[nn.Module] = [AttentionBlock(channels, config.num_head_channels, config.norm_groups)]
        if config.space_experts:
            layers.append(SpaceMoE(channels, config.space_experts, config.ffn_mult))
        return layers

    def embed(self, t: Tensor, dtype: torch.dtype, settings: Tensor | None = None) -> Tensor:
        """The embedding of timesteps [B or 1] and settings [B or 1, 2], which `forward` takes in their place.

        [B, E], with settings [B, E + R]. Without them the adapters do not work, as if all were 0.
        """
        emb = self.time_embed(timestep_embedding(t, self.config.model_channels).to(dtype))
        if settings is None:
            return emb
        strengths = spread(settings.to(emb.device, dtype), self.config.adapter_ranks)
        count = max(len(emb), len(strengths))
        return torch.cat([emb.expand(count, -1), strengths.expand(count, -1)], dim=1)

    def forward(self, x: Tensor, t: Tensor, lr: Tensor | None = None, settings: Tensor | None = None) -> Tensor:
        emb = self.embed(t, x.dtype, settings) if t.ndim == 1 else t
        h, skips = arrange_channels(x if lr is None else torch.cat([x, lr], dim=1)), []
        for block in self.input_blocks:
            h = block(h, emb)
            skips.append(h)
        h = self.middle_block(h, emb)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), emb)
        return self.out(h)
