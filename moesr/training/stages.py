"""The three stages in order, each from what the one before left in the run's folder."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import torch

from ..config import ModelConfig, UNetConfig, averaged
from ..diffusion.experts import All, ExpertBank
from ..diffusion.process import from_config
from ..diffusion.samplers import sample
from ..errors import SettingError
from ..networks.autoencoder import Autoencoder
from ..networks.denoiser import denoiser
from ..networks.swin_unet import SwinUNet
from ..networks.unet import UNet
from ..settings import choose_sampler
from . import draws, weights
from .config import TrainingConfig, launched, to_dict
from .data.crops import PhotoCrops
from .data.degradation import degradation
from .decoder import FCD
from .engine import Engine
from .experts import Expert
from .first_stage import FirstStage, detail_components
from .latents import LatentCrops, Stack, cached, digest, enlarge, resize_condition, to_bytes
from .loop import Batch, LoopConfig, Task, autocast, run

log = logging.getLogger(__name__)

STAGES = ("first-stage", "experts", "decoder")
TRUNK = "trunk"


def train(
    stage: str, config: TrainingConfig, data: Path, out: Path, metrics: Path | None, experts: Sequence[str] = ()
) -> None:
    """Train one stage ("first-stage", "experts", "decoder") in `out`, resuming what is there.

    experts: of that stage, numbers from 0 or "trunk", to train alone what other machines need not wait for; all by
    default. Raises SettingError for a name that does not exist, or where an earlier stage is missing.
    """
    if stage not in STAGES:
        raise SettingError(f"stage {stage!r} is unknown: choose one of {', '.join(STAGES)}")
    if experts and stage != "experts":
        raise SettingError(f"expert {experts[0]} of stage {stage}: only the stage experts has experts")
    config = launched(config)
    out.mkdir(parents=True, exist_ok=True)
    if stage == "first-stage":
        train_first_stage(config, data, out, metrics)
    elif stage == "experts":
        train_experts(config, data, out, metrics, experts)
    else:
        train_decoder(config, data, out, metrics)


def train_first_stage(config: TrainingConfig, data: Path, out: Path, metrics: Path | None) -> None:
    """First stage on crops of the images in `data`; then the scale factor that gives its latents unit variance."""
    stage, folder = config.first_stage, out / "first_stage"
    crops = _crops(config, data, stage.crop, stage.loop.steps * stage.loop.batch, stage.loop.seed)
    model, guide = config.model.autoencoder, None
    if stage.guide_weight:
        images = torch.stack([crops[i]["hr"] for i in range(min(64, len(crops)))])
        guide = detail_components(images, model.embed_dim, model.factor)
    task = FirstStage(model, stage, metrics, guide)
    _train(task, crops, stage.loop, folder, config)
    if task.engine.main:
        unscaled = replace(config.model, autoencoder=replace(config.model.autoencoder, scale_factor=1.0))
        network = _first_stage(unscaled, out, torch.device("cpu"))
        with torch.inference_mode():
            latents = torch.cat([network.encode(crops[i]["hr"][None]).flatten() for i in range(64)])
        facts: dict[str, object] = {"scale_factor": round(1 / latents.std().item(), 4)}
        _write(folder / "facts.json", facts)
        log.info("scale factor %s", facts["scale_factor"])
    task.engine.wait()


def train_experts(
    config: TrainingConfig, data: Path, out: Path, metrics: Path | None, experts: Sequence[str] = ()
) -> None:
    """A trunk on all timesteps if the config has one, then every time expert on its own; or those in `experts`."""
    stage, model = config.experts, with_facts(config.model, out)
    names = [*([TRUNK] if stage.trunk else []), *map(str, range(len(model.stages)))]
    unknown = [name for name in experts if name not in names]
    if unknown:
        raise SettingError(f"expert {unknown[0]}: there is no such expert; choose from {', '.join(names)}")
    wanted = [name for name in names if name in (experts or names)]
    trunk = out / "trunk" / "trunk_grouped.safetensors"
    if stage.trunk and TRUNK not in wanted and not trunk.is_file():
        raise SettingError(f"{trunk}: not found; train the trunk first, with --expert trunk, or copy it here")
    tensors = _encoded(config, model, data, out)
    size = (stage.size or stage.crop // 2) // model.autoencoder.factor
    spans = [(0, model.process.timesteps), *zip((0, *model.stages[:-1]), model.stages)][-len(names) :]
    for name, span in zip(names, spans):
        if name not in wanted:
            continue
        if name == TRUNK:
            assert stage.trunk is not None
            loop, label = stage.trunk, TRUNK
        else:
            loop, label = replace(stage.loop, seed=stage.loop.seed + 1 + int(name)), f"stage{name}"
        task = Expert(model, stage, loop, span, label)
        if stage.trunk and name != TRUNK:
            task.branch(weights.load(trunk))
        items = LatentCrops(tensors, {"x0": 1, "y": 1, "lr": 1}, size, loop.steps * loop.batch, loop.seed)
        _train(task, items, loop, out / label, config)


def _encoded(config: TrainingConfig, model: ModelConfig, data: Path, out: Path) -> dict[str, Stack]:
    """Latents of HR and upsampled LR images, and the condition at their size, from the disk or made now."""
    stage, engine = config.experts, Engine()
    network = _first_stage(model, out, engine.device)
    crops = _crops(config, data, stage.crop, stage.cache, stage.loop.seed)

    def encode(batch: Batch) -> Batch:
        lr_up = enlarge(batch["lr"], batch["hr"])
        with autocast(stage.loop, lr_up.device):
            x0, y = network.encode(batch["hr"]), network.encode(lr_up)
        return {"x0": x0, "y": y, "lr": resize_condition(batch["lr"], x0)}

    facts = _facts(config, stage.crop, stage.cache, stage.loop.seed) | {"first stage": digest(_first(out))}
    return cached(out / "latents", crops, encode, facts, engine)


def train_decoder(config: TrainingConfig, data: Path, out: Path, metrics: Path | None) -> None:
    """Latents sampled by the experts, kept on disk, then the decoder on them."""
    stage, model = config.decoder, with_facts(config.model, out)
    tensors = _sampled(config, model, data, out)
    factor = model.autoencoder.factor
    size = (stage.size or stage.crop // 2) // factor
    rates: dict[str, int | Fraction] = {"z": 1, "lr": Fraction(factor, model.scale), "hr": factor}
    task = FCD(model.autoencoder, stage, _state(_first(out)), metrics, config.first_stage.skip)
    items = LatentCrops(tensors, rates, size, stage.loop.steps * stage.loop.batch, stage.loop.seed)
    _train(task, items, stage.loop, out / "decoder", config)


def _sampled(config: TrainingConfig, model: ModelConfig, data: Path, out: Path) -> dict[str, Stack]:
    """Sampled latents with their LR and HR images, from the disk or made now."""
    stage, engine = config.decoder, Engine()
    process = from_config(model.process)
    sampler, spacing = choose_sampler(process.kind, stage.sample_steps, stage.sampler, "auto")
    timesteps = process.timesteps(stage.sample_steps, spacing)
    last = process.last(stage.sample_steps, spacing)
    network = _first_stage(model, out, engine.device)
    experts = [_expert(model, out, i).to(engine.device) for i in range(len(model.stages))]
    bank = ExpertBank(model.stages, All(experts))

    def draw(batch: Batch) -> Batch:
        hr, lr = batch["hr"], batch["lr"]
        with autocast(stage.loop, lr.device):
            y = network.encode(enlarge(lr, hr)).float()
        condition = resize_condition(lr, y)

        def noise(step: int) -> torch.Tensor:
            return draws.normal(y, batch, stage.loop.seed, f"sample{step}")

        def predict(z: torch.Tensor, t: int) -> torch.Tensor:
            with bank.stage(t) as expert, autocast(stage.loop, z.device):
                time = torch.full((len(z),), t, device=z.device)
                out = expert(process.scale_input(z, t), time, condition)
            return process.x0(out.float(), z, t, y)

        start = process.prior(noise(-1), y, timesteps[0])
        z = sample(sampler, predict, process, timesteps, start, noise=noise, last=last, y=y)
        return {"z": z, "lr": to_bytes(lr), "hr": to_bytes(hr)}

    crops = _crops(config, data, stage.crop, stage.cache, stage.loop.seed + 7)
    facts = _facts(config, stage.crop, stage.cache, stage.loop.seed)
    facts |= {"sample_steps": stage.sample_steps, "sampler": sampler}
    facts |= {"experts": digest(_first(out), *(_averaged_expert(out, i) for i in range(len(model.stages))))}
    return cached(out / "samples", crops, draw, facts, engine)


def with_facts(model: ModelConfig, out: Path) -> ModelConfig:
    """The model's config with what training its first stage found out. Stage by stage, nothing is told `restore`."""
    path = out / "first_stage" / "facts.json"
    if not path.is_file():
        raise SettingError(f"{path}: not found; train the first stage first")
    factor = json.loads(path.read_text())["scale_factor"]
    autoencoder = replace(model.autoencoder, scale_factor=factor, estimator=False)
    unet = replace(model.unet, restore=False) if isinstance(model.unet, UNetConfig) else model.unet
    return replace(model, unet=unet, autoencoder=autoencoder)


