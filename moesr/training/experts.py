"""Stage 1: the time experts with Space MoE (paper, section 3 and appendix A.1), over either process."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from ..config import ModelConfig, with_space_experts
from ..diffusion.process import from_config
from ..networks.denoiser import denoiser
from ..networks.space_moe import average_experts, exchange_weights
from . import draws, weights
from .ema import EMA
from .engine import Engine
from .loop import Batch, LoopConfig, Stateful, autocast, rate


@dataclass(frozen=True)
class ExpertConfig:
    """L2 on what the process predicts, for timesteps of one expert's range.

    `trunk` are the steps one network is first trained on all timesteps; experts then branch from it (0: from scratch).
    `space_experts` FFNs a Space MoE layer, exchanged by EWA with `gamma` after every step.
    `cache` crops of `crop` pixels are encoded once, and windows of `size` pixels (0: half) cut from their latents.
    """

    loop: LoopConfig = field(default_factory=LoopConfig)
    trunk: LoopConfig | None = None
    crop: int = 256
    size: int = 0
    cache: int = 2048
    space_experts: int = 4
    gamma: float = 0.999
    ema: float = 0.9999


class Expert:
    """Trains one network on timesteps low <= t < high. See loop.Task.

    Batches hold lr (the condition), x0 and y: latents of the HR image and of the upsampled LR.
    """

    def __init__(
        self, model: ModelConfig, config: ExpertConfig, loop: LoopConfig, span: tuple[int, int], name: str,
        engine: Engine | None = None,
    ) -> None:  # fmt: skip
        torch.manual_seed(loop.seed)
        self.config, self.loop, self.span, self.name = config, loop, span, name
        self.engine = engine or Engine(loop.accumulate, loop.precision)
        self.process = from_config(model.process)
        self.network = denoiser(with_space_experts(model.unet, config.space_experts))
        _start_equal(self.network)
        for parameter in self.network.out[2].parameters():
            nn.init.zeros_(parameter)
        self.optimiser = torch.optim.AdamW(self.network.parameters(), loop.lr, weight_decay=0)
        self.ema = EMA(self.network, config.ema)
        self.parts: dict[str, Stateful] = {"network": self.network, "optimiser": self.optimiser, "ema": self.ema}

    def branch(self, trunk: dict[str, Tensor]) -> None:
        """Start from the weights of a network trained on all timesteps."""
        self.network.load_state_dict(trunk)
        self.ema = EMA(self.network, self.config.ema)
        self.parts["ema"] = self.ema

    def to(self, device: torch.device) -> None:
        self.network.to(device)
        self.ema.to(device)

    def step(self, batch: Batch, index: int) -> dict[str, float]:
        for group in self.optimiser.param_groups:
            group["lr"] = rate(self.loop, index)
        loss = self.engine.forward(self.network, self.loss, batch)
        self.engine.backward(loss)
        if self.engine.step((self.optimiser, list(self.network.parameters()))):
            exchange_weights(self.network, self.config.gamma)
            self.ema.update(self.network)
        return {"l2": loss.item()}

    def loss(self, batch: Batch) -> Tensor:
        """Mean squared error between the network's output and its target, one random timestep an item."""
        x0, seed = batch["x0"], self.loop.seed
        t = draws.integers(*self.span, batch, x0, seed, "t")
        return self.errors(batch, t, draws.normal(x0, batch, seed, "noise")).mean()

    def errors(self, batch: Batch, t: Tensor, noise: Tensor) -> Tensor:
        """The mean squared error of every item [B] at its timestep, with its noise."""
        x0, y, lr = batch["x0"], batch["y"], batch["lr"]
        z = self.process.add_noise(x0, y, noise, t)
        with autocast(self.loop, x0.device):
            told = (batch["settings"],) if "settings" in batch else ()
            out = self.network(self.process.scale_input(z, t), t, lr, *told)
        target = {"eps": noise, "x0": x0, "residual": y - x0}[self.process.predict]
        return (out.float() - target).square().flatten(1).mean(1)

    def pictures(self, batch: Batch) -> None:
        """None: this stage makes latents."""

    def export(self, folder: Path) -> None:
        """The grouped network, to branch from, and its averaged form, to sample with."""
        grouped = self.ema.weights(self.network)
        weights.save(grouped, folder / f"{self.name}_grouped.safetensors")
        weights.save(average_experts(grouped), folder / f"{self.name}.safetensors")


def _start_equal(network: nn.Module) -> None:
    # Experts that start apart would be averaged into the mean of unrelated functions before EWA draws them together.
    state = network.state_dict()
    network.load_state_dict({k: _of_first(k, state) for k in state})


def _of_first(key: str, state: dict[str, Tensor]) -> Tensor:
    head, found, tail = key.partition(".moe_blocks.")
    return state[f"{head}{found}0.{tail.partition('.')[2]}"] if found else state[key]
