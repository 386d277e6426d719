"""`train CONFIG`: a small model from photographs to file by one command, in stages that share its time."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoints.files import open_model, save_model
from ..config import ModelConfig
from ..errors import NumericsError, SettingError
from ..library import find
from ..model import find_device
from ..networks.autoencoder import Autoencoder
from . import weights
from .config import TrainingConfig, to_dict
from .data import BatchSource
from .engine import SingleProcess
from .experts import Expert
from .first_stage import FirstStage, detail_components
from .latents import enlarge
from .loop import Batch, LoopConfig, autocast
from .parts import PARTS, find_parts, join_parts, split_file
from .restore_estimator import EstimatorTask
from .timed import Budget, Done, run_timed
from .unrolled import Unrolled

log = logging.getLogger(__name__)

#: Key of a file's header under which a run says how it was made.
TRAINING = "moesr.training"


class Recipe:
    """One run: three stages in a row below `out`, each of them resumed or, where it is done, left out.

    minutes: for all of the run; None trains for the steps of the config. start: a name, a file, or a folder with the
    parts of a model of the same config to go on from, which leaves out the first two stages. device: auto, cpu, cuda.
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
        self.config, self.pack, self.out, self.minutes, self.metrics = config, pack, out, minutes, metrics
        self.start, self.seed, self.save_minutes = start, seed, save_minutes
        self.device = find_device(device)
        self._crop = config.unrolled.crop if self.device.type == "cpu" else config.unrolled.crop_gpu
        if self.device.type == "cuda":
            torch.set_float32_matmul_precision("high")  # TF32
            torch.backends.cudnn.allow_tf32 = True
            torch.backends.cudnn.benchmark = True
        out.mkdir(parents=True, exist_ok=True)
        (out / "config.json").write_text(json.dumps(to_dict(config), indent=2) + "\n")

    def run(self) -> Path:
        """Train and export; returns the model's file. Its parts, of at most 15 MiB, are beside it in `parts`."""
        stage = self.config.unrolled
        estimator = self._estimator(stage.estimator_share) if self.config.model.autoencoder.estimator else None
        if self.start:
            model, experts, autoencoder = self._published(self.start)
            share = 1 - stage.estimator_share
        else:
            autoencoder, model = self._first_stage(stage.first_stage_share)
            trunk = self._trunk(model, autoencoder, stage.experts_share)
            experts = [trunk for _ in model.stages]
            share = 1 - stage.estimator_share - stage.first_stage_share - stage.experts_share
        loop = self._loop(stage.loop, stage.batch_gpu)
        task = Unrolled(
            model, replace(stage, loop=loop), experts=experts, autoencoder=autoencoder, estimator=estimator,
            metrics=self.metrics, engine=SingleProcess(self.device),
        )  # fmt: skip
        exporting = _Exporting(task, lambda: self._export(task, model))
        source = self._source(self._crop, loop)
        done = run_timed(exporting, source.next, loop, self.out / "unrolled", self._budget(share))
        return self._export(task, model, done)

    def _estimator(self, share: float) -> dict[str, Tensor]:
        plan = self.config.unrolled.estimator
        loop = self._loop(plan, plan.batch)
        folder = self.out / "estimator"
        source = self._source(self._crop, loop)
        task = EstimatorTask(loop, SingleProcess(self.device))
        run_timed(task, source.next, loop, folder, self._budget(share))
        return weights.load(folder / "estimator.safetensors")

    def _first_stage(self, share: float) -> tuple[Mapping[str, Tensor], ModelConfig]:
        """Encoder and decoder, and the model's config with the factor that gives latents unit variance."""
        stage, model = self.config.first_stage, self.config.model
        loop, folder = self._loop(stage.loop, 64), self.out / "first_stage"
        source = self._source(stage.crop, loop)
        some = source.next(0)["hr"]
        guide = detail_components(some, model.autoencoder.embed_dim, model.autoencoder.factor)
        task = FirstStage(
            model.autoencoder, replace(stage, loop=loop), self.metrics, guide if stage.guide_weight else None,
            SingleProcess(self.device),
        )  # fmt: skip
        run_timed(task, source.next, loop, folder, self._budget(share))
        state = weights.load(folder / "first_stage.safetensors")
        network = _built(model, state).to(self.device)
        with torch.inference_mode():
            spread = network.encode(some).std().item()
        autoencoder = replace(model.autoencoder, scale_factor=round(1 / spread, 4))
        return state, replace(model, autoencoder=autoencoder)

    def _trunk(self, model: ModelConfig, autoencoder: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
        """Averaged weights of one network that was trained on all timesteps: every expert begins as a copy of it."""
        stage = self.config.experts
        loop, folder = self._loop(stage.trunk or stage.loop, 64), self.out / "trunk"
        source = self._source(self._crop, loop)
        encoder = _built(model, autoencoder).to(self.device)

        def encode(step: int) -> Batch:
            batch = source.next(step)
            with torch.no_grad(), autocast(loop, self.device):
                x0 = encoder.encode(batch["hr"]).float()
                y = encoder.encode(enlarge(batch["lr"], batch["hr"])).float()
            settings = torch.stack([batch["restore"].float(), torch.zeros_like(batch["restore"]).float()], dim=1)
            return {**batch, "x0": x0, "y": y, **({"settings": settings} if model.unet.restore else {})}

        task = Expert(model, stage, loop, (0, model.process.timesteps), "trunk", SingleProcess(self.device))
        run_timed(task, encode, loop, folder, self._budget(share))
        return weights.load(folder / "trunk.safetensors")

    def _published(self, start: str) -> tuple[ModelConfig, list[Mapping[str, Tensor]], Mapping[str, Tensor]]:
        """The model's config with the latents' factor of `start`, and the weights of its experts and autoencoder."""
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
        experts: list[Mapping[str, Tensor]] = [files.expert(i) for i in range(len(files.config.stages))]
        return replace(self.config.model, autoencoder=autoencoder), experts, files.autoencoder()

    def _export(self, task: Unrolled, model: ModelConfig, done: Done | None = None) -> Path:
        """Write the model in fp16, whole and in parts."""
        experts, autoencoder = task.weights()
        if not all(weights.finite(part) for part in (*experts, autoencoder)):
            raise NumericsError(f"{self.out}: weights that are not numbers; train from the last good state again")
        facts: dict[str, Any] = {"seed": self.seed, "device": self.device.type, "start": Path(self.start or "").name}
        facts |= {"minutes": self.minutes, "pack": Path(self.pack).name, "config": self.config.model.name}
        if done is not None:
            facts |= {"steps": done.steps, "minutes": round(done.minutes, 2), "images_per_second": round(done.rate, 2)}
        path = self.out / f"{model.name or 'model'}.safetensors"
        save_model(path, model, experts, autoencoder, torch.float16, {TRAINING: json.dumps(facts)})
        split_file(path, self.out / PARTS)
        return path

    def _source(self, crop: int, loop: LoopConfig) -> BatchSource:
        return BatchSource(
            self.pack, crop=crop, scale=self.config.model.scale, batch=loop.batch, recipe=self.config.degradation,
            device=self.device, seed=loop.seed,
        )  # fmt: skip

    def _loop(self, loop: LoopConfig, batch_gpu: int) -> LoopConfig:
        """The loop with the run's seed and, on a GPU, its batch and a learning rate that grows with its square root."""
        loop = replace(loop, seed=loop.seed + self.seed)
        if self.device.type == "cpu":
            return replace(loop, precision="fp32")
        return replace(loop, batch=batch_gpu, lr=loop.lr * math.sqrt(batch_gpu / loop.batch), precision="bf16")

    def _budget(self, share: float) -> Budget:
        return Budget(None if self.minutes is None else self.minutes * share, self.save_minutes)


class _Exporting:
    """A task whose exports go to the run's own folder. See loop.Task."""

    def __init__(self, task: Unrolled, export: Callable[[], object]) -> None:
        self.parts, self.engine, self.to, self.step, self.pictures = (
            task.parts, task.engine, task.to, task.step, task.pictures,
        )  # fmt: skip
        self._export = export

    def export(self, folder: Path) -> None:
        self._export()


def _built(model: ModelConfig, state: Mapping[str, Tensor]) -> Autoencoder:
    """The first stage as it encodes."""
    refine = any(k.startswith("decoder.unet_1.") for k in state)
    config = replace(model.autoencoder, lr_fusion=False, lr_skip=False, refine=refine, estimator=False)
    network = Autoencoder(config)
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)
