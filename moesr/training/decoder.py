"""Stage 2: the frequency-compensated decoder on latents that stage 1 sampled (paper, eq. 6 and appendix A.1)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import AutoencoderConfig
from ..evaluation.lpips import LPIPS
from ..images.resize import resize
from ..networks.autoencoder import Autoencoder
from . import losses, weights
from .adversary import PatchDiscriminator
from .board import side_by_side
from .ema import EMA
from .engine import Engine
from .latents import enlarge
from .loop import Batch, LoopConfig, Stateful, autocast, rate
from .unrolled import freeze_norms

#: What stage 2 adds to a first stage's decoder, by the names of the modules; a config may leave either out.
LR_PARTS = ("fusion_layer_1", "unet_1")


@dataclass(frozen=True)
class DecoderConfig:
    """L1 + LPIPS + GAN + 10 x focal frequency loss (eq. 6)."""

    loop: LoopConfig = field(default_factory=LoopConfig)
    #: Side in pixels of the crops whose latents are sampled once, and how many of them.
    crop: int = 256
    cache: int = 2048
    #: Side in pixels of the windows that are cut from them (0: half of the crop).
    size: int = 0
    #: How the latents are sampled.
    sample_steps: int = 50
    sampler: str = "auto"
    #: "fcd" trains fusion and AFF U-Net (the paper: the first stage is frozen), "decoder" all of the decoder.
    train: str = "fcd"
    l1_weight: float = 1.0
    #: Weight of LPIPS by network; with `alternate` the networks take turns, one per step.
    lpips: dict[str, float] = field(default_factory=lambda: {"vgg": 1.0})
    alternate: bool = False
    #: Of a regular grid, see losses.grid.
    grid_weight: float = 0.0
    frequency_weight: float = 10.0
    #: Of L1 between the downscaled HR image and the downscaled result.
    consistency: float = 0.0
    #: Step from which the PatchGAN counts.
    gan_start: int = 1000
    gan_weight: float = 0.1
    #: Step from which batch norms keep the statistics that they have.
    freeze_norms: int = 10_000_000
    ema: float = 0.999


class FCD:
    """Trains the decoder. Batches hold lr, z (sampled latents) and hr. See loop.Task.

    `skipped`: the first stage has learned with `skip`.
    """

    def __init__(
        self,
        model: AutoencoderConfig,
        config: DecoderConfig,
        first_stage: dict[str, Tensor],
        metrics: str | Path | None,
        skipped: bool = False,
    ) -> None:
        torch.manual_seed(config.loop.seed)
        self.config = config
        self.engine = Engine(config.loop.accumulate, config.loop.precision)
        self.network = Autoencoder(model)
        missing = self.network.load_state_dict(first_stage, strict=False).missing_keys
        trained = [getattr(self.network.decoder, part) for part in LR_PARTS if hasattr(self.network.decoder, part)]
        if model.lr_skip and not skipped:  # the first stage knows no LR image: training begins at the upsampled one
            trained.append(self.network.decoder.conv_out)
            for parameter in self.network.decoder.conv_out.parameters():
                torch.nn.init.zeros_(parameter)
        if config.train != "fcd":
            trained = [self.network.decoder, self.network.post_quant_conv]
        assert all(k.startswith(tuple(f"decoder.{part}." for part in LR_PARTS)) for k in missing), missing
        self.network.requires_grad_(False)
        for module in trained:
            module.requires_grad_(True)
        self.parameters = [p for p in self.network.parameters() if p.requires_grad]
        self.distances = {name: LPIPS(name, metrics) for name in config.lpips}
        self.adversary = PatchDiscriminator()
        self.optimiser = torch.optim.AdamW(self.parameters, config.loop.lr, betas=(0.9, 0.99), weight_decay=0)
        self.opponent = torch.optim.AdamW(self.adversary.parameters(), config.loop.lr, betas=(0.5, 0.9), weight_decay=0)
        self.ema = EMA(self.network, config.ema)
        self.parts: dict[str, Stateful] = {
            "network": self.network, "adversary": self.adversary, "optimiser": self.optimiser,
            "opponent": self.opponent, "ema": self.ema,
        }  # fmt: skip

    def to(self, device: torch.device) -> None:
        for module in (self.network, self.adversary, *self.distances.values()):
            module.to(device)
        self.ema.to(device)

    def step(self, batch: Batch, index: int) -> dict[str, float]:
        config, hr = self.config, batch["hr"]
        for group in (*self.optimiser.param_groups, *self.opponent.param_groups):
            group["lr"] = rate(config.loop, index)
        if index >= config.freeze_norms:
            freeze_norms(self.network)
        out = self.engine.forward(self.network, self.predict, batch)
        loss = self._pixel_loss(out, batch, report := {})
        names = sorted(self.distances)
        if config.alternate:
            names = [names[index % len(names)]]
        shifted, real = losses.phase(out, hr)
        with autocast(config.loop, hr.device):
            for name in names:
                perceptual = self.distances[name](shifted, real).mean()
                loss = loss + config.lpips[name] * len(self.distances) / len(names) * perceptual
                report[name] = perceptual.item()
        steps: list[tuple[torch.optim.Optimizer, list[nn.Parameter] | None]] = [(self.optimiser, self.parameters)]
        if index >= config.gan_start:
            self.adversary.requires_grad_(False)
            with autocast(config.loop, hr.device):
                loss = loss - config.gan_weight * self.adversary(shifted).float().mean()
            self.adversary.requires_grad_(True)
        self.engine.backward(loss)
        if index >= config.gan_start:
            report["adversary"] = self._oppose(shifted.detach(), real)
            steps.append((self.opponent, None))
        if self.engine.step(*steps):
            self.ema.update(self.network)
        return report

    def _oppose(self, fake: Tensor, true: Tensor) -> float:
        """Gradients of the adversary; its hinge loss, 1 where it cannot tell."""
        with autocast(self.config.loop, fake.device):
            scores = self.engine.forward(self.adversary, self.adversary, torch.cat([true, fake])).float()
        loss = losses.hinge_discriminator(*scores.chunk(2))
        self.engine.backward(loss)
        return loss.item()

    def _pixel_loss(self, out: Tensor, batch: Batch, report: dict[str, float]) -> Tensor:
        config, hr = self.config, batch["hr"]
        l1, frequency = F.l1_loss(out, hr), losses.focal_frequency_loss(out, hr)
        loss = config.l1_weight * l1 + config.frequency_weight * frequency
        report |= {"l1": l1.item(), "ffl": frequency.item()}
        if config.grid_weight:
            repeated = losses.grid(out, average=self.engine.average)
            loss = loss + config.grid_weight * repeated
            report["grid"] = repeated.item()
        if config.consistency:
            size = (batch["lr"].shape[-2], batch["lr"].shape[-1])
            consistent = F.l1_loss(resize(out, size), resize(hr, size))
            loss = loss + config.consistency * consistent
            report["consistency"] = consistent.item()
        return loss

    def predict(self, batch: Batch) -> Tensor:
        """Images [B, 3, H, W] decoded from the batch's latents."""
        lr_up = enlarge(batch["lr"], batch["hr"])
        with autocast(self.config.loop, lr_up.device):
            with torch.no_grad():
                features = self.network.features(lr_up)
            return self.network.decode(batch["z"], features).float()

    def pictures(self, batch: Batch) -> Tensor:
        """The LR image as it is (enlarged), the result with averaged weights, the HR image."""
        kept, self.network = self.network, self.ema.averaged(self.network)
        try:
            out = self.predict(batch)
        finally:
            self.network = kept
        return side_by_side(batch, out)

    def export(self, folder: Path) -> None:
        weights.save(self.ema.weights(self.network), folder / "decoder.safetensors")
