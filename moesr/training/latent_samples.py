"""Latents that the experts sample once for the decoder's stage, kept on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from ..config import ModelConfig, averaged
from ..diffusion.experts import All, ExpertBank
from ..diffusion.process import from_config
from ..diffusion.samplers import sample
from ..errors import SettingError
from ..networks.autoencoder import Autoencoder
from ..networks.denoiser import denoiser
from ..settings import choose_sampler
from . import random_draws, weight_files
from .data import BatchSource
from .engine import Engine
from .experts import predict_x0
from .first_stage import enlarge, resize_condition
from .loop import Batch, LoopConfig, autocast

#: Items in one file, and in one batch while they are sampled.
FILE, BATCH = 64, 8

#: Samples the items of these indices.
Draw = Callable[[range], Batch]


def make_samples(
    folder: Path, count: int, facts: Mapping[str, object], make: Callable[[], Draw], engine: Engine
) -> list[Path]:
    """Files with `count` items, those that are missing sampled now; processes share the work.

    facts: what the items depend on. Raises SettingError if those that are there were made otherwise.
    """
    if engine.main:
        _check_facts(folder, facts)
    engine.wait()
    files = [folder / f"{k:06d}.safetensors" for k in range(-(-count // FILE))]
    mine = list(enumerate(files))[engine.process :: engine.processes]
    missing = [(path, k * FILE) for k, path in mine if not path.exists()]
    draw = make() if missing else None
    for path, start in tqdm(missing, desc=folder.name, disable=not engine.main or not missing):
        assert draw is not None
        stop = min(start + FILE, count)
        rows = [draw(range(k, min(k + BATCH, stop))) for k in range(start, stop, BATCH)]
        weight_files.save({k: torch.cat([row[k] for row in rows]) for k in rows[0]}, path)
    engine.wait()
    lost = next((path for path in files if not path.exists()), None)
    if lost:
        raise SettingError(f"{lost}: not found, another process made it; machines must share the folder of a run")
    return files


class Sampler:
    """Samples latents with the averaged experts in the files."""

    def __init__(
        self, model: ModelConfig, first_stage: Autoencoder, experts: Sequence[Path], loop: LoopConfig,
        device: torch.device,
    ) -> None:  # fmt: skip
        self.loop, self.device, self.process = loop, device, from_config(model.process)
        self.first_stage = first_stage.to(device)
        networks = []
        for path in experts:
            network = denoiser(averaged(model.unet))
            network.load_state_dict(weight_files.load(path))
            networks.append(network.eval().requires_grad_(False).to(device))
        self.bank = ExpertBank(model.stages, All(networks))

    @torch.inference_mode()
    def draw(self, source: BatchSource, indices: range, steps: int) -> Batch:
        """z (fp16), lr and hr (uint8) of items of a source of single items; each a function of its index."""
        items = [source.next(k, 1) for k in indices]
        lr, hr = (torch.cat([item[name] for item in items]).to(self.device) for name in ("lr", "hr"))
        process, index = self.process, {"index": torch.tensor(list(indices))}
        sampler, spacing = choose_sampler(process.kind, steps, "auto", "auto")
        timesteps = process.timesteps(steps, spacing)
        with autocast(self.loop, self.device):
            y = self.first_stage.encode(enlarge(lr, hr)).float()
        condition = resize_condition(lr, y)

        def noise(step: int) -> Tensor:
            return random_draws.draw_normal(y, index, self.loop.seed, f"sample{step}")

        def predict(z: Tensor, t: int) -> Tensor:
            with autocast(self.loop, self.device):
                return predict_x0(self.bank, process, z, t, y, condition)

        start, last = process.prior(noise(-1), y, timesteps[0]), process.last(steps, spacing)
        z = sample(sampler, predict, process, timesteps, start, noise=noise, last=last, y=y)
        lr, hr = (((image + 1) * 127.5).round().clamp(0, 255).to(torch.uint8) for image in (lr, hr))
        return {"z": z.half(), "lr": lr, "hr": hr}


class Samples(Dataset[Batch]):
    """Items in random order, a function of (seed, index), from files of FILE items each. Call it with an index."""

    def __init__(self, files: Sequence[Path], count: int, seed: int) -> None:
        self.files, self.count, self.seed = [load_file(path) for path in files], count, seed

    def __call__(self, index: int) -> Batch:
        generator = torch.Generator().manual_seed(self.seed * 2_000_003 + index)
        which, place = divmod(int(torch.randint(self.count, (), generator=generator)), FILE)
        item = {name: tensor[place].float() for name, tensor in self.files[which].items()}
        return {name: value if name == "z" else value / 127.5 - 1 for name, value in item.items()}


def digest_files(paths: Sequence[Path]) -> str:
    """A few letters that are others when the files are."""
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            for block in iter(lambda: file.read(2**20), b""):
                total.update(block)
    return total.hexdigest()[:12]


def _check_facts(folder: Path, facts: Mapping[str, object]) -> None:
    """Write what samples are made with, or raise SettingError if those that are there were made otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "facts.json"
    before = json.loads(path.read_text()) if path.exists() else dict(facts)
    for name, value in facts.items():
        if before[name] != value:
            raise SettingError(
                f"{folder}: made with {name} {before[name]}, now it is {value}; remove the folder to make it again"
            )
    weight_files.write_json(path, facts)
