"""`train CONFIG`: a small model from photographs to a file by one command. Its stages share the time."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoints.model_files import open_model
from ..config import ModelConfig
from ..errors import SettingError
from ..library import find
from ..model import find_device
from . import weight_files
from .config import TrainingConfig
from .engine import Engine
from .file_parts import PARTS, find_parts, join_parts, split_file
from .loop import Budget, Done, LoopConfig, Task
from .lr_cleaner import CleanerTask
from .perceptual import FeatureLosses
from .restore_estimator import EstimatorTask
from .stages import TRUNK, Stages, write_model
from .unrolled import Unrolled

#: Side in pixels of the HR crops whose LR images the cleaner is trained on.
_CLEANER_CROP = 192
#: Key of a file's header under which a run says how it was made.
TRAINING = "moesr.training"


class Recipe(Stages):
    """One run below the folder `out`: every stage is started, resumed, or left out if it is finished.

    minutes: for all stages together; None trains for the steps of the config. start: a model of the same config to go
    on from, by name, file or folder of parts; first stage and trunk are then left out. device: auto, cpu, cuda.
    save_minutes: between two states.
    """

    def __init__(
        self,
        config: TrainingConfig,
        pack: str | Path,
        out: Path,
        *,
        minutes: float | None,
        start: str | None = None,
        device: str = "auto",
        seed: int = 0,
        metrics: Path | None = None,
        save_minutes: float = 10.0,
    ) -> None:
        self.device = find_device(device)
        super().__init__(config, pack, out, metrics=metrics, engine=Engine(self.device))
        self.minutes, self.start, self.seed, self.save_minutes = minutes, start, seed, save_minutes
        if self.device.type == "cuda":
            torch.set_float32_matmul_precision("high")  # TF32
            torch.backends.cudnn.allow_tf32 = True
            torch.backends.cudnn.benchmark = True
        out.mkdir(parents=True, exist_ok=True)

    def train(self) -> Path:
        """Train and export. Returns the model's file; parts of at most 15 MiB are in the folder `parts` beside it."""
        stage, wanted, share = self.config.unrolled, self.config.model.autoencoder, 1.0
        model, experts, autoencoder = self._open_start(self.start) if self.start else (None, [], {})
        if wanted.estimator and not _select(autoencoder, "estimator."):
            share -= stage.estimator_share
            loop = self.adapt_loop(stage.estimator, stage.estimator.batch)
            task: Task = EstimatorTask(loop, self.make_engine(loop))
            autoencoder |= self._train_part("estimator", task, self.expert_crop, stage.estimator_share)
        cleaner = _select(autoencoder, "cleaner.")
        if wanted.cleaner_channels and (stage.cleaner_share > 0 or not cleaner):
            share -= stage.cleaner_share
            loop = self.adapt_loop(stage.cleaner, stage.cleaner.batch)
            estimator = _select(autoencoder, "estimator.")
            features = FeatureLosses(stage.cleaner_lpips, stage.cleaner_adversary, stage.adversary_start)
            task = CleanerTask(
                loop, self.make_engine(loop), features,
                channels=wanted.cleaner_channels, estimator=estimator, start=cleaner, metrics=self.metrics,
            )  # fmt: skip
            autoencoder |= self._train_part("cleaner", task, _CLEANER_CROP, stage.cleaner_share)
        if model is None:
            share -= stage.first_stage_share + stage.experts_share
            self.train_first_stage(self._budget(stage.first_stage_share))
            self.train_expert(TRUNK, self._budget(stage.experts_share))
            model = self.model
            autoencoder |= weight_files.load(self.out / "first_stage" / "first_stage.safetensors")
            experts = [weight_files.load(self.out / TRUNK / f"{TRUNK}.safetensors")] * len(model.stages)
        loop = self.adapt_loop(stage.loop, stage.batch_gpu)
        last = Unrolled(
            model, replace(stage, loop=loop), self.make_engine(loop), experts=experts, autoencoder=autoencoder,
            metrics=self.metrics, on_export=lambda: self._export(last, model),
        )  # fmt: skip
        batches = self.open_batches(self.expert_crop, last, smooth=stage.smooth_places)
        done = self.run(last, batches, "unrolled", self._budget(share))
        return self._export(last, model, done)

    def adapt_loop(self, loop: LoopConfig, batch_gpu: int = 64) -> LoopConfig:
        """The loop with the run's seed. On a GPU also `batch_gpu`, with a learning rate that grows with its root."""
        loop = replace(loop, seed=loop.seed + self.seed)
        if self.device.type == "cpu":
            return replace(loop, precision="fp32")
        return replace(loop, batch=batch_gpu, lr=loop.lr * math.sqrt(batch_gpu / loop.batch), precision="bf16")

    @property
    def expert_crop(self) -> int:
        return self.config.unrolled.crop if self.device.type == "cpu" else self.config.unrolled.crop_gpu

    def _train_part(self, name: str, task: Task, crop: int, share: float) -> dict[str, Tensor]:
        """Train a part of the autoencoder in the folder of its name. Returns its weights, by their keys there."""
        self.run(task, self.open_batches(crop, task, smooth=name == "cleaner"), name, self._budget(share))
        return {f"{name}.{k}": v for k, v in weight_files.load(self.out / name / f"{name}.safetensors").items()}

    def _open_start(self, start: str) -> tuple[ModelConfig, list[Mapping[str, Tensor]], dict[str, Tensor]]:
        """The model's config with the scale factor of `start`, and the weights of its experts and autoencoder."""
        path = Path(start)
        parts = find_parts(path) if path.is_dir() else []
        if parts:
            path = join_parts(parts, self.out / "start.safetensors")
        elif not path.is_file():
            path = find(start)
        files = open_model(path)
        if files.config.stages != self.config.model.stages:
            raise SettingError(f"--start {start}: its experts work at other timesteps; start from one of this config")
        factor = files.config.autoencoder.scale_factor
        autoencoder = replace(self.config.model.autoencoder, scale_factor=factor)
        experts: list[Mapping[str, Tensor]] = list(files.experts)
        return replace(self.config.model, autoencoder=autoencoder), experts, dict(files.decoder)

    def _export(self, task: Unrolled, model: ModelConfig, done: Done | None = None) -> Path:
        """Write the model in fp16, whole and in parts."""
        facts: dict[str, Any] = {"seed": self.seed, "device": self.device.type, "start": Path(self.start or "").name}
        facts |= {"minutes": self.minutes, "pack": Path(str(self.data)).name, "config": self.config.model.name}
        if done is not None:
            facts |= {"steps": done.steps, "minutes": round(done.minutes, 2), "images_per_second": round(done.rate, 2)}
        path = self.out / f"{model.name or 'model'}.safetensors"
        write_model(path, model, *task.weights(), {TRAINING: json.dumps(facts)})
        split_file(path, self.out / PARTS)
        return path

    def _budget(self, share: float) -> Budget:
        return Budget(None if self.minutes is None else self.minutes * share, self.save_minutes)


def _select(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights below a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
