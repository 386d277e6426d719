"""Windowed attention over feature maps: the Swin layers of ResShift's UNet."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import group_norm

#: Added to the attention between tokens of a shifted window that a mask keeps apart.
APART = -100.0

_ALL, _REST, _LAST = slice(None), slice(None, -1), slice(-1, None)

#: For each kind of mask: rows of windows -> columns of windows -> along which axes tokens are kept apart there.
#: Those of the released models know the last row of windows only, and keep its columns apart instead of its rows; what
#: the shift brings from the other side elsewhere is attended to freely. They were trained so, and need it.
MASKS = {
    "released": ((_REST, ((_ALL, ""),)), (_LAST, ((_ALL, "columns"),))),
    "textbook": (
        (_REST, ((_REST, ""), (_LAST, "columns"))),
        (_LAST, ((_REST, "rows"), (_LAST, "rows columns"))),
    ),
}
_UNSHIFTED = ((_ALL, ((_ALL, ""),)),)


@lru_cache(maxsize=64)
def compute_position_index(window: int, device: torch.device) -> Tensor:
    """Row of the table of relative positions for every query and key of a window, int64 [N, N] with N = window^2.

    (r_q - r_k + window - 1) * (2 window - 1) + (c_q - c_k + window - 1); tokens row by row.
    """
    with torch.inference_mode(False):  # kept: it may be needed for a backward pass later
        side = torch.arange(window, device=device)
        rows, columns = side.repeat_interleave(window), side.repeat(window)
        offset = (a[:, None] - a[None, :] + window - 1 for a in (rows, columns))
        return next(offset) * (2 * window - 1) + next(offset)


@lru_cache(maxsize=64)
def mask_apart(window: int, shift: int, axes: str, device: torch.device, dtype: torch.dtype) -> Tensor:
    """APART between tokens on different sides of a cut `shift` cells before the window's end, else 0: [N, N].

    axes: "rows", "columns", or both in one string. The size of the image plays no part, so few are ever made.
    """
    with torch.inference_mode(False):
        beyond = torch.arange(window, device=device) >= window - shift
        none = torch.zeros_like(beyond)
        rows, columns = (beyond if axis in axes else none for axis in ("rows", "columns"))
        side = (2 * rows.long()[:, None] + columns.long()[None, :]).flatten()
        return (side[:, None] != side[None, :]).to(dtype) * APART


class WindowAttention(nn.Module):
    """Multi-head attention inside square windows, with a learned bias for every relative position.

    x: [B, C, H, W], H and W multiples of `window`. With a `shift` the map is rolled by it first, and the mask `mask`
    (a key of MASKS) keeps some of what comes from the other side apart.
    """

    def __init__(self, dim: int, heads: int, window: int, shift: int, mask: str) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.regions = MASKS[mask] if shift else _UNSHIFTED
        start = torch.empty((2 * window - 1) ** 2, heads).uniform_(-0.04, 0.04)
        self.relative_position_bias_table = nn.Parameter(start)
        self.qkv = nn.Linear(dim, dim * 3)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        n = self.window
        x = x.roll((-self.shift, -self.shift), (2, 3)) if self.shift else x
        tokens = x.view(b, c, h // n, n, w // n, n).permute(0, 2, 4, 3, 5, 1)
        tokens = tokens.reshape(b, h // n, w // n, n * n, c)  # [B, rows, columns, N, C]
        qkv = self.qkv(tokens).unflatten(-1, (3, self.heads, c // self.heads))
        q, k, v = qkv.permute(4, 0, 1, 2, 5, 3, 6)  # [B, rows, columns, heads, N, dim]
        bias = self.relative_position_bias_table[compute_position_index(n, x.device)].permute(2, 0, 1).to(q.dtype)

        def part(rows: slice, columns: slice, axes: str) -> Tensor:
            inside = [t[:, rows, columns] for t in (q, k, v)]
            kept = bias + mask_apart(n, self.shift, axes, x.device, q.dtype) if axes else bias
            flat = [t.flatten(0, 2) for t in inside]
            out = F.scaled_dot_product_attention(*flat, attn_mask=kept.expand(flat[0].shape[0], -1, -1, -1))
            return out.view(inside[0].shape)

        # A single row or column of windows leaves the others empty; an empty part is a part.
        out = torch.cat(
            [torch.cat([part(rows, cols, axes) for cols, axes in along], dim=2) for rows, along in self.regions], dim=1
        )
        out = self.proj(out.transpose(3, 4).reshape(tokens.shape)).view(b, h // n, w // n, n, n, c)
        out = out.permute(0, 5, 1, 3, 2, 4).reshape(b, c, h, w)
        return out.roll((self.shift, self.shift), (2, 3)) if self.shift else out


class Mlp(nn.Module):
    """1 x 1 convolution, exact GELU, 1 x 1 convolution."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SwinBlock(nn.Module):
    """u = x + attention(norm(x)), then u + mlp(norm(u)). Norms are over the whole map. x: [B, dim, H, W]."""

    def __init__(
        self, dim: int, heads: int, window: int, shift: int, hidden: int, mask: str = "released", groups: int = 32
    ) -> None:
        super().__init__()
        self.norm1 = group_norm(dim, 1e-5, groups)
        self.attn = WindowAttention(dim, heads, window, shift, mask)
        self.norm2 = group_norm(dim, 1e-5, groups)
        self.mlp = Mlp(dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Projection(nn.Module):
    """A 1 x 1 convolution under the name that patch embeddings have for theirs."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class SwinLayer(nn.Module):
    """Blocks of windowed attention at a width of their own, every second one shifted; no residual around them.

    x: [B, channels, H, W]. shift 0: none is shifted.
    """

    def __init__(
        self, channels: int, dim: int, depth: int, heads: int, window: int, shift: int, hidden: int, mask: str, groups:
        int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.patch_embed = Projection(channels, dim)
        self.blocks = nn.ModuleList(
            [SwinBlock(dim, heads, window, shift if i % 2 else 0, hidden, mask, groups) for i in range(depth)]
        )
        self.patch_unembed = Projection(dim, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        for block in self.blocks:
            x = block(x)
        return self.patch_unembed(x)
