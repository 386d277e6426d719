"""Parts that more than one network uses: attention, normalisation, time embedding, resampling."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .adapters import Adapter, add_adapter

#: Entries of one attention matrix that may exist at a time where no fused kernel is to be had (128 MiB of float32).
ATTENTION_ENTRIES = 2**25
#: Heads from this width on are faster as two convolutions on a CPU than in its fused kernel, from so many queries on.
WIDE_HEAD, WIDE_QUERIES = 256, 1024
#: oneDNN's kernels for 1 x 1 convolutions want a batch, see inverted_residual.py.
_BATCH = 32


def group_norm(channels: int, eps: float, groups: int = 32) -> nn.GroupNorm:
    """GroupNorm, with the 32 groups of every released network by default. Raises ValueError if they do not divide."""
    return nn.GroupNorm(groups, channels, eps=eps)


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """Context in which nothing on x's device is autocast: for parts that must compute in float32."""
    try:
        return torch.autocast(x.device.type, enabled=False)
    except RuntimeError:  # no autocast on this kind of device (meta, MPS in older torch): nothing to turn off
        return nullcontext()


def silu(x: Tensor) -> Tensor:
    """SiLU of a tensor that nobody else holds: in place where no gradient is recorded."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def leaky_relu(x: Tensor, slope: float) -> Tensor:
    """Leaky ReLU of a tensor that nobody else holds: in place where no gradient is recorded."""
    return F.leaky_relu(x, slope, inplace=not torch.is_grad_enabled())


def add_residual(x: Tensor, h: Tensor, share: float = 1.0) -> Tensor:
    """x + share * h, with `h` one that nobody else holds: in its memory where no gradient is recorded."""
    fits = x.dtype == h.dtype and x.shape == h.shape and not torch.is_grad_enabled()
    return torch.add(x, h, alpha=share, out=h) if fits else torch.add(x, h, alpha=share)


def prefers_channels_last(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a device convolves faster with channels last: CPUs, as measured, and CUDA in half precision."""
    return device.type == "cpu" or (device.type == "cuda" and dtype != torch.float32)


def arrange_channels(x: Tensor) -> Tensor:
    """x [B, C, H, W] in the memory layout in which its device convolves fastest; plain where gradients are recorded."""
    if torch.is_grad_enabled():
        return x.contiguous()  # torch 2.13 crashes in the backward pass of a frozen GroupNorm with channels last
    return x.contiguous(memory_format=torch.channels_last) if prefers_channels_last(x.device, x.dtype) else x


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention, scale dim^-0.5, without ever holding the N x N matrix for large N.

    q, k, v: [batch, heads, N, dim]; returns the same shape. Queries go through the fused kernel in chunks, so that
    devices without one for this head width stay within ATTENTION_ENTRIES too; each query's result is unchanged.
    """
    # Fused kernels take tokens whose channels lie side by side; of others torch makes the N x N matrix.
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    tokens = q.shape[-2]
    per_query = k.shape[-2] * q.shape[0] * q.shape[1]
    chunk = max(256, ATTENTION_ENTRIES // per_query)
    if tokens <= chunk:
        return _attend(q, k, v)
    return torch.cat([_attend(part, k, v) for part in q.split(chunk, dim=-2)], dim=-2)


class _Attend(nn.Module):
    """The fused kernel as a layer: hooks that end a run come between chunks, which take seconds each on a slow CPU."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        wide = q.shape[0] * q.shape[1] == 1 and q.shape[-1] >= WIDE_HEAD and q.shape[-2] >= WIDE_QUERIES
        if wide and q.device.type == "cpu" and not torch.is_grad_enabled() and q.shape[-2] % _BATCH == 0:
            return _by_convolutions(q[0, 0], k[0, 0], v[0, 0])[None, None]
        return F.scaled_dot_product_attention(q, k, v)


_attend = _Attend()


def _by_convolutions(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of one head [N, dim] as two 1 x 1 convolutions whose weights are the keys and the values.

    oneDNN's convolutions reach twice the rate of torch's matrix products. Scores and softmax are float32; only the
    shares are rounded to the dtype of the values, as fused kernels of GPUs do it.
    """
    tokens, dim = k.shape
    pixels = q.float().reshape(_BATCH, 1, -1, dim).permute(0, 3, 1, 2)  # channels last: [32, dim, 1, N / 32]
    with full_precision(q):
        scores = F.conv2d(pixels, (k.float() * dim**-0.5).reshape(tokens, dim, 1, 1)).permute(0, 2, 3, 1)
    shares = torch.softmax(scores, dim=-1).to(v.dtype).permute(0, 3, 1, 2)
    del scores
    return F.conv2d(shares, v.t().reshape(dim, tokens, 1, 1)).permute(0, 2, 3, 1).reshape(-1, dim)


def timestep_embedding(t: Tensor, channels: int) -> Tensor:
    """Sinusoidal embedding of timesteps, cosines first (DDPM; frequencies 10000^(-k / half)).

    t: [B] of any number type; returns float32 [B, channels], channels even.
    """
    half = channels // 2
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t.float()[:, None] * frequencies[None]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class NormResBlock(nn.Module):
    """VQ-GAN's residual block: two 3 x 3 convolutions after GroupNorm (eps 1e-6) and SiLU.

    Where the width changes, the skip is a 1 x 1 convolution whose key is `skip`. ranks: of adapters at both
    convolutions, which work if `forward` is given their strengths [B or 1, sum of ranks, 1, 1].
    """

    def __init__(
        self, channels: int, out_channels: int, groups: int = 32, skip: str = "nin_shortcut",
        ranks: tuple[int, ...] = (),
    ) -> None:  # fmt: skip
        super().__init__()
        self.norm1 = group_norm(channels, 1e-6, groups)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels, 1e-6, groups)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip = skip if channels != out_channels else None
        if self.skip:
            self.add_module(skip, nn.Conv2d(channels, out_channels, 1))
        self.adapter1 = Adapter(channels, out_channels, ranks) if ranks else None
        self.adapter2 = Adapter(out_channels, out_channels, ranks) if ranks else None

    def forward(self, x: Tensor, strengths: Tensor | None = None) -> Tensor:
        h = silu(self.norm1(x))
        h = add_adapter(self.conv1(h), self.adapter1, h, strengths)
        h = silu(self.norm2(h))
        h = add_adapter(self.conv2(h), self.adapter2, h, strengths)
        return add_residual(self.get_submodule(self.skip)(x) if self.skip else x, h)


class Upsample(nn.Module):
    """Nearest x2, then a 3 x 3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
