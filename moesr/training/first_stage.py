"""First stage: VQ-GAN (Esser et al., arXiv 2012.09841) or KL (LDM), the latent space everything else lives in."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import AutoencoderConfig
from ..evaluation.lpips import LPIPS
from ..images.resize import resize
from ..networks.autoencoder import Autoencoder
from . import draws, losses, weights
from .adversary import PatchDiscriminator
from .board import side_by_side
from .ema import EMA
from .engine import Engine
from .latents import enlarge
from .loop import Batch, LoopConfig, Stateful, autocast, rate


@dataclass(frozen=True)
class FirstStageConfig:
    """L1 + LPIPS + commitment, and from `gan_start` on a hinge PatchGAN with VQ-GAN's adaptive weight.

    Up to `quantise_start` latents pass unquantised; then the codebook starts from latents it has seen. A KL stage has
    `kl_weight` times the KL divergence of a latent's element instead. `refine` trains the AFF U-Net along with the rest
    instead of leaving it to the decoder's stage. `skip` adds the upsampled LR image to the result, for a model with
    `lr_skip`: latents then need not repeat it, and carry detail. `guide_weight` times the squared distance from the
    principal components of detail (see `detail_components`) is added; left to itself a small network takes hours to
    find out that detail is worth encoding (0: no guide; KL only).
    """

    loop: LoopConfig = field(default_factory=LoopConfig)
    crop: int = 256
    lpips: str = "vgg"
    lpips_weight: float = 1.0
    commitment: float = 0.25
    gan_start: int = 10_000_000
    gan_weight: float = 0.8
    quantise_start: int = 0
    kl_weight: float = 1e-5
    refine: bool = False
    skip: bool = False
    guide_weight: float = 0.0
    ema: float = 0.999


class FirstStage:
    """Trains encoder, codebook and decoder; LR fusion is not part of this stage. Batches hold hr and lr. See loop.Task.

    `guide`: the convolution weight [C, 3, factor, factor] of the guide's components.
    """

    def __init__(
        self,
        model: AutoencoderConfig,
        config: FirstStageConfig,
        metrics: str | Path | None,
        guide: Tensor | None = None,
        engine: Engine | None = None,
    ) -> None:
        torch.manual_seed(config.loop.seed)
        self.config = config
        self.engine = engine or Engine(config.loop.accumulate, config.loop.precision)
        alone = replace(model, lr_fusion=False, lr_skip=False, refine=config.refine, scale_factor=1, estimator=False)
        self.network = Autoencoder(alone)
        self.guide = guide
        self.at = -1  # the step that was worked on last
        if model.kind == "kl":  # latents start nearly without noise
            self._quieten(model.embed_dim)
        if config.skip:  # training begins at the upsampled image
            torch.nn.init.zeros_(self.network.decoder.conv_out.weight)
        self.distance = LPIPS(config.lpips, metrics)
        self.adversary = PatchDiscriminator()
        self.optimiser = torch.optim.AdamW(self.network.parameters(), config.loop.lr, betas=(0.9, 0.99), weight_decay=0)
        self.opponent = torch.optim.AdamW(self.adversary.parameters(), config.loop.lr, betas=(0.5, 0.9), weight_decay=0)
        self.ema = EMA(self.network, config.ema)
        self.parts: dict[str, Stateful] = {
            "network": self.network, "adversary": self.adversary, "optimiser": self.optimiser,
            "opponent": self.opponent, "ema": self.ema,
        }  # fmt: skip

    def to(self, device: torch.device) -> None:
        for module in (self.network, self.adversary, self.distance):
            module.to(device)
        self.ema.to(device)
        if self.guide is not None:
            self.guide = self.guide.to(device)

    @torch.no_grad()
    def _quieten(self, channels: int) -> None:
        bias = self.network.quant_conv.bias
        assert bias is not None
        bias[channels:] = -6.0  # of the log variance

    def step(self, batch: Batch, index: int) -> dict[str, float]:
        config, net, image = self.config, self.network, batch["hr"]
        for group in (*self.optimiser.param_groups, *self.opponent.param_groups):
            group["lr"] = rate(config.loop, index)
        if net.config.kind == "vq" and self.at != index == config.quantise_start:
            self._start_codebook(image)
        self.at = index
        partly = net.config.kind == "vq"  # codes wait for `quantise_start`
        out, moments, code_loss = self.engine.forward(net, self.reconstruct, batch, index, partly=partly)
        with autocast(config.loop, image.device):
            perceptual = self.distance(*losses.phase(out, image)).mean()
        l1 = F.l1_loss(out, image)
        loss = reconstruction = l1 + config.lpips_weight * perceptual
        report = {"l1": l1.item(), "lpips": perceptual.item(), "codes": code_loss.item()}
        if index >= config.gan_start:
            self.adversary.requires_grad_(False)
            adversarial = -self.adversary(out).mean()
            self.adversary.requires_grad_(True)
            last = net.decoder.conv_out.weight
            weight = losses.adaptive_weight(reconstruction, adversarial, last, self.engine.average)
            loss = loss + config.gan_weight * weight * adversarial
        if self.guide is not None:
            components = F.conv2d(detail(image), self.guide, stride=net.config.factor)
            guided = F.mse_loss(moments[:, : len(self.guide)], components)
            loss = loss + config.guide_weight * guided
            report["guide"] = guided.item()
        self.engine.backward(loss + code_loss)
        steps: list[tuple[torch.optim.Optimizer, list[torch.nn.Parameter] | None]] = []
        steps.append((self.optimiser, list(net.parameters())))
        if index >= config.gan_start:
            scores = self.engine.forward(self.adversary, self.adversary, torch.cat([image, out.detach()]))
            against = losses.hinge_discriminator(*scores.chunk(2))
            self.engine.backward(against)
            steps.append((self.opponent, None))
            report["adversary"] = against.item()
        if self.engine.step(*steps):
            self.ema.update(net)
        return report

    def reconstruct(self, batch: Batch, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Images [B, 3, H, W] again, the moments they were encoded to, and the loss of codes or of the posterior."""
        with autocast(self.config.loop, batch["hr"].device):
            moments = self.network.moments(batch["hr"]).float()
            z, code_loss = self._latent(moments, batch, index)
            out = self.network.decode(z, quantize=False).float()
            return out + self._upsampled(batch) if self.config.skip else out, moments, code_loss

    @staticmethod
    def _upsampled(batch: Batch) -> Tensor:
        return enlarge(batch["lr"], batch["hr"])

    def _latent(self, moments: Tensor, batch: Batch, index: int) -> tuple[Tensor, Tensor]:
        if self.network.config.kind == "kl":
            mean, log_variance = moments.chunk(2, dim=1)
            log_variance = log_variance.clamp(-30, 20)
            divergence = (mean.square() + log_variance.exp() - 1 - log_variance).mean() / 2
            z = mean + (log_variance / 2).exp() * draws.normal(mean, batch, self.config.loop.seed, "posterior")
            return z, self.config.kl_weight * divergence
        return self._quantise(moments) if index >= self.config.quantise_start else (moments, moments.new_zeros(()))

    def _quantise(self, z: Tensor) -> tuple[Tensor, Tensor]:
        codes = self.network.quantize(z)
        loss = F.mse_loss(codes, z.detach()) + self.config.commitment * F.mse_loss(z, codes.detach())
        return z + (codes - z).detach(), loss  # straight-through

    @torch.no_grad()
    def _start_codebook(self, image: Tensor) -> None:
        codes = self.network.quantize.embedding.weight
        with autocast(self.config.loop, image.device):
            z = self.engine.gathered(self.network.moments(image).float())
        cells = z.movedim(1, -1).flatten(0, -2)
        chosen = cells[torch.randint(len(cells), (len(codes),))]
        codes.copy_(chosen + 0.02 * chosen.std(0) * torch.randn_like(chosen))
        self.ema.shadow["quantize.embedding.weight"].copy_(codes)

    def pictures(self, batch: Batch) -> Tensor:
        """The LR image as it is (enlarged), the HR image encoded and decoded, the HR image."""
        kept, self.network = self.network, self.ema.averaged(self.network)
        try:
            out = self.reconstruct(batch, self.at)[0]
        finally:
            self.network = kept
        return side_by_side(batch, out)

    def export(self, folder: Path) -> None:
        weights.save(self.ema.weights(self.network), folder / "first_stage.safetensors")


def detail(image: Tensor) -> Tensor:
    """What of images [B, 3, H, W] is lost when they are made four times smaller and enlarged again."""
    height, width = image.shape[-2:]
    return image - resize(resize(image, (height // 4, width // 4)), (height, width))


def detail_components(images: Tensor, count: int, factor: int) -> Tensor:
    """The `count` principal components of detail in cells of `factor` x `factor` pixels, as a convolution's weight.

    images: [B, 3, H, W]. Returns [count, 3, factor, factor], scaled so that the first component has unit variance.
    """
    cells = F.pixel_unshuffle(detail(images), factor).movedim(1, -1).flatten(0, -2).double()  # [cells, 3 factor^2]
    values, vectors = torch.linalg.eigh(cells.T @ cells / len(cells))
    components = vectors.flip(1)[:, :count].T / values[-1].sqrt()
    return components.view(count, 3, factor, factor).float()
