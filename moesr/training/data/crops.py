"""Training pairs one by one: images in, HR crops and their degraded LR out, the same for the same seed and index."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ...errors import ImageError, SettingError
from ...images.resize import resize
from .degradation import Degradation
from .photos import open_photos, values


@dataclass(frozen=True)
class Pair:
    """One HR crop [3, crop, crop] and its LR [3, crop / scale, crop / scale] in [-1, 1], with what is known of them."""

    hr: Tensor
    lr: Tensor
    name: str  # of the image
    facts: str  # what the degradation did, in a few words
    restore: float  # how degraded the LR is, 0 to 1


class PhotoCrops(Dataset[dict[str, Tensor]]):
    """Random square crops of images, turned and mirrored, with their degraded LR, read when they are asked for.

    `source` is a folder, a pack, or a map-style dataset (anything with len and index) of PIL images, uint8 arrays
    [H, W, C] or float tensors [3, H, W] in [-1, 1]. Grey becomes RGB, alpha is laid on white, EXIF orientation is
    applied, CMYK becomes sRGB, and samples of 16 bits keep them all.

    `shrink` are factors of which one, drawn anew for every item, reduces the image before the crop is taken, where it
    is large enough: photographs at several sizes, since a reduced one has more detail per pixel. They need not be
    whole numbers.

    Item k is a function of (seed, k) alone, so a resumed run sees the same data. Items: hr [3, crop, crop] and lr
    [3, crop / scale, crop / scale], float32 in [-1, 1]. Raises SettingError for settings, and ImageError where there
    are no images or one is unreadable or smaller than the crop: at once as far as headers tell, else with the item.
    """

    def __init__(
        self,
        source: str | Path | Any,
        crop: int,
        scale: int,
        degrade: Degradation,
        length: int,
        seed: int = 0,
        shrink: tuple[float, ...] = (1,),
    ) -> None:
        check_crop(crop, scale, seed)
        if not shrink or min(shrink) < 1:
            raise SettingError(f"shrink {list(shrink)}: give numbers from 1, as 1,1.5,2")
        self.photos, self.shrink = open_photos(source, crop), shrink
        self.crop, self.degrade, self.length, self.seed = crop, degrade, length, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        pair = self.pair(index)
        return {"hr": pair.hr, "lr": pair.lr}

    def pair(self, index: int) -> Pair:
        """Item `index`, with the name of its image and the facts of its degradation."""
        rng = np.random.default_rng((self.seed, index))
        which = int(rng.integers(len(self.photos)))
        image, name = self.photos.image(which), self.photos.name(which)
        width, height = image.size if isinstance(image, Image.Image) else image.shape[1::-1]
        if min(width, height) < self.crop:
            raise ImageError(
                f"{name}: {width} x {height} is smaller than the crop {self.crop}; remove it or lower the crop"
            )
        side = self.crop
        if max(self.shrink) > 1:
            side = round(side * self.shrink[int(rng.integers(len(self.shrink)))])
            side = side if side <= min(width, height) else self.crop
        x = int(rng.integers(width - side + 1))
        y = int(rng.integers(height - side + 1))
        pixels = np.rot90(values(image, name, (x, y, x + side, y + side)), int(rng.integers(4)))
        if rng.integers(2):
            pixels = pixels[:, ::-1]
        hr = torch.tensor(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]
        if side > self.crop:
            hr = resize(hr, (self.crop, self.crop)).clamp(-1, 1)
        hr = (hr + 1) / 2
        numbers = self.degrade.draw(rng, 1)
        hr = self.degrade.target(hr, numbers)
        noise = torch.Generator().manual_seed(int(rng.integers(2**32)))
        lr = self.degrade.apply(hr, numbers, noise)
        restore = float(self.degrade.restore(numbers)[0])
        return Pair(hr[0] * 2 - 1, lr[0] * 2 - 1, name, self.degrade.describe(numbers, 0), restore)


def check_crop(crop: int, scale: int, seed: int) -> None:
    """Raises SettingError for a crop that the scale does not divide, or a negative seed."""
    if scale < 1 or crop < scale or crop % scale:
        nearest = max(1, crop // max(scale, 1)) * scale
        raise SettingError(f"crop {crop}: must be a multiple of the scale {scale}; choose {nearest}")
    if seed < 0:
        raise SettingError(f"seed {seed}: must not be negative; choose 0 or more")
