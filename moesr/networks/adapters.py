"""Settings that change what a network's convolutions do: restore and fidelity of small models (ours)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Adapter(nn.Module):
    """What the settings add to a 3 x 3 convolution: one change of low rank each (LoRA, Hu et al., arXiv 2106.09685).

    A setting is how much of its change is added, so at 0 the network is as it was without. ranks: of each setting's
    change. A new adapter adds nothing.
    """

    def __init__(self, channels: int, out_channels: int, ranks: Sequence[int]) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, sum(ranks), 3, padding=1, bias=False)
        self.up = nn.Conv2d(sum(ranks), out_channels, 1, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor, strengths: Tensor) -> Tensor:
        """x [B, channels, H, W], strengths [B or 1, sum of ranks, 1, 1] from `spread` -> [B, out_channels, H, W]."""
        return self.up(self.down(x) * strengths)


def spread(settings: Tensor, ranks: Sequence[int]) -> Tensor:
    """Settings [B, n] as the strength of every channel of an adapter: [B, sum of ranks]."""
    return torch.cat([settings[:, i : i + 1].expand(-1, rank) for i, rank in enumerate(ranks)], dim=1)


def add_adapter(h: Tensor, adapter: Adapter | None, x: Tensor, strengths: Tensor | None) -> Tensor:
    """A convolution's output h with what its adapter adds for the same input x, if there are an adapter and strengths.

    strengths: [B or 1, sum of ranks, 1, 1]; None where all settings are 0.
    """
    return h if adapter is None or strengths is None else h + adapter(x, strengths)
