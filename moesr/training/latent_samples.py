"""Latents that the experts sample once for the decoder's stage, kept on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from tqdm import tqdm

from ..errors import SettingError
from ..model import SRModel
from ..pipeline import sample_latents
from . import weight_files
from .data import BatchSource
from .engine import Engine
from .loop import Batch
from .random_draws import make_seed

#: Items in one file, and in one batch while they are sampled.
FILE, BATCH = 64, 8

#: Samples the items of these indices.
SampleItems = Callable[[range], Batch]


def make_samples(
    folder: Path, count: int, facts: Mapping[str, object], prepare: Callable[[], SampleItems], engine: Engine
) -> list[Path]:
    """Files with `count` items. Missing ones are sampled now, and processes share the work.

    facts: what the items depend on. Raises SettingError if the items in the folder were made otherwise.
    """
    if engine.main:
        _check_facts(folder, facts)
    engine.wait()
    files = [folder / f"{k:06d}.safetensors" for k in range(-(-count // FILE))]
    missing = [k for k in range(engine.process, len(files), engine.processes) if not files[k].exists()]
    if missing:
        sample_items = prepare()
        for k in tqdm(missing, desc=folder.name, disable=not engine.main):
            stop = min((k + 1) * FILE, count)
            rows = [sample_items(range(i, min(i + BATCH, stop))) for i in range(k * FILE, stop, BATCH)]
            weight_files.save({name: torch.cat([row[name] for row in rows]) for name in rows[0]}, files[k])
    engine.wait()
    lost = next((path for path in files if not path.exists()), None)
    if lost:
        raise SettingError(f"{lost}: not found, another process made it; machines must share the folder of a run")
    return files


def sample_items(model: SRModel, source: BatchSource, indices: range, *, steps: int, seed: int) -> Batch:
    """z (fp16), lr and hr (uint8) of items of a source: functions of the seed and the indices."""
    items = [source.next(k, 1) for k in indices]
    lr, hr = (
        ((torch.cat([item[name] for item in items]) + 1) * 127.5).round().clamp(0, 255).byte() for name in ("lr", "hr")
    )
    seed = make_seed(seed, "sample", indices.start)
    z = sample_latents(model, lr.movedim(1, -1).float() / 255, steps=steps, seed=seed, tile=0)
    return {"z": z.half(), "lr": lr, "hr": hr}


def read_samples(files: Sequence[Path], count: int, seed: int) -> Callable[[int], Batch]:
    """A function that gives an item in random order by (seed, index), from files of FILE items each."""
    tensors = [load_file(path) for path in files]

    def draw(index: int) -> Batch:
        generator = torch.Generator().manual_seed(make_seed(seed, index))
        which, place = divmod(int(torch.randint(count, (), generator=generator)), FILE)
        item = {name: values[place].float() for name, values in tensors[which].items()}
        return {name: value if name == "z" else value / 127.5 - 1 for name, value in item.items()}

    return draw


def _check_facts(folder: Path, facts: Mapping[str, object]) -> None:
    """Write what samples are made with, or raise SettingError if those in the folder were made otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "facts.json"
    before = json.loads(path.read_text()) if path.exists() else dict(facts)
    for name, value in facts.items():
        if before[name] != value:
            raise SettingError(
                f"{folder}: made with {name} {before[name]}, now it is {value}; remove the folder to make it again"
            )
    weight_files.write_json(path, facts)
