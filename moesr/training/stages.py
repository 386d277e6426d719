"""The stages of one config in the folder of a run. Each starts from the files of the stage before it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoints.model_files import save_model
from ..config import AutoencoderConfig, ModelConfig, UNetConfig, averaged
from ..errors import NumericsError, SettingError
from ..evaluation.nano_models import assemble
from ..library.model_folders import compute_fingerprint
from ..model import DTYPES
from ..networks.autoencoder import Autoencoder
from ..networks.denoiser import denoiser
from . import weight_files
from .config import TrainingConfig, apply_launcher, to_dict
from .data import BatchSource, Images, PreparedBatches, read_images
from .decoder import FCD
from .engine import Engine, LaunchedEngine
from .experts import Expert
from .first_stage import FirstStage, enlarge, find_detail_components, resize_condition, without_lr
from .latent_samples import SampleItems, make_samples, read_samples, sample_items
from .loader import Loader, ReadItem
from .loop import Batch, Budget, Done, LoopConfig, NextBatch, Task, autocast, run

STAGES = ("first-stage", "experts", "decoder")
TRUNK = "trunk"


def train(
    stage: str, config: TrainingConfig, data: object, out: Path, metrics: Path | None, experts: Sequence[str] = ()
) -> None:
    """Train one stage ("first-stage", "experts", "decoder") in the folder `out`, from its last state if there is one.

    data: what `data.open_photos` takes. experts: of the stage of that name, train only these (numbers from 0, or
    "trunk"). Raises SettingError for a name that does not exist, or if the results of an earlier stage are missing.
    """
    if stage not in STAGES:
        raise SettingError(f"stage {stage!r} is unknown: choose one of {', '.join(STAGES)}")
    if experts and stage != "experts":
        raise SettingError(f"expert {experts[0]} of stage {stage}: only the stage experts has experts")
    config = without_restore(apply_launcher(config))
    out.mkdir(parents=True, exist_ok=True)
    stages = Stages(config, data, out, metrics=metrics)
    if stage == "first-stage":
        stages.train_first_stage()
    elif stage == "experts":
        stages.train_experts(experts)
    else:
        stages.train_decoder()


def without_restore(config: TrainingConfig) -> TrainingConfig:
    """The config without the setting `restore` and its estimator, which only the one command trains."""
    model = config.model
    unet = replace(model.unet, adapter_ranks=()) if isinstance(model.unet, UNetConfig) else model.unet
    autoencoder = replace(model.autoencoder, estimator=False, cleaner_channels=0, adapter_ranks=())
    return replace(config, model=replace(model, unet=unet, autoencoder=autoencoder))


class Stages:
    """Trains stages in folders below `out`.

    engine: what computes all stages, in this one process; None leaves it to accelerate and its launcher.
    """

    def __init__(
        self, config: TrainingConfig, data: object, out: Path, *, metrics: Path | None = None,
        engine: Engine | None = None,
    ) -> None:  # fmt: skip
        self.config, self.data, self.out, self.metrics, self._engine = config, data, out, metrics, engine

    @cached_property
    def images(self) -> Images:
        """The training images: on the device if one process trains, else in memory that loaders share."""
        return read_images(self.data, self._engine.device if self._engine else "cpu")

    def adapt_loop(self, loop: LoopConfig) -> LoopConfig:
        """The loop with the run's own settings."""
        return loop

    def make_engine(self, loop: LoopConfig) -> Engine:
        """The engine of a stage."""
        return self._engine or LaunchedEngine(loop.accumulate, loop.precision)

    def open_source(self, crop: int, loop: LoopConfig, smooth: bool = False) -> BatchSource:
        """Crops of `crop` pixels: in batches on the device, or in batches of one for loaders."""
        device, batch = (self._engine.device, loop.batch) if self._engine else ("cpu", 1)
        return BatchSource(
            self.images, crop=crop, scale=self.config.model.scale, batch=batch, recipe=self.config.degradation,
            device=device, seed=loop.seed, smooth=smooth,
        )  # fmt: skip

    def open_batches(self, crop: int, task: Task, smooth: bool = False) -> NextBatch:
        """Batches of crops of `crop` pixels, in the parts that this process computes."""
        source = self.open_source(crop, task.loop, smooth)
        if self._engine:
            return PreparedBatches(source) if source.device.type == "cuda" else lambda step: [source.next(step)]
        return Loader(lambda k: {name: value[0] for name, value in source.next(k).items()}, task.loop, task.engine)

    def run(self, task: Task, batches: NextBatch, name: str, budget: Budget | None = None) -> Done:
        """Train a task in the folder of that name, with the whole config beside its results."""
        folder = self.out / name
        if task.engine.main:
            folder.mkdir(parents=True, exist_ok=True)
            weight_files.write_json(folder / "config.json", to_dict(self.config))
        return run(task, batches, task.loop, folder, budget)

    def train_first_stage(self, budget: Budget | None = None) -> None:
        """Train the first stage, and compute the scale factor that gives its latents unit variance."""
        loop = self.adapt_loop(self.config.first_stage.loop)
        stage, engine = replace(self.config.first_stage, loop=loop), self.make_engine(loop)
        model, guide = self.config.model.autoencoder, None
        images = self.open_source(stage.crop, loop).next(0, 64)["hr"]
        if stage.guide_weight:
            guide = find_detail_components(images, model.embed_dim, model.factor)
        task = FirstStage(model, stage, engine, metrics=self.metrics, guide=guide)
        self.run(task, self.open_batches(stage.crop, task), "first_stage", budget)
        if engine.main:
            network = self.load_first_stage(replace(model, scale_factor=1.0)).to(images.device)
            with torch.inference_mode():
                latents = torch.cat([network.encode(image[None]).flatten() for image in images])
            facts = {"scale_factor": round(1 / latents.std().item(), 4)}
            weight_files.write_json(self.out / "first_stage" / "facts.json", facts)
        engine.wait()

    def train_experts(self, experts: Sequence[str] = ()) -> None:
        """Train the trunk if the config has one, then every time expert; or those of them that `experts` names."""
        stage, model = self.config.experts, self.model
        names = [*([TRUNK] if stage.trunk else []), *map(str, range(len(model.stages)))]
        unknown = [name for name in experts if name not in names]
        if unknown:
            raise SettingError(f"expert {unknown[0]}: there is no such expert; choose from {', '.join(names)}")
        wanted = [name for name in names if name in (experts or names)]
        trunk = self.out / TRUNK / f"{TRUNK}_grouped.safetensors"
        if stage.trunk and TRUNK not in wanted and not trunk.is_file():
            raise SettingError(f"{trunk}: not found; train the trunk first, with --expert trunk, or copy it here")
        for name in wanted:
            self.train_expert(name)

    def train_expert(self, name: str, budget: Budget | None = None) -> None:
        """Train one expert by its number, from the trunk if the config has one; or the trunk, on all timesteps."""
        stage, model = self.config.experts, self.model
        if name == TRUNK:
            loop, label, span = self.adapt_loop(stage.trunk or stage.loop), TRUNK, (0, model.process.timesteps)
        else:
            starts = (0, *model.stages[:-1])
            loop = self.adapt_loop(replace(stage.loop, seed=stage.loop.seed + 1 + int(name)))
            label, span = f"stage{name}", (starts[int(name)], model.stages[int(name)])
        branches = stage.trunk is not None and name != TRUNK
        trunk = weight_files.load(self.out / TRUNK / f"{TRUNK}_grouped.safetensors") if branches else None
        engine = self.make_engine(loop)
        task = Expert(model, stage, loop, engine, span=span, name=label, trunk=trunk)
        batches = self.open_batches(self.expert_crop, task)
        network = self.load_first_stage(model.autoencoder).to(engine.device)

        def encode(step: int) -> list[Batch]:
            return [self._encode(network, part, loop, engine.device) for part in batches(step)]

        self.run(task, encode, label, budget)

    @property
    def expert_crop(self) -> int:
        """Side in pixels of the crops that experts are trained on."""
        return self.config.experts.crop

    def _encode(self, network: Autoencoder, batch: Batch, loop: LoopConfig, device: torch.device) -> Batch:
        """The batch with latents of HR and upsampled LR images, and settings (fidelity 0) if the model has any."""
        batch = {k: v if k == "index" else v.to(device, non_blocking=True) for k, v in batch.items()}
        with torch.no_grad(), autocast(loop, device):
            x0, y = (network.encode(image).float() for image in (batch["hr"], enlarge(batch["lr"], batch["hr"])))
        found = {**batch, "x0": x0, "y": y, "lr": resize_condition(batch["lr"], x0)}
        if self.config.model.unet.takes_settings:
            restore = batch["restore"].float()
            found["settings"] = torch.stack([restore, torch.zeros_like(restore)], dim=1)
        return found

    def train_decoder(self) -> None:
        """Sample latents with the experts, then train the decoder on them."""
        stage, engine = self.config.decoder, self.make_engine(self.config.decoder.loop)
        samples = self._sample(engine)
        task = FCD(
            self.model.autoencoder, stage, engine, first_stage=weight_files.load(self._first_stage_file),
            metrics=self.metrics, skipped=self.config.first_stage.skip,
        )  # fmt: skip
        self.run(task, Loader(samples, stage.loop, engine), "decoder")

    def _sample(self, engine: Engine) -> ReadItem:
        """Sampled latents with their LR and HR images, from the disk or made now. Processes share the work."""
        stage, model, seed = self.config.decoder, self.model, self.config.decoder.loop.seed
        files = [self._expert_file(i) for i in range(len(model.stages))]
        facts = {
            "crop": stage.crop, "cache": stage.cache, "seed": seed, "degradation": self.config.degradation,
            "sample_steps": stage.sample_steps,
            "experts": [compute_fingerprint(path) for path in (self._first_stage_file, *files)],
        }  # fmt: skip

        def prepare() -> SampleItems:
            source = self.open_source(stage.crop, replace(stage.loop, seed=seed + 7))
            device, dtype = engine.device, DTYPES[stage.loop.precision]
            experts = [denoiser(averaged(model.unet)) for _ in files]
            for expert, path in zip(experts, files):
                expert.load_state_dict(weight_files.load(path))
                expert.eval().requires_grad_(False).to(device, dtype)
            first = self.load_first_stage(model.autoencoder).to(device, dtype)
            ready = assemble(model, experts, first, device=device, dtype=dtype)
            return lambda indices: sample_items(ready, source, indices, steps=stage.sample_steps, seed=seed)

        return read_samples(make_samples(self.out / "samples", stage.cache, facts, prepare, engine), stage.cache, seed)

    @property
    def model(self) -> ModelConfig:
        """The model's config with the scale factor of the first stage that was trained."""
        path = self.out / "first_stage" / "facts.json"
        if not path.is_file():
            raise SettingError(f"{path}: not found; train the first stage first")
        factor = json.loads(path.read_text())["scale_factor"]
        return replace(self.config.model, autoencoder=replace(self.config.model.autoencoder, scale_factor=factor))

    @property
    def _first_stage_file(self) -> Path:
        return self.out / "first_stage" / "first_stage.safetensors"

    def load_first_stage(self, autoencoder: AutoencoderConfig) -> Autoencoder:
        """The trained first stage, with the scale factor of the config that is given."""
        network = Autoencoder(without_lr(autoencoder))
        network.load_state_dict(weight_files.load(self._first_stage_file))
        return network.eval().requires_grad_(False)

    def _expert_file(self, index: int) -> Path:
        path = self.out / f"stage{index}" / f"stage{index}.safetensors"
        if not path.is_file():
            raise SettingError(f"{path}: not found; train expert {index} first, or copy it here from another machine")
        return path


def export(config: TrainingConfig, folder: Path, path: Path) -> Path:
    """Write a run's averaged experts and its decoder as a fp16 safetensors file that `moesr.load` opens."""
    model = Stages(without_restore(config), None, folder).model
    experts = [weight_files.load(folder / f"stage{i}" / f"stage{i}.safetensors") for i in range(len(model.stages))]
    return write_model(path, model, experts, weight_files.load(folder / "decoder" / "decoder.safetensors"))


def write_model(
    path: Path, model: ModelConfig, experts: Sequence[Mapping[str, Tensor]], autoencoder: Mapping[str, Tensor],
    facts: Mapping[str, str] | None = None,
) -> Path:  # fmt: skip
    """Write a model in fp16, with `facts` in its header. Raises NumericsError for weights that are not finite."""
    if not all(bool(value.isfinite().all()) for part in (*experts, autoencoder) for value in part.values()):
        raise NumericsError(f"{path}: weights that are not numbers; train from the last good state again")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_model(path, model, experts, autoencoder, torch.float16, facts)
    return path
