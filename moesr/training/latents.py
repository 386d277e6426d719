"""Latents computed once and kept on disk, so that a stage does not run the stages before it at every step."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from math import lcm
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import Dataset, default_collate
from tqdm import tqdm

from ..errors import SettingError
from ..images.resize import resize
from . import weights
from .engine import Engine
from .loop import Batch

log = logging.getLogger(__name__)

#: Items in a file, and in a batch while they are made.
FILE, BATCH = 64, 8


class Stack:
    """Tensors of several files one behind the other, read where they are indexed: stack[item] or stack[item, ...]."""

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self.parts = parts
        self.shape = torch.Size((sum(len(part) for part in parts), *parts[0].shape[1:]))

    def __getitem__(self, at: Any) -> Tensor:
        item, *rest = at if isinstance(at, tuple) else (at,)
        return self.parts[item // len(self.parts[0])][(item % len(self.parts[0]), *rest)]


def cached(
    folder: Path, data: Dataset[Batch], make: Callable[[Batch], Batch], facts: dict[str, object], engine: Engine
) -> dict[str, Stack]:
    """`make` of all items of `data`, by name, from the files in `folder`; those that are missing are made first.

    Processes share the work, and a run that was killed goes on behind the last whole file. make: a batch of items with
    their `index`; its results [B, ...] must be functions of the items alone. Floats are kept as fp16. Raises
    SettingError if what is there was made with other `facts`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count: int = len(data)  # type: ignore[arg-type]  # Dataset does not say that it has a length
    made = {k: str(v) for k, v in facts.items()}
    starts = range(0, count, FILE)
    paths = [folder / f"{k:06d}.safetensors" for k in range(len(starts))]
    for path in paths:
        if path.exists():
            _check(path, made)
            break
    engine.wait()
    mine = list(zip(paths, starts))[engine.process :: engine.processes]
    missing = [(path, start) for path, start in mine if not path.exists()]
    for path, start in tqdm(missing, desc=folder.name, disable=not engine.main or not missing):
        rows: list[Batch] = []
        for first in range(start, min(start + FILE, count), BATCH):
            indices = range(first, min(first + BATCH, start + FILE, count))
            batch = default_collate([data[i] for i in indices])
            batch = {k: v.to(engine.device) for k, v in batch.items()} | {"index": torch.tensor(list(indices))}
            with torch.inference_mode():
                rows.append({k: v.half() if v.is_floating_point() else v for k, v in make(batch).items()})
        weights.save({k: torch.cat([row[k] for row in rows]) for k in rows[0]}, path, {"facts": json.dumps(made)})
    engine.wait()
    lost = next((path for path in paths if not path.exists()), None)
    if lost:
        raise SettingError(f"{lost}: not found, another process made it; machines must share the folder of a run")
    files = [load_file(path) for path in paths]
    return {k: Stack([file[k] for file in files]) for k in files[0]}


def _check(path: Path, facts: dict[str, str]) -> None:
    with safe_open(str(path), "pt") as file:
        before: dict[str, str] = json.loads((file.metadata() or {}).get("facts", "{}"))
    for name, value in facts.items():
        if before.get(name, value) != value:
            raise SettingError(
                f"{path.parent}: made with {name} {before[name]}, now it is {value}; remove the folder to make it again"
            )


def digest(*paths: Path) -> str:
    """A few letters that are others when the files are."""
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            for block in iter(lambda: file.read(2**20), b""):
                total.update(block)
    return total.hexdigest()[:12]


def to_bytes(image: Tensor) -> Tensor:
    """An image in [-1, 1] as uint8."""
    return ((image + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def enlarge(lr: Tensor, hr: Tensor) -> Tensor:
    """LR images [B, 3, h, w] in the size of HR images."""
    return resize(lr, (hr.shape[-2], hr.shape[-1])).clamp(-1, 1)


def resize_condition(lr: Tensor, z: Tensor) -> Tensor:
    """LR images [B, 3, h, w] as the experts are given them beside latents `z`: at the size of those."""
    size = (z.shape[-2], z.shape[-1])
    return lr if size == tuple(lr.shape[-2:]) else resize(lr, size).clamp(-1, 1)


class LatentCrops(Dataset[Batch]):
    """Aligned random crops of cached tensors, a function of (seed, index) alone.

    `rates` gives the pixels of each tensor per latent cell; a crop is `size` latent cells wide, and begins where all
    tensors have a pixel. uint8 images come out as float32 in [-1, 1].
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor | Stack],
        rates: Mapping[str, int | Fraction],
        size: int,
        length: int,
        seed: int = 0,
    ) -> None:
        self.tensors, self.size, self.length, self.seed = tensors, size, length, seed
        self.rates = {k: Fraction(r) for k, r in rates.items()}
        self.unit = lcm(*(r.denominator for r in self.rates.values()))
        first = next(iter(rates))
        self.items = tensors[first].shape[0]
        self.height, self.width = (int(side / self.rates[first]) for side in tensors[first].shape[-2:])
        if size > min(self.height, self.width) or size % self.unit:
            whole = f"{self.width} x {self.height}"
            raise SettingError(f"{size} latent cells of {whole}: choose a multiple of {self.unit} that fits")

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Batch:
        generator = torch.Generator().manual_seed(self.seed * 2_000_003 + index)

        def draw(stop: int) -> int:
            return int(torch.randint(stop, (), generator=generator))

        item = draw(self.items)
        y, x = (draw((side - self.size) // self.unit + 1) * self.unit for side in (self.height, self.width))
        return {name: self._cut(name, item, y, x) for name in self.rates}

    def _cut(self, name: str, item: int, y: int, x: int) -> Tensor:
        r = self.rates[name]
        rows, columns = (slice(int(start * r), int((start + self.size) * r)) for start in (y, x))
        value = self.tensors[name][item, :, rows, columns]
        return value.float() / 127.5 - 1 if value.dtype == torch.uint8 else value.float()
