"""The last stage of a small model: all experts and the decoder, by losses on the image, through every sampling step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import ModelConfig, with_space_experts
from ..diffusion.experts import All, ExpertBank
from ..diffusion.process import from_config
from ..diffusion.samplers import sample
from ..errors import SettingError
from ..images.resize import resize
from ..networks.autoencoder import Autoencoder
from ..networks.denoiser import denoiser
from ..networks.space_moe import average_experts, repeat_expert
from . import losses
from .decoder import freeze_norms
from .engine import Engine
from .experts import predict_x0
from .first_stage import enlarge, resize_condition
from .loop import Batch, LoopConfig, Losses, autocast
from .perceptual import FeatureLosses, PerceptualTask
from .run_log import join_images

#: Part of the key of every weight of an adapter.
_ADAPTER = "adapter"


@dataclass(frozen=True)
class UnrolledConfig:
    """The loop, and the weights of the losses at fidelity 0; see docs/training.md."""

    #: Train the adapters of restore and fidelity and the cleaner alone: at 0 the model stays what it was, to the bit.
    adapters_only: bool = False
    #: In a run with a limit of time, steps here and below are shares of that time.
    loop: LoopConfig = field(default_factory=LoopConfig)
    #: The loop of the estimator of restore.
    estimator: LoopConfig = field(
        default_factory=lambda: LoopConfig(steps=200, batch=32, lr=3e-3, warmup=5, final_lr=0.02)
    )
    #: The loop of the network that cleans LR images.
    cleaner: LoopConfig = field(
        default_factory=lambda: LoopConfig(steps=2000, batch=16, lr=1e-3, warmup=50, final_lr=0.02)
    )
    #: Crops per batch on a GPU, where the learning rate grows with the square root of the batch.
    batch_gpu: int = 64
    #: Let torch.compile (torch >= 2.6) fuse the experts' layers: a minute at the start, for faster steps on a GPU.
    compile: bool = False
    #: Side of an HR crop in pixels, on a CPU and on a GPU.
    crop: int = 96
    crop_gpu: int = 128
    #: Shares of a run's time for the estimator of restore, the cleaner of LR images, the first stage and the experts'
    #: trunk. The rest is for this stage.
    estimator_share: float = 0.03
    cleaner_share: float = 0.1
    first_stage_share: float = 0.08
    experts_share: float = 0.17
    l1: float = 0.05
    #: Weight of L1 at fidelity 1, where LPIPS and the adversary have none.
    l1_faithful: float = 4.0
    lpips: dict[str, float] = field(default_factory=lambda: {"alex": 1.4, "vgg": 2.4})
    adversary: float = 0.12
    #: Step from which the adversary counts, also in the training of the cleaner.
    adversary_start: int = 200
    #: Weights for the cleaner, where L1 has the weight 1. Its images are compared at the size of the LR image.
    cleaner_lpips: dict[str, float] = field(default_factory=lambda: {"alex": 0.3, "vgg": 0.6})
    cleaner_adversary: float = 0.03
    #: Of L1 between result and HR image, both reduced to the size of the LR image.
    consistency: float = 0.15
    frequency: float = 0.05
    grid: float = 0.5
    #: Of L1 between a bicubic image and its own decoded latent, so that detail comes from the experts alone.
    smooth: float = 1.0
    #: Prefer smooth places of photographs as often as detailed ones, as for the cleaner.
    smooth_places: bool = False
    #: Shares of batches at fidelity 0 and at fidelity 1; the others have a random fidelity.
    generative: float = 0.55
    faithful: float = 0.15
    #: Share of batches with random timesteps, one per expert, so that other numbers of steps work too.
    jitter: float = 0.15
    #: Step from which batch norms no longer change their statistics.
    freeze_norms: int = 0
    ema: float = 0.995
    space_experts: int = 4
    gamma: float = 0.999


class Unrolled(PerceptualTask):
    """Trains every expert and the decoder. Batches hold hr, lr and restore.

    experts, autoencoder: averaged weights to start from. Parts that an older model lacks (adapters, LR fusion,
    refinement) start as new. Encoder and estimator stay as they are. Raises SettingError for weights of another model.
    """

    def __init__(
        self,
        model: ModelConfig,
        config: UnrolledConfig,
        engine: Engine,
        *,
        experts: Sequence[Mapping[str, Tensor]],
        autoencoder: Mapping[str, Tensor],
        metrics: str | Path | None,
        on_export: Callable[[], object] = lambda: None,
    ) -> None:
        torch.manual_seed(config.loop.seed)
        self.model, self.config = model, config
        self.process = from_config(model.process)
        self.autoencoder = Autoencoder(model.autoencoder)
        _load(self.autoencoder, autoencoder, ("decoder.fusion_layer_1.", "decoder.unet_1."))
        grouped = with_space_experts(model.unet, config.space_experts)
        self.experts = nn.ModuleList([denoiser(grouped) for _ in model.stages])
        for network, state in zip(self.experts, experts, strict=True):
            _load(network, repeat_expert(state, config.space_experts), ())
        self.autoencoder.requires_grad_(False)
        for module in (self.autoencoder.decoder, self.autoencoder.post_quant_conv):
            module.requires_grad_(True)
        networks = nn.ModuleDict({"autoencoder": self.autoencoder, "experts": self.experts})
        if config.adapters_only:
            for name, parameter in networks.named_parameters():
                parameter.requires_grad_(_ADAPTER in name)
        if model.autoencoder.cleaner_channels:
            self.autoencoder.cleaner.requires_grad_(True)
        super().__init__(
            config.loop, engine, networks, FeatureLosses(config.lpips, config.adversary, config.adversary_start),
            metrics=metrics, ema=config.ema, gamma=config.gamma,
            parameters=[p for p in networks.parameters() if p.requires_grad],
        )  # fmt: skip
        if config.compile:
            for network in self.experts:
                network.compile(dynamic=False)
        self.on_export = on_export

    def step(self, batch: Batch, index: int) -> Losses:
        config = self.config
        self.set_rate(index)
        if index >= config.freeze_norms:
            freeze_norms(self.autoencoder)
        fidelity = self._draw_fidelity()
        restore = self._draw_restore(batch)
        timesteps = self._choose_timesteps(float(torch.rand(())) < config.jitter)
        with autocast(config.loop, batch["hr"].device):
            out, smooth = self.predict(batch, restore, fidelity, timesteps)
        hr, size = batch["hr"], (batch["lr"].shape[-2], batch["lr"].shape[-1])
        values = {  # by name: weight and value
            f"l1_{'faithful' if fidelity == 1 else 'other'}": (
                config.l1 + (config.l1_faithful - config.l1) * fidelity, F.l1_loss(out, hr)
            ),
            "frequency": (config.frequency, losses.focal_frequency_loss(out, hr)),
            "consistency": (config.consistency, F.l1_loss(resize(out, size), resize(hr, size))),
            "smooth": (config.smooth, smooth),
        }  # fmt: skip
        if min(out.shape[-2:]) >= 64:
            values["grid"] = config.grid, losses.grid_loss(out)
        loss = torch.stack([weight * value for weight, value in values.values()]).sum()
        report: Losses = {name: value.detach() for name, (_, value) in values.items()}
        against = None
        if fidelity < 1:
            perceptual, against = self.compare_features(out, hr, index, report)
            loss = loss + (1 - fidelity) * perceptual
        self.engine.backward(loss)
        if against is not None:
            report["adversary"] = self.oppose(against)
        self.finish(against is not None)
        return report

    def predict(self, batch: Batch, restore: Tensor, fidelity: float, timesteps: list[int]) -> tuple[Tensor, Tensor]:
        """Images [B, 3, H, W] as `upscale` makes them, and the L1 between bicubic images and their decoded latents.

        The L1 is 0 at fidelity 1, where the decoder may make detail from the LR image, and where only adapters learn.
        restore: [B]. All noise is multiplied by 1 - fidelity, as in `upscale`.
        """
        lr = self._clean(batch["lr"], restore)
        lr_up = enlarge(lr, batch["hr"])
        y = self.autoencoder.encode(lr_up).float()
        features = self.autoencoder.features(lr_up)
        settings = torch.stack([restore, torch.full_like(restore, fidelity)], dim=1)
        z = self._sample(y, resize_condition(lr, y), settings, 1 - fidelity, timesteps)
        out = self.autoencoder.decode(z, features, fidelity, restore=restore).float()
        if fidelity == 1 or self.config.adapters_only:
            return out, out.new_zeros(())
        height, width = (side // 2 for side in y.shape[-2:])
        factor = self.model.autoencoder.factor
        part = lr_up[..., : height * factor, : width * factor].detach()
        latent = y[..., :height, :width].detach()
        return out, F.l1_loss(self.autoencoder.decode(latent, self.autoencoder.features(part), 0.0).float(), part)

    def _clean(self, lr: Tensor, restore: Tensor) -> Tensor:
        """LR images [B, 3, h, w] as all else is given them; those of restore [B] 0 as they are."""
        if not self.model.autoencoder.cleaner_channels:
            return lr
        return torch.where(restore.view(-1, 1, 1, 1) > 0, self.autoencoder.cleaner(lr, restore), lr)

    def _sample(self, y: Tensor, lr: Tensor, settings: Tensor, noise_scale: float, timesteps: list[int]) -> Tensor:
        bank = ExpertBank(self.model.stages, All(list(self.experts)))

        def predict(z: Tensor, t: int) -> Tensor:
            return predict_x0(bank, self.process, z.clone(), t, y, lr, settings)  # the sampler changes z in place

        def noise(_: int) -> Tensor:
            return torch.randn_like(y) * noise_scale

        z = self.process.prior(noise(-1), y, timesteps[0])
        return sample("ddim", predict, self.process, timesteps, z, noise=noise, y=y)

    def _choose_timesteps(self, jitter: bool) -> list[int]:
        """One per expert, from high to low: those that `upscale` takes, or with `jitter` the first and random ones."""
        if not jitter and self.model.steps == len(self.model.stages):
            return self.process.timesteps(self.model.steps, "trailing")
        starts = (0, *self.model.stages[:-1])
        lower = [int(torch.randint(low, high, ())) for low, high in zip(starts, self.model.stages[:-1])]
        return [self.process.total - 1, *reversed(lower)]

    def _draw_fidelity(self) -> float:
        kind = float(torch.rand(()))
        if kind < self.config.generative:
            return 0.0
        return 1.0 if kind < self.config.generative + self.config.faithful else float(torch.rand(()))

    @torch.no_grad()
    def _draw_restore(self, batch: Batch) -> Tensor:
        """How degraded the LR images are [B], as the experts are told: the truth, or for half of them an estimate."""
        truth = batch["restore"].float()
        if not self.model.autoencoder.estimator:
            return truth
        return torch.where(torch.rand_like(truth) < 0.5, truth, self.autoencoder.estimate_restore(batch["lr"]))

    def pictures(self, batch: Batch) -> Tensor:
        """LR images, results at fidelity 0 and 1, HR images: [B, 3, H, 4 W]."""
        with self._avoid_compiling(), autocast(self.config.loop, batch["hr"].device):
            restore, timesteps = self.autoencoder.estimate_restore(batch["lr"]), self._choose_timesteps(False)
            results = [self.predict(batch, restore, w, timesteps)[0] for w in (0.0, 1.0)]
        return join_images(batch, *results)

    def _avoid_compiling(self) -> AbstractContextManager[object]:
        """Inside the block nothing is compiled: other shapes and no gradients would take a minute each."""
        return torch.compiler.set_stance("force_eager") if self.config.compile else nullcontext()

    def export(self, folder: Path) -> None:
        self.on_export()

    def weights(self) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Averaged weights of each expert, with its space experts averaged too, and of the autoencoder."""
        state = self.ema.weights(self.network)
        parts = [*(f"experts.{i}." for i in range(len(self.experts))), "autoencoder."]
        split = [{k.removeprefix(part): v for k, v in state.items() if k.startswith(part)} for part in parts]
        return [average_experts(expert) for expert in split[:-1]], split[-1]


def _load(network: nn.Module, state: Mapping[str, Tensor], optional: tuple[str, ...]) -> None:
    """Load weights. Adapters and keys that begin as `optional` says may be missing.

    Raises SettingError for other differences.
    """
    try:
        missing, unexpected = network.load_state_dict(dict(state), strict=False)
    except RuntimeError as error:
        raise SettingError(f"--start: weights of another model ({' '.join(str(error).split())[:160]})") from error
    wrong = [*(k for k in missing if not k.startswith(optional) and _ADAPTER not in k), *unexpected]
    if wrong:
        raise SettingError(f"--start: weights of another model ({wrong[0]}); start from one of this config")
