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
from . import losses, random_draws, weight_files
from .adversary import PatchDiscriminator
from .engine import Engine
from .loop import Batch, LoopConfig, Losses, Task, autocast
from .run_log import join_images

#: Weights of the encoder's distance from its codes (VQ-GAN's beta), and of the KL divergence per latent element (LDM).
COMMITMENT, KL_WEIGHT = 0.25, 1e-5


@dataclass(frozen=True)
class FirstStageConfig:
    """L1 + LPIPS + commitment (VQ) or KL divergence, and a hinge PatchGAN with VQ-GAN's adaptive weight."""

    loop: LoopConfig = field(default_factory=LoopConfig)
    #: Side of a crop in pixels.
    crop: int = 256
    #: Network of LPIPS, "alex" or "vgg".
    lpips: str = "vgg"
    lpips_weight: float = 1.0
    #: Step from which the adversary counts.
    gan_start: int = 10_000_000
    gan_weight: float = 0.8
    #: For models with `lr_skip`: the upsampled LR image is added to the result, so that latents hold detail alone.
    skip: bool = False
    #: Of the squared distance from the principal components of detail (KL only). Without it a small network needs hours
    #: to learn to encode detail.
    guide_weight: float = 0.0
    ema: float = 0.999


class FirstStage(Task):
    """Trains encoder, codebook and decoder, without LR fusion. Batches hold hr and lr.

    guide: the convolution weight [C, 3, factor, factor] that gives the principal components of detail.
    """

    network: Autoencoder

    def __init__(
        self, model: AutoencoderConfig, config: FirstStageConfig, engine: Engine, *, metrics: str | Path | None,
        guide: Tensor | None = None,
    ) -> None:  # fmt: skip
        torch.manual_seed(config.loop.seed)
        self.config, self.guide = config, guide
        self.position = -1  # of the last step
        network = Autoencoder(without_lr(replace(model, scale_factor=1.0)))
        if model.kind == "kl":  # latents start nearly without noise
            with torch.no_grad():
                network.quant_conv.get_parameter("bias")[model.embed_dim :] = -6.0  # of the log variance
        if config.skip:  # training begins at the upsampled image
            torch.nn.init.zeros_(network.decoder.conv_out.weight)
        self.distance = LPIPS(config.lpips, metrics)
        super().__init__(
            config.loop, engine, network, ema=config.ema, betas=(0.9, 0.99), adversary=PatchDiscriminator(),
            measures=[self.distance],
        )  # fmt: skip

    def step(self, batch: Batch, index: int) -> Losses:
        config, net, image = self.config, self.network, batch["hr"]
        self.set_rate(index)
        is_vq = net.config.kind == "vq"
        if is_vq and index == 0 and self.position != 0:
            self._start_codebook(image)
        self.position = index
        out, moments, code_loss = self.engine.forward(net, self.reconstruct, batch)
        with autocast(config.loop, image.device):
            perceptual = self.distance(*losses.crop_randomly(out, image)).mean()
        l1 = F.l1_loss(out, image)
        loss = reconstruction = l1 + config.lpips_weight * perceptual
        report: Losses = {"l1": l1.detach(), "lpips": perceptual.detach(), "codes": code_loss.detach()}
        opposed = index >= config.gan_start
        if opposed:
            adversarial, last = -self.judge(out), net.decoder.conv_out.weight
            weight = losses.adaptive_weight(reconstruction, adversarial, last, self.engine.average)
            loss = loss + config.gan_weight * weight * adversarial
        if self.guide is not None:
            components = F.conv2d(extract_detail(image), self.guide.to(image.device), stride=net.config.factor)
            guided = F.mse_loss(moments[:, : len(self.guide)], components)
            loss = loss + config.guide_weight * guided
            report["guide"] = guided.detach()
        self.engine.backward(loss + code_loss)
        if opposed:
            report["adversary"] = self.oppose(torch.cat([image, out.detach()]))
        self.finish(opposed)
        return report

    def reconstruct(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Images [B, 3, H, W] after encoding and decoding, their moments, and the loss of codes or of the posterior."""
        with autocast(self.config.loop, batch["hr"].device):
            moments = self.network.moments(batch["hr"]).float()
            z, code_loss = self._sample_latent(moments, batch)
            out = self.network.decode(z, quantize=False).float()
            return out + enlarge(batch["lr"], batch["hr"]) if self.config.skip else out, moments, code_loss

    def _sample_latent(self, moments: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        if self.network.config.kind == "vq":
            return self._quantise(moments)
        mean, log_variance = moments.chunk(2, dim=1)
        log_variance = log_variance.clamp(-30, 20)
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).mean() / 2
        z = mean + (log_variance / 2).exp() * random_draws.draw_normal(mean, batch, self.config.loop.seed, "posterior")
        return z, KL_WEIGHT * divergence

    def _quantise(self, z: Tensor) -> tuple[Tensor, Tensor]:
        codes = self.network.quantize(z)
        loss = F.mse_loss(codes, z.detach()) + COMMITMENT * F.mse_loss(z, codes.detach())
        return z + (codes - z).detach(), loss  # straight-through

    @torch.no_grad()
    def _start_codebook(self, image: Tensor) -> None:
        """Set the codes to latents of the first batch, with a little noise."""
        codes = self.network.quantize.embedding.weight
        with autocast(self.config.loop, image.device):
            z = self.engine.gather(self.network.moments(image).float())
        cells = z.movedim(1, -1).flatten(0, -2)
        chosen = cells[torch.randint(len(cells), (len(codes),))]
        codes.copy_(chosen + 0.02 * chosen.std(0) * torch.randn_like(chosen))
        self.ema.shadow["quantize.embedding.weight"].copy_(codes)

    def pictures(self, batch: Batch) -> Tensor:
        """LR images, HR images encoded and decoded, HR images."""
        return join_images(batch, self.reconstruct(batch)[0])

    def export(self, folder: Path) -> None:
        weight_files.save(self.ema.weights(self.network), folder / "first_stage.safetensors")


def without_lr(model: AutoencoderConfig) -> AutoencoderConfig:
    """The config of a model's first stage: what the later stages add is left out."""
    return replace(model, lr_fusion=False, lr_skip=False, refine=False, estimator=False, cleaner_channels=0)


def enlarge(lr: Tensor, hr: Tensor) -> Tensor:
    """LR images [B, 3, h, w] in the size of HR images."""
    return resize(lr, (hr.shape[-2], hr.shape[-1])).clamp(-1, 1)


def resize_condition(lr: Tensor, z: Tensor) -> Tensor:
    """LR images [B, 3, h, w] at the size of the latents `z`: the condition of the experts."""
    size = (z.shape[-2], z.shape[-1])
    return lr if size == tuple(lr.shape[-2:]) else resize(lr, size).clamp(-1, 1)


def extract_detail(image: Tensor) -> Tensor:
    """What images [B, 3, H, W] lose if they are made four times smaller and enlarged again."""
    height, width = image.shape[-2:]
    return image - resize(resize(image, (height // 4, width // 4)), (height, width))


def find_detail_components(images: Tensor, count: int, factor: int) -> Tensor:
    """The `count` principal components of detail in cells of `factor` x `factor` pixels, as a convolution's weight.

    images: [B, 3, H, W]. Returns [count, 3, factor, factor], scaled so that the first component has unit variance.
    """
    cells = F.pixel_unshuffle(extract_detail(images), factor).double()  # [B, 3 factor^2, h, w]
    cells = cells.movedim(1, -1).flatten(0, -2)
    values, vectors = torch.linalg.eigh(cells.T @ cells / len(cells))
    components = vectors.flip(1)[:, :count].T / values[-1].sqrt()
    return components.view(count, 3, factor, factor).float()
