"""The three stages in order, each from what the one before left in the run's folder."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import torch

from ..config import ModelConfig, averaged
from ..diffusion.experts import All, ExpertBank
from ..diffusion.process import from_config
from ..diffusion.samplers import choose, sample
from ..errors import SettingError
from ..images.resize import resize
from ..networks.autoencoder import Autoencoder
from ..networks.denoiser import denoiser
from ..networks.swin_unet import SwinUNet
from ..networks.unet import UNet
from . import weights
from .config import TrainingConfig
from .data import PhotoCrops
from .decoder import FCD
from .degradation import degradation
from .experts import Expert
from .first_stage import FirstStage, detail_components
from .joint import Joint
from .latents import LatentCrops, cached, to_bytes
from .loop import Batch, Task, autocast, run

log = logging.getLogger(__name__)

#: Images in a batch while latents are cached.
CACHE_BATCH = 8


def train(stage: str, config: TrainingConfig, data: Path, out: Path, metrics: Path | None) -> None:
    """Train one stage ("first-stage", "experts", "decoder") in `out`, resuming what is there."""
    stages = {"first-stage": train_first_stage, "experts": train_experts, "decoder": train_decoder}
    if stage not in stages:
        raise SettingError(f"stage {stage!r} is unknown: choose one of {', '.join(stages)}")
    out.mkdir(parents=True, exist_ok=True)
    stages[stage](config, data, out, metrics)


def train_first_stage(config: TrainingConfig, data: Path, out: Path, metrics: Path | None) -> None:
    """First stage on crops of the images in `data`; then the scale factor that gives its latents unit variance."""
    stage = config.first_stage
    crops = _crops(config, data, stage.crop, stage.loop.steps * stage.loop.batch, stage.loop.seed)
    folder = out / "first_stage"
    model, guide = config.model.autoencoder, None
    if stage.guide_weight:
        images = torch.stack([crops[i]["hr"] for i in range(min(64, len(crops)))])
        guide = detail_components(images, model.embed_dim, model.factor)
    run(FirstStage(model, stage, metrics, guide), crops, stage.loop, folder)
    network = _first_stage(replace(config.model, autoencoder=replace(config.model.autoencoder, scale_factor=1.0)), out)
    sample_crops = torch.utils.data.Subset(crops, range(64))
    with torch.inference_mode():
        latents = torch.cat([network.encode(item["hr"][None]).flatten() for item in sample_crops])
    facts = {"scale_factor": round(1 / latents.std().item(), 4)}
    (folder / "facts.json").write_text(json.dumps(facts) + "\n")
    log.info("scale factor %s", facts["scale_factor"])


def train_experts(config: TrainingConfig, data: Path, out: Path, metrics: Path | None) -> None:
    """A trunk on all timesteps if the config has one, then every time expert on its own."""
    stage, model = config.experts, with_facts(config.model, out)
    network = _first_stage(model, out)
    crops = _crops(config, data, stage.crop, stage.cache, stage.loop.seed)

    def encode(batch: Batch) -> Batch:
        lr_up = resize(batch["lr"], (batch["hr"].shape[-2], batch["hr"].shape[-1])).clamp(-1, 1)
        with autocast(stage.loop, lr_up.device):
            return {"x0": network.encode(batch["hr"]), "y": network.encode(lr_up), "lr": batch["lr"]}

    tensors = cached(out / "latents.safetensors", crops, CACHE_BATCH, encode)
    size = stage.crop // model.autoencoder.factor // 2
    rates = {"x0": 1, "y": 1, "lr": 1}
    if tensors["lr"].shape[-1] != tensors["x0"].shape[-1]:
        raise SettingError(f"scale {model.scale}: cached training needs the scale of the first stage's factor")
    trunk: Path | None = None
    if stage.trunk:
        task = Expert(model, stage, stage.trunk, (0, model.process.timesteps), "trunk")
        items = LatentCrops(tensors, rates, size, stage.trunk.steps * stage.trunk.batch, stage.trunk.seed)
        run(task, items, stage.trunk, out / "trunk")
        trunk = out / "trunk" / "trunk_grouped.safetensors"
    starts = (0, *model.stages[:-1])
    for i, span in enumerate(zip(starts, model.stages)):
        loop = replace(stage.loop, seed=stage.loop.seed + 1 + i)
        task = Expert(model, stage, loop, span, f"stage{i}")
        if trunk:
            task.branch(weights.load(trunk))
        run(task, LatentCrops(tensors, rates, size, loop.steps * loop.batch, loop.seed), loop, out / f"stage{i}")


def train_decoder(config: TrainingConfig, data: Path, out: Path, metrics: Path | None) -> None:
    """Latents sampled by the experts, kept on disk, then the decoder on them.

    For joint training the states that the last expert begins with are kept instead.
    """
    stage, model = config.decoder, with_facts(config.model, out)
    network = _first_stage(model, out)
    process = from_config(model.process)
    bank = ExpertBank(model.stages, All([_expert(model, out, i) for i in range(len(model.stages))]))
    sampler, spacing = choose(process, stage.sample_steps, stage.sampler, "auto")
    timesteps = process.timesteps(stage.sample_steps, spacing)
    last = process.last(stage.sample_steps, spacing)
    joint = stage.train == "joint"
    if joint:
        last = next(t for t in timesteps if t < model.stages[0])
        timesteps = [t for t in timesteps if t > last]
    generator = torch.Generator().manual_seed(stage.loop.seed)

    def draw(batch: Batch) -> Batch:
        hr, lr = batch["hr"], batch["lr"]
        with autocast(stage.loop, lr.device):
            x0 = network.encode(hr)
            y = network.encode(resize(lr, (hr.shape[-2], hr.shape[-1])).clamp(-1, 1)).float()

        def noise(_: int) -> torch.Tensor:
            return torch.randn(y.shape, generator=generator)

        def predict(z: torch.Tensor, t: int) -> torch.Tensor:
            with bank.stage(t) as expert, autocast(stage.loop, z.device):
                out = expert(process.scale_input(z, t), torch.full((len(z),), t), lr)
            return process.x0(out.float(), z, t, y)

        start = process.prior(noise(-1), y, timesteps[0])
        z = sample(sampler, predict, process, timesteps, start, noise=noise, last=last, y=y)
        return {"z": z, "x0": x0, "y": y, "lr": to_bytes(lr), "hr": to_bytes(hr)}

    crops = _crops(config, data, stage.crop, stage.cache, stage.loop.seed + 7, stage.shrink)
    tensors = cached(out / "samples.safetensors", crops, CACHE_BATCH, draw)
    factor = model.autoencoder.factor
    size = (stage.patch or stage.crop // 2) // factor
    rates = {"z": 1, "x0": 1, "y": 1, "lr": factor // model.scale or 1, "hr": factor}
    before = Path(stage.start) if stage.start else None
    first = _state(before / "decoder.safetensors" if before else out / "first_stage" / "first_stage.safetensors")
    skipped = config.first_stage.skip or before is not None
    if joint:
        grouped = _state((before or out / "stage0") / "stage0_grouped.safetensors")
        task: Task = Joint(model, stage, first, grouped, last, config.experts.gamma, metrics, skipped)
    else:
        task = FCD(model.autoencoder, stage, first, metrics, skipped)
    length = stage.loop.steps * stage.loop.batch
    items = LatentCrops(tensors, rates, size, length, stage.loop.seed, stage.choices)
    run(task, items, stage.loop, out / "decoder")


def with_facts(model: ModelConfig, out: Path) -> ModelConfig:
    """The model's config with what training its first stage found out."""
    facts = json.loads((out / "first_stage" / "facts.json").read_text())
    return replace(model, autoencoder=replace(model.autoencoder, scale_factor=facts["scale_factor"]))


def _crops(
    config: TrainingConfig, data: Path, crop: int, length: int, seed: int, shrink: tuple[int, ...] = (1,)
) -> PhotoCrops:
    scale = config.model.scale
    return PhotoCrops(data, crop, scale, degradation(config.degradation, scale), length, seed, tuple(shrink))


def _state(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise SettingError(f"{path}: not found; train the stage before this one first")
    return weights.load(path)


def _first_stage(model: ModelConfig, out: Path) -> Autoencoder:
    state = _state(out / "first_stage" / "first_stage.safetensors")
    refine = any(k.startswith("decoder.unet_1.") for k in state)
    network = Autoencoder(replace(model.autoencoder, lr_fusion=False, lr_skip=False, refine=refine))
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)


def _expert(model: ModelConfig, out: Path, index: int) -> UNet | SwinUNet:
    network = denoiser(averaged(model.unet))
    network.load_state_dict(_state(out / f"stage{index}" / f"stage{index}.safetensors"))
    return network.eval().requires_grad_(False)
