"""Validation: photographs that are never trained on, and fixed sets of HR pictures with their degraded LR."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ...errors import ImageError
from ...images.files import Picture, write_image
from .degradation import degradation
from .pack import measure_detail, sum_windows
from .photos import Photo

#: LR sets by folder, and the degradation of each. `clean` is Pillow's bicubic.
SETS = {"clean": None, "degraded": "web", "blind": "blind"}


def read_names(path: Path) -> list[str]:
    """File names, one per line. Lines that start with # do not count."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror}); give a file with one name per line") from error
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def write_sets(
    photos: Sequence[Photo], folder: Path, *, only: Collection[str] = (), scale: int = 4, side: int = 512, seed: int = 0
) -> int:
    """Write FOLDER/hr, /clean, /degraded and /blind (see SETS) as PNG, and return the number of pictures in each.

    An HR picture is the most detailed part of a photograph, of at most side x side pixels. Its LR pictures are
    functions of (seed, its name, the set), so the sets can be made again anywhere. only: names of the photographs to
    take, all by default.
    """
    wanted, count = {Path(name).stem for name in only}, 0
    for photo in photos:
        stem = Path(photo.name).stem
        if wanted and stem not in wanted:
            continue
        hr = _cut_most_detailed(photo.read(), side // scale * scale, scale)
        _save(folder / "hr" / f"{stem}.png", hr)
        for name, recipe in SETS.items():
            key = zlib.crc32(f"{name}/{stem}".encode())
            _save(folder / name / f"{stem}.png", _make_lr(hr, recipe, scale, (seed, key)))
        count += 1
    if not count:
        raise ImageError(f"{folder}: none of the {len(wanted)} photographs is there; check the names")
    return count


def _make_lr(hr: np.ndarray, recipe: str | None, scale: int, seed: tuple[int, int]) -> np.ndarray:
    if recipe is None:
        size = hr.shape[1] // scale, hr.shape[0] // scale
        return np.asarray(Image.fromarray(hr).resize(size, Image.Resampling.BICUBIC))
    degrade, rng = degradation(recipe, scale), np.random.default_rng(seed)
    numbers = degrade.draw(rng, 1)
    images = torch.from_numpy(hr).permute(2, 0, 1)[None].float() / 255
    lr = degrade.apply(images, numbers, torch.Generator().manual_seed(int(rng.integers(2**32))))
    return (lr[0] * 255).round().byte().permute(1, 2, 0).numpy()


def _cut_most_detailed(image: np.ndarray, side: int, multiple: int) -> np.ndarray:
    height, width = (min(n // multiple * multiple, side) for n in image.shape[:2])
    total = sum_windows(measure_detail(image), height - 1, width - 1)
    y, x = np.unravel_index(int(total.argmax()), total.shape)
    return image[y : y + height, x : x + width]


def _save(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, Picture(np.ascontiguousarray(image)))
