"""Exponential moving average of parameters, with the warm-up that released checkpoints were made with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class EMA:
    """shadow <- shadow - (1 - d)(shadow - parameter), d = min(decay, (1 + n) / (10 + n)) at the n-th update.

    It follows the parameters that require a gradient. Buffers (batch norms' statistics) are not averaged.
    """

    def __init__(self, module: nn.Module, decay: float = 0.9999) -> None:
        self.decay, self.updates = decay, 0
        self.shadow = {k: p.detach().clone() for k, p in module.named_parameters() if p.requires_grad}

    def rate(self) -> float:
        """The decay d of the current update."""
        return min(self.decay, (1 + self.updates) / (10 + self.updates))

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take one step towards the module's parameters, in place."""
        self.updates += 1
        parameters = [p.detach() for p in module.parameters() if p.requires_grad]
        get_ema_multi_avg_fn(self.rate())(list(self.shadow.values()), parameters, self.updates)

    def weights(self, module: nn.Module) -> dict[str, Tensor]:
        """The module's state dict with averaged parameters in place of its own."""
        return {**module.state_dict(), **self.shadow}

    def to(self, device: torch.device) -> None:
        """Keep the averages on a device: that of the module."""
        self.shadow = {k: v.to(device) for k, v in self.shadow.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "shadow": self.shadow}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]
        for name, value in state["shadow"].items():
            self.shadow[name].copy_(value)