def _train(
    task: Task, data: torch.utils.data.Dataset[Batch], loop: LoopConfig, folder: Path, config: TrainingConfig
) -> None:
    """`run`, with the whole config beside its results."""
    if task.engine.main:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / "config.json", to_dict(config))
    run(task, data, loop, folder)


def _write(path: Path, values: dict[str, object]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(values, indent=2) + "\n")
    os.replace(partial, path)


def _crops(config: TrainingConfig, data: Path, crop: int, length: int, seed: int) -> PhotoCrops:
    scale = config.model.scale
    return PhotoCrops(data, crop, scale, degradation(config.degradation, scale), length, seed)


def _facts(config: TrainingConfig, crop: int, cache: int, seed: int) -> dict[str, object]:
    """What cached items depend on."""
    named = {"crop": crop, "cache": cache, "seed": seed}
    return {**named, "scale": config.model.scale, "degradation": config.degradation}


def _first(out: Path) -> Path:
    return out / "first_stage" / "first_stage.safetensors"


def _averaged_expert(out: Path, index: int) -> Path:
    path = out / f"stage{index}" / f"stage{index}.safetensors"
    if not path.is_file():
        raise SettingError(f"{path}: not found; train expert {index} first, or copy it here from another machine")
    return path


def _state(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise SettingError(f"{path}: not found; train the stage before this one first")
    return weights.load(path)


def _first_stage(model: ModelConfig, out: Path, device: torch.device) -> Autoencoder:
    state = _state(_first(out))
    refine = any(k.startswith("decoder.unet_1.") for k in state)
    network = Autoencoder(replace(model.autoencoder, lr_fusion=False, lr_skip=False, refine=refine))
    network.load_state_dict(state)
    return network.eval().requires_grad_(False).to(device)


def _expert(model: ModelConfig, out: Path, index: int) -> UNet | SwinUNet:
    network = denoiser(averaged(model.unet))
    network.load_state_dict(_state(_averaged_expert(out, index)))
    return network.eval().requires_grad_(False)
