"""Latents computed once and kept on disk, so that a stage does not run the stages before it at every step."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from . import weights
from .loop import Batch

log = logging.getLogger(__name__)


def cached(path: Path, data: Dataset[Batch], batch: int, make: Callable[[Batch], Batch]) -> dict[str, Tensor]:
    """`make` of every batch of `data`, stacked by name, from `path` if it was done before; float latents as fp16."""
    if not path.exists():
        rows: list[Batch] = []
        for part in tqdm(DataLoader(data, batch_size=batch), desc=path.stem):
            with torch.inference_mode():
                rows.append({k: v.half() if v.is_floating_point() else v for k, v in make(part).items()})
        weights.save({k: torch.cat([row[k] for row in rows]) for k in rows[0]}, path)
    return load_file(path)


def to_bytes(image: Tensor) -> Tensor:
    """An image in [-1, 1] as uint8."""
    return ((image + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


class LatentCrops(Dataset[Batch]):
    """Aligned random crops of cached tensors, a function of (seed, index) alone.

    `rates` gives the pixels of each tensor per latent cell; a crop is `size` latent cells wide. uint8 images come out
    as float32 in [-1, 1]. Of `choices` crops that are drawn, the one whose LR image varies most from pixel to pixel is
    taken: sky teaches little.
    """

    def __init__(
        self,
        tensors: dict[str, Tensor],
        rates: dict[str, int],
        size: int,
        length: int,
        seed: int = 0,
        choices: int = 1,
    ) -> None:
        self.choices = choices
        self.tensors, self.rates, self.size, self.length, self.seed = tensors, rates, size, length, seed
        first = next(iter(rates))
        self.items = tensors[first].shape[0]
        self.height, self.width = (side // rates[first] for side in tensors[first].shape[-2:])

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Batch:
        generator = torch.Generator().manual_seed(self.seed * 2_000_003 + index)

        def draw(stop: int) -> int:
            return int(torch.randint(stop, (), generator=generator))

        def crop() -> Batch:
            item, y, x = draw(self.items), draw(self.height - self.size + 1), draw(self.width - self.size + 1)
            return {name: self._cut(name, item, y, x) for name in self.rates}

        return max((crop() for _ in range(self.choices)), key=lambda c: _variation(c["lr"]) if self.choices > 1 else 0)

    def _cut(self, name: str, item: int, y: int, x: int) -> Tensor:
        r = self.rates[name]
        value = self.tensors[name][item, :, y * r : (y + self.size) * r, x * r : (x + self.size) * r]
        return value.float() / 127.5 - 1 if value.dtype == torch.uint8 else value.float()


def _variation(image: Tensor) -> float:
    return sum(image.diff(dim=axis).abs().mean().item() for axis in (-2, -1))
