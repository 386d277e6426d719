"""Space MoE: FFN experts over an attention block's tokens, averaged into one for inference (paper, section 3.2)."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

#: Where a key names one of the FFN experts of a layer.
_EXPERT = re.compile(r"\bmoe_blocks\.(\d+)\.")


class FeedForward(nn.Sequential):
    """One expert: Linear, exact GELU, Linear. The Linears sit at 0 and 3, as in released checkpoints."""

    def __init__(self, dim: int, mult: float = 4.0) -> None:
        hidden = round(dim * mult)
        super().__init__(nn.Linear(dim, hidden), nn.GELU(), nn.Identity(), nn.Linear(hidden, dim))


class SpaceMoE(nn.Module):
    """y = x + FFN_i(LayerNorm(x)), where every token meets one of `experts` FFNs (paper, section 3.2).

    With one expert this is the averaged form of inference. With more, tokens are shuffled, one permutation for the
    whole batch, and cut into `experts` groups as even as can be, so that any number of tokens works. x: [B, C, H, W].
    `mult`: width of the FFNs' hidden layer per channel.
    `permutation`: int64 [H * W], to fix the shuffle; None draws one from torch's generator.
    """

    def __init__(self, dim: int, experts: int, mult: float = 4.0) -> None:
        super().__init__()
        self.moe_norm = nn.LayerNorm(dim, eps=1e-5)
        self.moe_blocks = nn.ModuleList([FeedForward(dim, mult) for _ in range(experts)])

    def forward(self, x: Tensor, permutation: Tensor | None = None) -> Tensor:
        b, c, h, w = x.shape
        tokens = self.moe_norm(x.flatten(2).transpose(1, 2))  # [B, HW, C]
        if len(self.moe_blocks) == 1:
            out = self.moe_blocks[0](tokens)
        else:
            if permutation is None:
                permutation = torch.randperm(h * w, device=x.device)
            groups = tokens[:, permutation].tensor_split(len(self.moe_blocks), dim=1)
            mixed = torch.cat([block(group) for block, group in zip(self.moe_blocks, groups)], dim=1)
            out = mixed[:, permutation.argsort()]
        return x + out.transpose(1, 2).reshape(b, c, h, w)


@torch.no_grad()
def exchange_weights(network: nn.Module, gamma: float = 0.999) -> None:
    """EWA, eq. 5: W_i <- gamma W_i + (1 - gamma) mean of the others, in place, for every Space MoE of `network`.

    Call after each optimiser step. In place, because the optimiser must go on holding the same parameters.
    """
    for layer in network.modules():
        if not isinstance(layer, SpaceMoE) or len(layer.moe_blocks) < 2:
            continue
        n = len(layer.moe_blocks)
        for parameters in zip(*(block.parameters() for block in layer.moe_blocks)):
            total = torch.stack(parameters).sum(0)
            for p in parameters:
                # mean of the others = (total - p) / (n - 1); `total` is of the old values, so the order does not matter
                p.copy_(gamma * p + (1 - gamma) * (total - p) / (n - 1))


def average_experts(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same state dict with every layer's FFN experts replaced by their arithmetic mean, as expert 0.

    Keys that are not `....moe_blocks.<i>.<rest>` pass through. The mean is taken in float64 and cast back.
    """
    groups: dict[str, list[Tensor]] = {}
    for key, value in weights.items():
        groups.setdefault(_EXPERT.sub("moe_blocks.0.", key), []).append(value)
    return {key: _average(values) for key, values in groups.items()}


def _average(values: list[Tensor]) -> Tensor:
    if len(values) == 1:
        return values[0]
    total = torch.stack([value.double() for value in values]).sum(0)
    return (total / len(values)).to(values[0].dtype)


def repeat_expert(weights: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """The same state dict with `count` copies of every layer's first FFN expert in place of all that it has."""
    out: dict[str, Tensor] = {}
    for key, value in weights.items():
        found = _EXPERT.search(key)
        if not found or found[1] == "0":
            out |= {_EXPERT.sub(f"moe_blocks.{i}.", key): value for i in range(count if found else 1)}
    return out
