"""First stages (VQ and KL) and the frequency-compensated decoder built on them (paper, section 3.3; LDM)."""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import AutoencoderConfig
from .adapters import spread
from .frequency import AFFUNet
from .fusion import LRFusion
from .layers import NormResBlock, Upsample, add_residual, arrange_channels, attention, full_precision, group_norm, silu
from .lr_cleaner import LRCleaner
from .restore_estimator import RestoreEstimator

#: Distances to codes that exist at a time (64 MiB of float32), whatever the size of the latent.
DISTANCE_ENTRIES = 2**24
#: Pixels by which windows are continued at the right and below: as far as the padding reaches into the features.
_FUSION_MARGIN = 16


class AttnBlock(nn.Module):
    """Single-head self-attention over all positions, q, k, v and output as 1 x 1 convolutions."""

    def __init__(self, channels: int, groups: int = 32) -> None:
        super().__init__()
        self.norm = group_norm(channels, 1e-6, groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).transpose(1, 2)[:, None] for layer in (self.q, self.k, self.v))  # [B, 1, HW, C]
        out = attention(q, k, v)[:, 0].transpose(1, 2).reshape(x.shape)
        return add_residual(x, self.proj_out(out))


class PaddedDownsample(nn.Module):
    """Zero row and column at the bottom and right, then a 3 x 3 convolution of stride 2 (odd sides are floored)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Level(nn.Module):
    """Residual blocks of one resolution and, but for the last level, the step to the next."""

    def __init__(
        self, channels: int, out_channels: int, blocks: int, groups: int, attends: bool = False,
        ranks: tuple[int, ...] = (),
    ) -> None:  # fmt: skip
        super().__init__()
        self.downsample: nn.Module | None = None
        self.upsample: nn.Module | None = None
        widths = [channels] + [out_channels] * blocks
        self.block = nn.ModuleList([NormResBlock(a, b, groups, ranks=ranks) for a, b in pairwise(widths)])
        self.attn = nn.ModuleList([AttnBlock(out_channels, groups) for _ in range(blocks if attends else 0)])

    def forward(self, x: Tensor, strengths: Tensor | None = None) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x, strengths)
            x = self.attn[i](x) if self.attn else x
        return x


class Middle(nn.Module):
    """Residual block, attention (unless the config leaves it out), residual block at the lowest resolution."""

    def __init__(self, channels: int, groups: int, attends: bool, ranks: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.block_1 = NormResBlock(channels, channels, groups, ranks=ranks)
        self.attn_1 = AttnBlock(channels, groups) if attends else nn.Identity()
        self.block_2 = NormResBlock(channels, channels, groups, ranks=ranks)

    def forward(self, x: Tensor, strengths: Tensor | None = None) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x, strengths)), strengths)


class Encoder(nn.Module):
    """Image [B, 3, H, W] in [-1, 1] -> moments or latent [B, z, H / f, W / f]."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = [config.ch * m for m in (1, *config.ch_mult)]
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down = nn.ModuleList()
        for i, (channels, out) in enumerate(pairwise(widths)):
            level = Level(channels, out, config.blocks[i], config.norm_groups, i in config.attention_levels)
            if i != len(config.ch_mult) - 1:
                level.downsample = PaddedDownsample(out)
            self.down.append(level)
        self.mid = Middle(widths[-1], config.norm_groups, config.mid_attention)
        self.norm_out = group_norm(widths[-1], 1e-6, config.norm_groups)
        z = config.z_channels * (2 if config.kind == "kl" else 1)
        self.conv_out = nn.Conv2d(widths[-1], z, 3, padding=1)

    def features(self, x: Tensor) -> Tensor:
        """Features of the second level, at half resolution: all that LR fusion needs; nothing else is computed."""
        first, second = _levels(self.down)[:2]
        return second(_down(first, self.conv_in(arrange_channels(x))))

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(arrange_channels(x))
        for level in _levels(self.down):
            h = _down(level, h)
        return self.conv_out(silu(self.norm_out(self.mid(h))))


def _levels(modules: nn.ModuleList) -> list[Level]:
    return cast("list[Level]", list(modules))


