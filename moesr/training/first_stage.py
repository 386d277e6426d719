"""First stage: VQ-GAN (Esser et al., arXiv 2012.09841), the latent space everything else lives in."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import AutoencoderConfig
from ..evaluation.lpips import LPIPS
from ..networks.autoencoder import Autoencoder
from . import losses, weights
from .ema import EMA
from .loop import Batch, LoopConfig, Stateful, autocast, rate


@dataclass(frozen=True)
class FirstStageConfig:
    """L1 + LPIPS + commitment, and from `gan_start` on a hinge PatchGAN with VQ-GAN's adaptive weight.

    Up to `quantise_start` latents pass unquantised; then the codebook starts from latents it has seen. `refine` trains
    the AFF U-Net along with the rest instead of leaving it to the decoder's stage.
    """

    loop: LoopConfig = field(default_factory=LoopConfig)
    crop: int = 256
    lpips: str = "vgg"
    lpips_weight: float = 1.0
    commitment: float = 0.25
    gan_start: int = 10_000_000
    gan_weight: float = 0.8
    quantise_start: int = 0
    refine: bool = False
    ema: float = 0.999


class FirstStage:
    """Trains encoder, codebook and decoder; fusion and refinement are not part of this stage. See loop.Task."""

    def __init__(self, model: AutoencoderConfig, config: FirstStageConfig, metrics: str | Path | None) -> None:
        torch.manual_seed(config.loop.seed)
        self.config = config
        self.network = Autoencoder(replace(model, lr_fusion=False, lr_skip=False, refine=config.refine))
        self.distance = LPIPS(config.lpips, metrics)
        self.adversary = losses.PatchDiscriminator()
        self.optimiser = torch.optim.AdamW(self.network.parameters(), config.loop.lr, betas=(0.9, 0.99), weight_decay=0)
        self.opponent = torch.optim.AdamW(self.adversary.parameters(), config.loop.lr, betas=(0.5, 0.9), weight_decay=0)
        self.ema = EMA(self.network, config.ema)
        self.parts: dict[str, Stateful] = {
            "network": self.network, "adversary": self.adversary, "optimiser": self.optimiser,
            "opponent": self.opponent, "ema": self.ema,
        }  # fmt: skip

    def step(self, batch: Batch, index: int) -> dict[str, float]:
        config, net, image = self.config, self.network, batch["hr"]
        for group in (*self.optimiser.param_groups, *self.opponent.param_groups):
            group["lr"] = rate(config.loop, index)
        with autocast(config.loop, image.device):
            z = net.moments(image).float()
            if index == config.quantise_start:
                self._start_codebook(z)
            quantised, code_loss = self._quantise(z) if index >= config.quantise_start else (z, z.new_zeros(()))
            out = net.decoder(net.post_quant_conv(quantised), None, 0.0).float()
            perceptual = self.distance(out, image).mean()
        l1 = F.l1_loss(out, image)
        loss = reconstruction = l1 + config.lpips_weight * perceptual
        report = {"l1": l1.item(), "lpips": perceptual.item(), "codes": code_loss.item()}
        if index >= config.gan_start:
            adversarial = -self.adversary(out).mean()
            weight = losses.adaptive_weight(reconstruction, adversarial, net.decoder.conv_out.weight)
            loss = loss + config.gan_weight * weight * adversarial
        self.optimiser.zero_grad(set_to_none=True)
        (loss + code_loss).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        self.optimiser.step()
        self.ema.update(net)
        if index >= config.gan_start:
            against = losses.hinge_discriminator(self.adversary(image), self.adversary(out.detach()))
            self.opponent.zero_grad(set_to_none=True)
            against.backward()
            self.opponent.step()
            report["adversary"] = against.item()
        return report

    def _quantise(self, z: Tensor) -> tuple[Tensor, Tensor]:
        codes = self.network.quantize(z)
        loss = F.mse_loss(codes, z.detach()) + self.config.commitment * F.mse_loss(z, codes.detach())
        return z + (codes - z).detach(), loss  # straight-through

    @torch.no_grad()
    def _start_codebook(self, z: Tensor) -> None:
        codes = self.network.quantize.embedding.weight
        cells = z.movedim(1, -1).flatten(0, -2)
        chosen = cells[torch.randint(len(cells), (len(codes),))]
        codes.copy_(chosen + 0.02 * chosen.std(0) * torch.randn_like(chosen))
        self.ema.shadow["quantize.embedding.weight"].copy_(codes)

    def export(self, folder: Path) -> None:
        weights.save(self.ema.weights(self.network), folder / "first_stage.safetensors")
