"""Training images: a folder in, pairs of HR crop and degraded LR out, the same for the same seed and index."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import ImageError, SettingError
from .degradation import Degradation, Degrade

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")


class PhotoCrops(Dataset[dict[str, Tensor]]):
    """Random square crops of the images below a folder, turned and mirrored, with their degraded LR.

    Item k is a function of (seed, k) alone, so a resumed run sees the same data. Items: hr [3, crop, crop] and lr
    [3, crop / scale, crop / scale], float32 in [-1, 1]. Raises ImageError for an empty folder, an unreadable image or
    one smaller than the crop, SettingError for a crop that the scale does not divide.
    """

    def __init__(self, folder: str | Path, crop: int, scale: int, degrade: Degrade, length: int, seed: int = 0) -> None:
        if crop % scale:
            raise SettingError(f"crop {crop}: must be a multiple of the scale {scale}; choose {crop // scale * scale}")
        self.paths = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in SUFFIXES)
        if not self.paths:
            raise ImageError(f"{folder}: no images ({', '.join(SUFFIXES)}) below it; give a folder with photographs")
        self.crop, self.degrade, self.length, self.seed = crop, degrade, length, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, index))
        path = self.paths[rng.integers(len(self.paths))]
        image = _open(path)
        if min(image.size) < self.crop:
            raise ImageError(f"{path}: {image.width} x {image.height} is smaller than the crop {self.crop}; remove it")
        x = int(rng.integers(image.width - self.crop + 1))
        y = int(rng.integers(image.height - self.crop + 1))
        pixels = np.asarray(image.crop((x, y, x + self.crop, y + self.crop)))
        pixels = np.rot90(pixels, int(rng.integers(4)))
        if rng.integers(2):
            pixels = pixels[:, ::-1]
        hr = torch.tensor(np.ascontiguousarray(pixels)).permute(2, 0, 1).float() / 127.5 - 1
        lr = self.degrade(hr, rng)
        return {"hr": self.degrade.target(hr) if isinstance(self.degrade, Degradation) else hr, "lr": lr}


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise ImageError(f"{path}: not readable as an image ({error}); remove or replace it") from error