def _down(level: Level, x: Tensor) -> Tensor:
    h = level(x)
    return h if level.downsample is None else level.downsample(h)


class Decoder(nn.Module):
    """Latent [B, z, h, w] -> image [B, 3, f h, f w]; LR fusion at half, AFF refinement at full resolution.

    Adapters are in all residual blocks but those of full resolution, which are few channels wide.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = [config.ch * m for m in config.ch_mult]
        self.conv_in = nn.Conv2d(config.z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], config.norm_groups, config.mid_attention, config.adapter_ranks)
        levels: list[nn.Module] = []
        for i, (channels, out) in enumerate(zip([*widths[1:], widths[-1]], widths)):
            level = Level(
                channels, out, config.blocks[i] + 1, config.norm_groups, i in config.attention_levels,
                config.adapter_ranks if i else (),
            )  # fmt: skip
            if i != 0:
                level.upsample = Upsample(out)
            levels.append(level)
        self.up = nn.ModuleList(levels)  # by resolution: up.0 is the full one and runs last
        if config.lr_fusion:
            self.fusion_layer_1 = LRFusion(widths[1], config.fusion_growth, config.fusion_blocks, config.norm_groups)
        if config.refine:
            self.unet_1 = AFFUNet(widths[0], config.refine_mult, config.filter_expansion, config.norm_groups)
        self.norm_out = group_norm(widths[0], 1e-6, config.norm_groups)
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)

    def forward(
        self, z: Tensor, lr_features: Tensor | None, fidelity: float | Tensor, strengths: Tensor | None = None
    ) -> Tensor:
        h = self.mid(self.conv_in(arrange_channels(z)), strengths)
        for i, level in reversed(list(enumerate(_levels(self.up)))):
            h = level(h, strengths)
            if i == 1 and lr_features is not None and hasattr(self, "fusion_layer_1"):
                h = self.fusion_layer_1(h, arrange_channels(lr_features), fidelity)
            if level.upsample is not None:
                h = level.upsample(h)
        if hasattr(self, "unet_1"):
            h = self.unet_1(h)
        return self.conv_out(silu(self.norm_out(h)))


class Codebook(nn.Module):
    """The VQ codebook: n_embed codes of embed_dim."""

    def __init__(self, n_embed: int, embed_dim: int) -> None:
        super().__init__()
        # uniform, not nn.Embedding's normal numbers: drawing those on the meta device costs tens of megabytes
        start = torch.empty(n_embed, embed_dim).uniform_(-1.0 / n_embed, 1.0 / n_embed)
        self.embedding = nn.Embedding(n_embed, embed_dim, _weight=start)

    @torch.no_grad()
    def indices(self, z: Tensor) -> Tensor:
        """Index of the nearest code (squared L2, float32) of every latent cell. z: [B, C, h, w] -> int64 [B, h, w]."""
        codes = self.embedding.weight.float()
        cells = z.float().movedim(1, -1).reshape(-1, codes.shape[1])
        half_norm = codes.square().sum(1) / 2
        # |z - e|^2 / 2 = |z|^2 / 2 - (z.e - |e|^2 / 2); the first term is the same for all codes
        chunks = cells.split(max(1, DISTANCE_ENTRIES // codes.shape[0]))
        with full_precision(z):
            nearest = torch.cat([torch.addmm(-half_norm, c, codes.T).argmax(1) for c in chunks])
        return nearest.view(z.shape[0], *z.shape[2:])

    def forward(self, z: Tensor) -> Tensor:
        """Nearest codes, in the shape and dtype of z. Differentiable with respect to the codebook, not to z."""
        return self.embedding(self.indices(z)).movedim(-1, 1).to(z.dtype)


class Autoencoder(nn.Module):
    """Encoder and decoder of one model: VQ-GAN f4 or KL f8, with or without fusion and refinement.

    Images are [B, 3, H, W] in [-1, 1], latents are scaled by `config.scale_factor`. Built for inference; training code
    calls `encoder`, `quantize` and `decoder` itself where it needs straight-through gradients.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        z, e = config.z_channels, config.embed_dim
        if config.kind == "vq":
            self.quantize = Codebook(config.n_embed, e)
            self.quant_conv = nn.Conv2d(z, e, 1)
        else:
            self.quant_conv = nn.Conv2d(2 * z, 2 * e, 1)
        self.post_quant_conv = nn.Conv2d(e, z, 1)
        if config.estimator:
            self.estimator = RestoreEstimator()
        if config.cleaner_channels:
            self.cleaner = LRCleaner(config.cleaner_channels)

    def estimate_restore(self, lr: Tensor) -> Tensor:
        """How degraded LR images [B, 3, h, w] in [-1, 1] are, from 0 to 1: float32 [B]; 0 without an estimator."""
        return self.estimator(lr) if self.config.estimator else lr.new_zeros(len(lr), dtype=torch.float32)

    def encode(self, image: Tensor) -> Tensor:
        """Latent of an image, not quantised; of a KL stage, the mode of its posterior."""
        return self.moments(image)[:, : self.config.embed_dim] * self.config.scale_factor

    def moments(self, image: Tensor) -> Tensor:
        """Output of the encoder: the unscaled latent (VQ), or mean and log variance on channels (KL)."""
        return self.quant_conv(self.encoder(image))

    def features(self, lr_up: Tensor) -> Tensor | None:
        """What the decoder wants to know of the LR image, resized to output size; None if that is nothing.

        [B, C, H / 2, W / 2]; a decoder with `lr_skip` finds the image itself in the last channels, and without
        `lr_fusion` nothing else.
        """
        parts = [self.encoder.features(lr_up)] if self.config.lr_fusion else []
        if self.config.lr_skip:
            parts.append(F.pixel_unshuffle(lr_up, 2))
        return torch.cat(parts, dim=1) if parts else None

    def window_features(self, lr_up: Tensor) -> Tensor | None:
        """`features` of a window whose right and lower borders are continued by their last pixels.

        The encoder pads these two borders with zeros, which mean mid-grey: on black the fusion turned that into a brown
        stripe of 12 pixels.
        """
        margin = _FUSION_MARGIN if self.config.lr_fusion else 0
        found = self.features(F.pad(lr_up, (0, margin, 0, margin), mode="replicate"))
        return None if found is None else found[..., : lr_up.shape[-2] // 2, : lr_up.shape[-1] // 2]

    def decode(
        self, z: Tensor, features: Tensor | None = None, fidelity: float | Tensor = 1.0, *,
        restore: float | Tensor = 0.0, quantize: bool = True,
    ) -> Tensor:  # fmt: skip
        """Image of a latent: nearest codes (VQ; unless `quantize` is off), then the decoder.

        z: in the network's dtype, or in float32, which finds the codes that low precision would miss by rounding.
        features: from `features()`, or None to decode without the LR image (not for a decoder with `lr_skip`).
        fidelity: the weight of LR fusion. A decoder with adapters has fusion at 1, and takes fidelity and restore
        (numbers, or [B]) as its settings.
        """
        z = z / self.config.scale_factor
        if quantize and self.config.kind == "vq":
            z = self.quantize(z)
        z = z.to(self.post_quant_conv.weight.dtype)
        strengths = None
        if self.config.adapter_ranks:
            strengths, fidelity = self._adapter_strengths(restore, fidelity, z), 1.0
        if not self.config.lr_skip or features is None:
            return self.decoder(self.post_quant_conv(z), features, fidelity, strengths)
        image = F.pixel_shuffle(features[:, -4 * self.config.in_channels :], 2)
        rest = features[:, : -4 * self.config.in_channels] if self.config.lr_fusion else None
        return image + self.decoder(self.post_quant_conv(z), rest, fidelity, strengths)

    def _adapter_strengths(self, restore: float | Tensor, fidelity: float | Tensor, z: Tensor) -> Tensor | None:
        """[B, sum of ranks, 1, 1]; None where both settings are 0."""
        if not torch.is_tensor(restore) and not torch.is_tensor(fidelity) and restore == fidelity == 0:
            return None
        numbers = [torch.as_tensor(value).to(z.device, z.dtype).expand(len(z)) for value in (restore, fidelity)]
        return spread(torch.stack(numbers, dim=1).clamp(max=1), self.config.adapter_ranks)[:, :, None, None]
