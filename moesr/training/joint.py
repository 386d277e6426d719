"""The decoder and the last time expert together: the expert's last steps are judged by the image that comes of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import ModelConfig, with_space_experts
from ..diffusion.process import from_config
from ..networks.denoiser import denoiser
from ..networks.space_moe import average_experts, exchange_weights
from . import draws, weights
from .decoder import FCD, DecoderConfig, enlarged
from .ema import EMA
from .latents import shown
from .loop import Batch


class Joint(FCD):
    """Trains the decoder and expert 0, which alone sees the last timesteps (ours; not in the paper). See loop.Task.

    Batches hold lr, hr, x0, y and z: the state at timestep `start` that experts with more noise sampled. Most batches
    take one step from there to the clean latent; the share `onward` goes on to a random lower timestep first, so that
    the expert serves any number of steps. The experts above stay as stage 1 left them.
    """

    def __init__(
        self,
        model: ModelConfig,
        config: DecoderConfig,
        first_stage: dict[str, Tensor],
        expert: dict[str, Tensor],
        start: int,
        gamma: float,
        metrics: str | Path | None,
        skipped: bool = False,
    ) -> None:
        super().__init__(model.autoencoder, config, first_stage, metrics, skipped)
        self.process, self.start, self.gamma = from_config(model.process), start, gamma
        groups = {int(k.split(".moe_blocks.")[1].split(".")[0]) for k in expert if ".moe_blocks." in k}
        self.expert = denoiser(with_space_experts(model.unet, len(groups)))
        self.expert.load_state_dict(expert)
        self.networks.append(self.expert)
        self.parameters = [*self.parameters, *self.expert.parameters()]
        self.optimiser.add_param_group({"params": list(self.expert.parameters())})
        self.expert_ema = EMA(self.expert, config.ema)
        self.parts |= {"expert": self.expert, "expert_ema": self.expert_ema}

    def to(self, device: torch.device) -> None:
        super().to(device)
        self.expert_ema.to(device)

    def forward(self, batch: Batch, fidelity: float) -> tuple[Tensor, Tensor | None]:
        """Images, and how far the latents of bicubic images, of a quarter of each, are from being decoded to them."""
        out = self.predict(batch, fidelity)
        if not self.config.smooth_weight:
            return out, None
        (height, width), factor = (side // 2 for side in batch["y"].shape[-2:]), self.network.config.factor
        y = batch["y"][..., :height, :width]
        lr_up = enlarged(batch)[..., : height * factor, : width * factor]
        return out, F.l1_loss(self.decoded(y, lr_up, fidelity), lr_up)

    def latent(self, batch: Batch) -> Tensor:
        z, y, lr, t = batch["z"], batch["y"], batch["lr"], self.start
        if torch.rand(()) < self.config.onward:
            with torch.no_grad():
                x0 = self._x0(z, t, y, lr)
            torch.clear_autocast_cache()  # or the weights as they were cast here, without gradient, would be used again
            t = int(torch.randint(self.start, ()))
            z = self.process.add_noise(x0, y, draws.normal(x0, batch, self.config.loop.seed, "noise"), t)
        return self._x0(z, t, y, lr)

    def _x0(self, z: Tensor, t: int, y: Tensor, lr: Tensor) -> Tensor:
        out = self.expert(self.process.scale_input(z, t), torch.full((len(z),), t, device=z.device), shown(lr, z))
        return self.process.x0(out.float(), z, t, y)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        kept, self.expert = self.expert, self.expert_ema.averaged(self.expert)
        try:
            with super().averaged():
                yield
        finally:
            self.expert = kept

    def after_step(self) -> None:
        super().after_step()
        exchange_weights(self.expert, self.gamma)
        self.expert_ema.update(self.expert)

    def export(self, folder: Path) -> None:
        super().export(folder)
        grouped = self.expert_ema.weights(self.expert)
        weights.save(grouped, folder / "stage0_grouped.safetensors")
        weights.save(average_experts(grouped), folder / "stage0.safetensors")
