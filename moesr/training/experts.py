"""Stage 1: the time experts with Space MoE (paper, section 3 and appendix A.1), over either process."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from ..config import ModelConfig, with_space_experts
from ..diffusion.experts import ExpertBank
from ..diffusion.process import Process, from_config
from ..networks.denoiser import denoiser
from ..networks.space_moe import average_experts, repeat_expert
from . import random_draws, weight_files
from .engine import Engine
from .loop import Batch, LoopConfig, Losses, Task, autocast


@dataclass(frozen=True)
class ExpertConfig:
    """L2 on what the process predicts, for timesteps of one expert's range."""

    loop: LoopConfig = field(default_factory=LoopConfig)
    #: The loop of one network on all timesteps, of which every expert starts as a copy. None: there is none.
    trunk: LoopConfig | None = None
    #: Side in pixels of the crops whose latents are trained on.
    crop: int = 128
    #: FFNs per Space MoE layer, exchanged by EWA with `gamma` after every step.
    space_experts: int = 4
    gamma: float = 0.999
    ema: float = 0.9999


class Expert(Task):
    """Trains one network on timesteps low <= t < high of `span`.

    Batches hold x0 and y, the latents of the HR image and of the upsampled LR image; lr, the condition at their size;
    and, for networks that take them, settings [B, 2], which are restore and fidelity. name: of the files it exports.
    trunk: weights to start from.
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
            # Space experts start equal: a mean of unrelated ones would be useless until EWA has drawn them together.
            network.load_state_dict(repeat_expert(network.state_dict(), config.space_experts))
            for parameter in network.out[2].parameters():
                nn.init.zeros_(parameter)
        else:
            network.load_state_dict(trunk)
        super().__init__(loop, engine, network, ema=config.ema, gamma=config.gamma)

    def step(self, batch: Batch, index: int) -> Losses:
        self.set_rate(index)
        loss = self.engine.forward(self.network, self.loss, batch)
        self.engine.backward(loss)
        self.finish()
        return {"l2": loss.detach()}

    def loss(self, batch: Batch) -> Tensor:
        """Mean squared error between the network's output and its target, one random timestep per item."""
        x0, seed = batch["x0"], self.loop.seed
        t = random_draws.draw_integers(*self.span, batch, x0, seed, "t")
        return self.errors(batch, t, random_draws.draw_normal(x0, batch, seed, "noise")).mean()

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
        weight_files.save(grouped, folder / f"{self.name}_grouped.safetensors")
        weight_files.save(average_experts(grouped), folder / f"{self.name}.safetensors")


def predict_x0(
    bank: ExpertBank, process: Process, z: Tensor, t: int, y: Tensor, condition: Tensor, *settings: Tensor
) -> Tensor:
    """x0 of states z [B, C, h, w] at timestep t, as its expert predicts it."""
    with bank.stage(t) as expert:
        out = expert(process.scale_input(z, t), torch.full((len(z),), t, device=z.device), condition, *settings)
    return process.x0(out.float(), z, t, y)
