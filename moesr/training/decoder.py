"""Stage 2: the frequency-compensated decoder on latents that stage 1 sampled (paper, eq. 6 and appendix A.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import AutoencoderConfig
from ..evaluation.lpips import LPIPS
from ..networks.autoencoder import Autoencoder
from . import losses, weight_files
from .adversary import PatchDiscriminator
from .engine import Engine
from .first_stage import enlarge
from .loop import Batch, LoopConfig, Losses, Task, autocast
from .run_log import join_images

#: Modules that stage 2 adds to a first stage's decoder. A config may leave out either.
LR_PARTS = ("fusion_layer_1", "unet_1")


@dataclass(frozen=True)
class DecoderConfig:
    """Weights of the losses beside that of L1, which is 1 (eq. 6)."""

    loop: LoopConfig = field(default_factory=LoopConfig)
    #: Side in pixels of the crops whose latents are sampled once, and how many of them.
    crop: int = 128
    cache: int = 2048
    #: Denoising steps with which the latents are sampled.
    sample_steps: int = 50
    #: "fcd" trains LR fusion and AFF U-Net (as in the paper), "decoder" all of the decoder.
    train: str = "fcd"
    #: Weight of LPIPS by network.
    lpips: dict[str, float] = field(default_factory=lambda: {"vgg": 1.0})
    frequency_weight: float = 10.0
    #: Step from which the PatchGAN counts.
    gan_start: int = 1000
    gan_weight: float = 0.1
    #: Step from which batch norms no longer change their statistics.
    freeze_norms: int = 10_000_000
    ema: float = 0.999


class FCD(Task):
    """Trains the decoder. Batches hold lr, z (sampled latents) and hr.

    skipped: the first stage was trained with `skip`.
    """

    network: Autoencoder

    def __init__(
        self, model: AutoencoderConfig, config: DecoderConfig, engine: Engine, *, first_stage: Mapping[str, Tensor],
        metrics: str | Path | None, skipped: bool = False,
    ) -> None:  # fmt: skip
        torch.manual_seed(config.loop.seed)
        self.config = config
        network = Autoencoder(model)
        decoder = network.decoder
        missing = network.load_state_dict(first_stage, strict=False).missing_keys
        trained = [getattr(decoder, part) for part in LR_PARTS if hasattr(decoder, part)]
        if model.lr_skip and not skipped:  # begin at the upsampled LR image, which the first stage does not know
            trained.append(decoder.conv_out)
            for parameter in decoder.conv_out.parameters():
                nn.init.zeros_(parameter)
        if config.train != "fcd":
            trained = [decoder, network.post_quant_conv]
        assert all(k.startswith(tuple(f"decoder.{part}." for part in LR_PARTS)) for k in missing), missing
        network.requires_grad_(False)
        for module in trained:
            module.requires_grad_(True)
        self.distances = {name: LPIPS(name, metrics) for name in config.lpips}
        super().__init__(
            config.loop, engine, network, ema=config.ema, betas=(0.9, 0.99), adversary=PatchDiscriminator(),
            parameters=[p for p in network.parameters() if p.requires_grad], measures=list(self.distances.values()),
        )  # fmt: skip

    def step(self, batch: Batch, index: int) -> Losses:
        config, hr = self.config, batch["hr"]
        self.set_rate(index)
        if index >= config.freeze_norms:
            freeze_norms(self.network)
        out = self.engine.forward(self.network, self.predict, batch)
        l1, frequency = F.l1_loss(out, hr), losses.focal_frequency_loss(out, hr)
        loss = l1 + config.frequency_weight * frequency
        report: Losses = {"l1": l1.detach(), "frequency": frequency.detach()}
        shifted, real = losses.crop_randomly(out, hr)
        with autocast(config.loop, hr.device):
            for name, distance in self.distances.items():
                perceptual = distance(shifted, real).mean()
                loss = loss + config.lpips[name] * perceptual
                report[name] = perceptual.detach()
        opposed = index >= config.gan_start
        if opposed:
            loss = loss - config.gan_weight * self.judge(shifted)
        self.engine.backward(loss)
        if opposed:
            report["adversary"] = self.oppose(torch.cat([real, shifted.detach()]))
        self.finish(opposed)
        return report

    def predict(self, batch: Batch) -> Tensor:
        """Images [B, 3, H, W] decoded from the batch's latents."""
        lr_up = enlarge(batch["lr"], batch["hr"])
        with autocast(self.config.loop, lr_up.device):
            with torch.no_grad():
                features = self.network.features(lr_up)
            return self.network.decode(batch["z"], features).float()

    def pictures(self, batch: Batch) -> Tensor:
        """LR images, results, HR images."""
        return join_images(batch, self.predict(batch))

    def export(self, folder: Path) -> None:
        weight_files.save(self.ema.weights(self.network), folder / "decoder.safetensors")


def freeze_norms(network: nn.Module) -> None:
    """Let batch norms use their statistics, and no longer change them."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
