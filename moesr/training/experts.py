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
from .engine import Engine
from .loop import Batch, LoopConfig, Task, autocast


@dataclass(frozen=True)
class ExpertConfig:
    """L2 on what the process predicts, for timesteps of one expert's range."""

    loop: LoopConfig = field(default_factory=LoopConfig)
    #: Steps that one network is first trained on all timesteps; experts then branch from it. None: from scratch.
    trunk: LoopConfig | None = None
    #: Side in pixels of the crops whose latents are trained on.
    crop: int = 128
    #: FFNs per Space MoE layer, exchanged by EWA with `gamma` after every step.
    space_experts: int = 4
    gamma: float = 0.999
    ema: float = 0.9999


class Expert(Task):
    """Trains one network on timesteps low <= t < high of `span`.

    Batches hold x0 and y, latents of the HR image and of the upsampled LR; lr, the condition at their size; and
    settings, restore and fidelity [B, 2], for networks that take these. trunk: weights to start from.
    """

    def __init__(
        self, model: ModelConfig, config: ExpertConfig, loop: LoopConfig, engine: Engine, *, span: tuple[int, int],
        name: str, trunk: dict[str, Tensor] | None = None,
    ) -> None:  # fmt: skip
        torch.manual_seed(loop.seed)
        self.config, self.span, self.name = config, span, name
        self.process = from_config(model.process)
        network = denoiser(with_space_experts(model.unet, config.space_experts))
        if trunk is None:
            _start_equal(network)
            for parameter in network.out[2].parameters():
                nn.init.zeros_(parameter)
        else:
            network.load_state_dict(trunk)
        super().__init__(loop, engine, network, ema=config.ema)

    def step(self, batch: Batch, index: int) -> dict[str, float]:
        self.set_rate(index)
        loss = self.engine.forward(self.network, self.loss, batch)
        self.engine.backward(loss)
        self.finish()
        return {"l2": loss.item()}

    def end_step(self) -> None:
        exchange_weights(self.network, self.config.gamma)

    def loss(self, batch: Batch) -> Tensor:
        """Mean squared error between the network's output and its target, one random timestep per item."""
        x0, seed = batch["x0"], self.loop.seed
        t = draws.integers(*self.span, batch, x0, seed, "t")
        return self.errors(batch, t, draws.normal(x0, batch, seed, "noise")).mean()

    def errors(self, batch: Batch, t: Tensor, noise: Tensor) -> Tensor:
        """The mean squared error of every item [B] at its timestep, with its noise."""
        x0, y, lr = batch["x0"], batch["y"], batch["lr"]
        z = self.process.add_noise(x0, y, noise, t)
        with autocast(self.loop, x0.device):
            settings = (batch["settings"],) if "settings" in batch else ()
            out = self.network(self.process.scale_input(z, t), t, lr, *settings)
        target = {"eps": noise, "x0": x0, "residual": y - x0}[self.process.predict]
        return (out.float() - target).square().flatten(1).mean(1)

    def export(self, folder: Path) -> None:
        """The grouped network, to branch from, and its averaged form, to sample with."""
        grouped = self.ema.weights(self.network)
        weights.save(grouped, folder / f"{self.name}_grouped.safetensors")
        weights.save(average_experts(grouped), folder / f"{self.name}.safetensors")


def _start_equal(network: nn.Module) -> None:
    # Experts that start apart would be averaged into the mean of unrelated functions before EWA draws them together.
    state = network.state_dict()
    network.load_state_dict({k: state[_name_of_first(k)] for k in state})


def _name_of_first(key: str) -> str:
    head, found, tail = key.partition(".moe_blocks.")
    return f"{head}{found}0.{tail.partition('.')[2]}" if found else key
