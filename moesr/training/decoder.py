"""Stage 2: the frequency-compensated decoder on latents that stage 1 sampled (paper, eq. 6 and appendix A.1)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import AutoencoderConfig
from ..errors import SettingError
from ..evaluation.lpips import LPIPS
from ..images.resize import resize
from ..networks.autoencoder import Autoencoder
from . import losses, weights
from .adversary import FeatureDiscriminator, PatchDiscriminator
from .ema import EMA
from .engine import Engine
from .loop import Batch, LoopConfig, Stateful, autocast, rate

#: Widths of the VGG features that an adversary of features judges: LPIPS's taps at full to one eighth resolution.
VGG_WIDTHS = (64, 128, 256, 512)

#: What stage 2 adds to a first stage's decoder, by the names of the modules; a config may leave either out.
LR_PARTS = ("fusion_layer_1", "unet_1")


@dataclass(frozen=True)
class DecoderConfig:
    """L1 + LPIPS + GAN + 10 x focal frequency loss.

    `train` is "fcd" (the paper: fusion and AFF U-Net, the first stage frozen), "decoder" (all of the decoder, for a
    small first stage) or "joint" (the decoder and the last time expert: see joint.py). `consistency` weighs an L1
    between the downscaled HR image and the downscaled result. `lpips` maps a network's name to its weight; with
    `alternate` the networks take turns, one a step. `grid_weight` weighs a regular grid (losses.grid). The adversary,
    `adversary` channels wide, judges "pixels" (a PatchGAN) or the "features" of LPIPS's VGG, which `lpips` must then
    have and which cannot alternate. From `freeze_norms` on, batch norms use and keep their running statistics.
    `onward` is the share of a joint run's batches that go on beyond the last expert's first step (joint.py).
    `generative` is the share of batches that are decoded at fidelity 0: the latent must then carry what an image needs,
    and LR fusion corrects it; without such batches a decoder may read all from the LR image. `smooth_weight` weighs an
    L1 between the upsampled LR image and what its own latent is decoded to (joint runs): a decoder that may not sharpen
    by itself has to get all detail from the experts. Latents of `cache` crops of `crop` pixels, from images reduced by
    one of `shrink`, are sampled once, and windows of `size` pixels (0: half of it) cut from them: of `choices` windows
    the one with most detail. `start` is the folder of a decoder's run to go on from; its parts `anew` (of
    fusion_layer_1, unet_1) are not taken over.
    """

    loop: LoopConfig = field(default_factory=LoopConfig)
    crop: int = 256
    size: int = 0
    shrink: tuple[float, ...] = (1,)
    cache: int = 2048
    sample_steps: int = 50
    sampler: str = "auto"
    train: str = "fcd"
    l1_weight: float = 1.0
    lpips: dict[str, float] = field(default_factory=lambda: {"vgg": 1.0})
    alternate: bool = False
    grid_weight: float = 0.0
    frequency_weight: float = 10.0
    consistency: float = 0.0
    adversary: int = 64
    judged: str = "pixels"
    gan_start: int = 1000
    gan_weight: float = 0.1
    freeze_norms: int = 10_000_000
    ema: float = 0.999
    start: str = ""
    anew: tuple[str, ...] = ()
    generative: float = 0.0
    smooth_weight: float = 0.0
    onward: float = 0.5
    choices: int = 1

    def check(self) -> None:
        """Raises SettingError for settings that do not go together."""
        if self.smooth_weight and self.train != "joint":
            raise SettingError(f"decoder.smooth_weight is for decoder.train joint, not {self.train}; set it to 0")
        for part in self.anew:
            if part not in LR_PARTS:
                raise SettingError(f"decoder.anew {part!r}: only {' and '.join(LR_PARTS)} can begin anew")


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
        self.networks = nn.ModuleList([self.network])  # all that images are made with
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
        self.adversary = _adversary(config)
        self.optimiser = torch.optim.AdamW(self.parameters, config.loop.lr, betas=(0.9, 0.99), weight_decay=0)
        self.opponent = torch.optim.AdamW(self.adversary.parameters(), config.loop.lr, betas=(0.5, 0.9), weight_decay=0)
        self.ema = EMA(self.network, config.ema)
        self.parts: dict[str, Stateful] = {
            "network": self.network, "adversary": self.adversary, "optimiser": self.optimiser,
            "opponent": self.opponent, "ema": self.ema,
        }  # fmt: skip

    def to(self, device: torch.device) -> None:
        for module in (self.networks, self.adversary, *self.distances.values()):
            module.to(device)
        self.ema.to(device)

    def step(self, batch: Batch, index: int) -> dict[str, float]:
        config, hr = self.config, batch["hr"]
        for group in (*self.optimiser.param_groups, *self.opponent.param_groups):
            group["lr"] = rate(config.loop, index)
        if index >= config.freeze_norms:
            freeze_norms(self.network)
        generative = config.generative > 0 and float(torch.rand(())) < config.generative
        partly = config.generative > 0
        fidelity = 0.0 if generative else 1.0
        out, smooth = self.engine.forward(self.networks, self.forward, batch, fidelity, partly=partly)
        loss = self.loss(out, batch, report := {})
        if smooth is not None:
            loss = loss + config.smooth_weight * smooth
            report["smooth"] = smooth.item()
        names = sorted(self.distances)
        if config.alternate:
            names = [names[index % len(names)]]
        shifted, real = losses.phase(out, hr)
        features: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
        with autocast(config.loop, hr.device):
            for name in names:
                distance = self.distances[name]
                features[name] = distance.embed(shifted), distance.embed(real)
                perceptual = distance.distance(*features[name]).mean()
                loss = loss + config.lpips[name] * len(self.distances) / len(names) * perceptual
                report[name] = perceptual.item()
        against = index >= config.gan_start
        judged = features["vgg"] if config.judged == "features" and against else ([shifted], [real])
        fake, true = (list(part) for part in judged)
        if against:
            self.adversary.requires_grad_(False)
            with autocast(config.loop, hr.device):
                adversarial = -self._scores(fake).mean()
            self.adversary.requires_grad_(True)
            loss = loss + config.gan_weight * adversarial
        self.engine.backward(loss)
        steps: list[tuple[torch.optim.Optimizer, list[nn.Parameter] | None]] = [(self.optimiser, self.parameters)]
        if against:
            report["adversary"] = self._oppose([x.detach() for x in fake], true)
            steps.append((self.opponent, None))
        if self.engine.step(*steps):
            self.after_step()
        return report

    def _oppose(self, fake: list[Tensor], true: list[Tensor]) -> float:
        """Gradients of the adversary; its hinge loss, 1 where it cannot tell."""
        with autocast(self.config.loop, fake[0].device):
            both = [torch.cat(pair) for pair in zip(true, fake)]
            scores = self.engine.forward(self.adversary, self._scores, both)
        loss = losses.hinge_discriminator(*scores.chunk(2))
        self.engine.backward(loss)
        return loss.item()

    def _scores(self, seen: list[Tensor]) -> Tensor:
        if isinstance(self.adversary, FeatureDiscriminator):
            return self.adversary(seen[: len(self.adversary.heads)])
        return self.adversary(seen[0]).float()

    def loss(self, out: Tensor, batch: Batch, report: dict[str, float]) -> Tensor:
        """What images `out` are charged for their pixels; the parts go into `report`."""
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

    def forward(self, batch: Batch, fidelity: float) -> tuple[Tensor, Tensor | None]:
        """`predict`, and what `smooth_weight` weighs, if anything."""
        return self.predict(batch, fidelity), None

    def latent(self, batch: Batch) -> Tensor:
        """The latents [B, C, h, w] to decode."""
        return batch["z"]

    def predict(self, batch: Batch, fidelity: float = 1.0) -> Tensor:
        """Images [B, 3, H, W] decoded from the batch's latents."""
        with autocast(self.config.loop, batch["hr"].device):
            return self.decoded(self.latent(batch), enlarged(batch), fidelity)

    def decoded(self, z: Tensor, lr_up: Tensor, fidelity: float) -> Tensor:
        """Images [B, 3, H, W] of latents, the LR image in output size beside them."""
        with autocast(self.config.loop, z.device):
            with torch.no_grad():
                features = self.network.features(lr_up)
            return self.network.decode(z, features, fidelity).float()

    def after_step(self) -> None:
        """What follows an optimiser step."""
        self.ema.update(self.network)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the averaged weights stand in for those that train."""
        kept, self.network = self.network, self.ema.averaged(self.network)
        try:
            yield
        finally:
            self.network = kept

    def pictures(self, batch: Batch) -> Tensor:
        """The LR image as it is (enlarged), the result, the HR image."""
        with self.averaged():
            out = self.predict(batch)
        return side_by_side(batch, out)

    def export(self, folder: Path) -> None:
        weights.save(self.ema.weights(self.network), folder / "decoder.safetensors")


def enlarged(batch: Batch) -> Tensor:
    """A batch's LR images in the size of its HR images."""
    hr = batch["hr"]
    return resize(batch["lr"], (hr.shape[-2], hr.shape[-1])).clamp(-1, 1)


def side_by_side(batch: Batch, out: Tensor) -> Tensor:
    """LR images, each pixel a square, results and HR images [B, 3, H, 3 W]."""
    lr = F.interpolate(batch["lr"], size=out.shape[-2:], mode="nearest")
    return torch.cat([lr, out.float().clamp(-1, 1), batch["hr"]], dim=-1)


def _adversary(config: DecoderConfig) -> nn.Module:
    if config.judged == "pixels":
        return PatchDiscriminator(config.adversary)
    if config.judged != "features":
        raise SettingError(f"decoder.judged {config.judged!r} is unknown: choose pixels or features")
    if "vgg" not in config.lpips or config.alternate:
        raise SettingError("decoder.judged features: give lpips a weight for vgg, and turn alternate off")
    return FeatureDiscriminator(VGG_WIDTHS, config.adversary)


def freeze_norms(network: nn.Module) -> None:
    """Batch norms use and keep the statistics they have."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
