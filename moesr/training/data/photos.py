"""Where training images come from: folders, packs, or a torch dataset."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...errors import ImageError, SettingError
from ...images.files import READ_SUFFIXES, Picture, explain_errors, from_pil, lay_on_white, read_image

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Photo:
    """One image that can be read: uint8 [H, W, 3], upright, alpha on white."""

    name: str
    read: Callable[[], np.ndarray]


@dataclass(frozen=True)
class Images:
    """Images in memory."""

    #: uint8 [3, H, W] each.
    tensors: list[Tensor]
    #: Where each is from.
    names: list[str]

    def check_sizes(self, crop: int) -> None:
        """Raise ImageError if some are smaller than the crop; it says how many, and which is the first."""
        small = [i for i, image in enumerate(self.tensors) if min(image.shape[1:]) < crop]
        if small:
            few = f"{len(small)} of {len(self.tensors)} images {'are' if len(small) > 1 else 'is'} smaller than"
            height, width = self.tensors[small[0]].shape[1:]
            first = f"{self.names[small[0]]} ({width} x {height})"
            raise ImageError(f"{few} the crop {crop}, first: {first}; remove what is smaller or lower the crop")


def read_images(source: object, device: torch.device | str = "cpu") -> Images:
    """All images of a source (see `open_photos`) on a device: 3 bytes per pixel.

    Raises ImageError if some cannot be read; it says how many, and which is the first.
    """

    def read(photo: Photo) -> Tensor | str:
        try:
            return torch.from_numpy(np.ascontiguousarray(photo.read().transpose(2, 0, 1))).to(device)
        except ImageError as error:
            _log.info("%s", error)
            return str(error)

    photos = open_photos(source)
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(read, photos))
    bad = [line for line in found if isinstance(line, str)]
    if bad:
        raise ImageError(f"{len(bad)} of {len(found)} images cannot be used, first: {bad[0]}")
    return Images([image for image in found if isinstance(image, Tensor)], [photo.name for photo in photos])


def open_photos(source: object) -> list[Photo]:
    """The images of a pack or its file, of a folder, of a list of these, or of a map-style dataset.

    A dataset has len and index, and gives PIL images or uint8 arrays [H, W, 3]. Of a folder come all images in and
    below it in the order of their names, hidden ones left out. Raises ImageError if there is none.
    """
    from .pack import Pack

    if isinstance(source, Pack):
        return source.photos
    if isinstance(source, (str, Path)):
        return Pack(source).photos if Path(source).is_file() else _list_folder(Path(source))
    if isinstance(source, (list, tuple)) and source and all(isinstance(part, (str, Path, Pack)) for part in source):
        return [photo for part in source for photo in open_photos(part)]
    if not (hasattr(source, "__getitem__") and hasattr(source, "__len__")):
        raise SettingError(f"{type(source).__name__}: not training images; give a folder, a pack or a dataset")
    dataset: Any = source
    if not len(dataset):
        raise ImageError(f"{type(source).__name__}: the dataset is empty; give one with images")
    names = [f"item {k} of {type(source).__name__}" for k in range(len(dataset))]
    return [Photo(name, partial(_read_item, dataset, k, name)) for k, name in enumerate(names)]


def round_pixels(picture: Picture) -> np.ndarray:
    """The pixels of a picture on white as uint8 [H, W, 3]."""
    return (lay_on_white(picture).floats().rgb * 255).round().clip(0, 255).astype(np.uint8)


def _list_folder(folder: Path) -> list[Photo]:
    if not folder.is_dir():
        raise ImageError(f"{folder}: {'not a' if folder.exists() else 'no such'} folder; give one with photographs")
    found = [(p.relative_to(folder).parts, p) for p in folder.rglob("*") if p.suffix.lower() in READ_SUFFIXES]
    paths = [p for parts, p in sorted(found) if not p.is_dir() and not any(name.startswith(".") for name in parts)]
    if not paths:
        raise ImageError(f"{folder}: no images ({', '.join(READ_SUFFIXES)}) below it; give a folder with photographs")
    return [Photo(str(path), partial(_read_file, path)) for path in paths]


def _read_file(path: Path) -> np.ndarray:
    return round_pixels(read_image(path))


def _read_item(dataset: Any, index: int, name: str) -> np.ndarray:
    try:
        item = dataset[index]
    except OSError as error:
        raise ImageError(f"{name}: cannot be read ({error}); repair the dataset") from error
    if isinstance(item, Image.Image):
        with explain_errors(name):
            return round_pixels(from_pil(item))
    if isinstance(item, np.ndarray) and item.dtype == np.uint8 and item.shape[2:] == (3,) and item.size:
        return item
    raise ImageError(f"{name}: {type(item).__name__} is no image; give PIL images or uint8 arrays [H, W, 3]")
