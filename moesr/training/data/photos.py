"""Where training images come from: a folder, checked by its headers before a run starts, or a torch dataset."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, Protocol, TypeGuard

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ...errors import ImageError, SettingError
from ...images import png
from ...images.files import READ_FORMATS, READ_SUFFIXES, explain_errors, from_pil, lay_on_white, read_image

#: How whole files of a format end. Files that end otherwise (which is legal) are decoded once. WebP checks itself.
_ENDS = {"PNG": b"IEND\xaeB`\x82", "JPEG": b"\xff\xd9"}

_log = logging.getLogger(__name__)


class Photos(Protocol):
    """Images by index. `image` is an upright Pillow image, or values float32 [H, W, 3] in [-1, 1]."""

    def __len__(self) -> int: ...
    def name(self, index: int) -> str: ...
    def image(self, index: int) -> Image.Image | np.ndarray: ...


def open_photos(source: object, crop: int) -> Photos:
    """The images of a pack, of a folder or several, or of a dataset; none is known to be smaller than the crop."""
    from .pack import Pack

    if isinstance(source, Pack):
        return source
    if isinstance(source, (str, Path)):
        return Pack.open(Path(source)) if Path(source).is_file() else Folder(Path(source), crop)
    if isinstance(source, (list, tuple)) and source and all(isinstance(part, (str, Path)) for part in source):
        return Joined([open_photos(part, crop) for part in source])
    if isinstance(source, Sequence) or (hasattr(source, "__getitem__") and hasattr(source, "__len__")):
        return Wrapped(source)
    kind = type(source).__name__
    raise SettingError(f"{kind}: not training images; give a folder or a map-style dataset, with len and index")


def load_tensors(photos: Photos, crop: int, device: torch.device) -> list[Tensor]:
    """All images as uint8 [3, H, W] on the device. Raises ImageError for one that is smaller than the crop."""

    def load(index: int) -> Tensor:
        image, name = photos.image(index), photos.name(index)
        width, height = image.size if isinstance(image, Image.Image) else image.shape[1::-1]
        if min(width, height) < crop:
            raise ImageError(f"{name}: {width} x {height} is smaller than the crop {crop}; remove it or lower the crop")
        return torch.from_numpy(np.ascontiguousarray(pixels(image, name).transpose(2, 0, 1))).to(device)

    with ThreadPoolExecutor() as pool:
        return list(pool.map(load, range(len(photos))))


class Joined:
    """The images of several sources one behind the other."""

    def __init__(self, parts: Sequence[Photos]) -> None:
        self.parts = parts
        self.starts = np.cumsum([0, *(len(part) for part in parts)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def name(self, index: int) -> str:
        part, index = self._find(index)
        return part.name(index)

    def image(self, index: int) -> Image.Image | np.ndarray:
        part, index = self._find(index)
        return part.image(index)

    def _find(self, index: int) -> tuple[Photos, int]:
        which = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.parts[which], index - int(self.starts[which])


class Folder:
    """The PNG, JPEG, WebP, TIFF and BMP files below a folder, hidden ones left out, in the order of their names.

    Every header is read, and a file that does not end as its format does is decoded. Raises ImageError for a folder
    that is missing or has no images, for files that cannot be read, and for images smaller than the crop: how many,
    and which is first.
    """

    def __init__(self, folder: Path, crop: int) -> None:
        if not folder.is_dir():
            raise ImageError(f"{folder}: {'not a' if folder.exists() else 'no such'} folder; give one with photographs")
        found = [(p.relative_to(folder).parts, p) for p in folder.rglob("*") if p.suffix.lower() in READ_SUFFIXES]
        visible = [p for parts, p in sorted(found) if not any(name.startswith(".") for name in parts)]
        self.paths = [p for p in visible if not p.is_dir()]
        if not self.paths:
            kinds = ", ".join(READ_SUFFIXES)
            raise ImageError(f"{folder}: no images ({kinds}) below it; give a folder with photographs")
        self.sizes: list[tuple[int, int]] = []  # as stored, which may be on their side
        bad: list[str] = []
        for path in self.paths:
            try:
                self.sizes.append(_size(path))
            except ImageError as error:
                _log.info("%s", error)
                bad.append(str(error))
        if bad:
            raise ImageError(f"{folder}: {len(bad)} of {len(self.paths)} images cannot be used, first: {bad[0]}")
        small = [i for i, size in enumerate(self.sizes) if min(size) < crop]
        if small:
            path, (width, height) = self.paths[small[0]], self.sizes[small[0]]
            for i in small:
                _log.info("%s: %d x %d is too small", self.paths[i], *self.sizes[i])
            few = f"{len(small)} of {len(self)} images {'are' if len(small) > 1 else 'is'} smaller than the crop {crop}"
            first = f"{path.relative_to(folder)} ({width} x {height})"
            raise ImageError(f"{folder}: {few}, first: {first}; remove what is smaller or lower the crop")
        _log.info("%s: %d images, %.1f MP", folder, len(self), self.pixels / 1e6)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def pixels(self) -> int:
        """Pixels of all images together."""
        return sum(width * height for width, height in self.sizes)

    def name(self, index: int) -> str:
        return str(self.paths[index])

    def image(self, index: int) -> Image.Image | np.ndarray:
        path = self.paths[index]
        with explain_errors(path), path.open("rb") as file:
            if png.is_png16(file.read(26)):  # Pillow would cut its samples to 8 bits
                picture = lay_on_white(read_image(path))
                return picture.rgb * 2 - 1
            file.seek(0)
            with Image.open(file, formats=READ_FORMATS) as image:
                image.load()
                return _upright(image)


class Wrapped:
    """A dataset of Pillow images, uint8 arrays [H, W], [H, W, 1 to 4], or tensors [1 or 3, H, W].

    Tensors are uint8, or floating point in [-1, 1]. An item may be a tuple that starts with the image, as torchvision's
    are. An index must always give the same image. Raises ImageError for anything else, and for an empty dataset.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        if not len(dataset):
            raise ImageError(f"{type(dataset).__name__}: the dataset is empty; give one with images")
        self.image(0)

    def __len__(self) -> int:
        return len(self.dataset)

    def name(self, index: int) -> str:
        return f"item {index} of {type(self.dataset).__name__}"

    def image(self, index: int) -> Image.Image | np.ndarray:
        try:
            item = self.dataset[index]
        except OSError as error:
            raise ImageError(f"{self.name(index)}: cannot be read ({error}); repair the dataset") from error
        if isinstance(item, (tuple, list)) and item:
            item = item[0]
        if isinstance(item, Tensor) and item.ndim == 3 and item.shape[0] in (1, 3):
            if item.dtype == torch.uint8:
                item = item.permute(1, 2, 0).cpu().numpy()
            elif item.is_floating_point():
                return item.detach().float().permute(1, 2, 0).expand(-1, -1, 3).cpu().numpy()
        if isinstance(item, Image.Image):
            with explain_errors(self.name(index)):
                item.load()
                return _upright(item)
        if _is_pixels(item):
            return Image.fromarray(item[..., 0] if item.shape[2:] == (1,) else np.ascontiguousarray(item))
        kind = f"{item.dtype} {tuple(item.shape)}" if isinstance(item, (Tensor, np.ndarray)) else type(item).__name__
        kinds = "PIL images, uint8 arrays [H, W, C] or float tensors [3, H, W]"
        raise ImageError(f"{self.name(index)}: {kind} is no image; give {kinds}")


def values(image: Image.Image | np.ndarray, name: str, box: tuple[int, int, int, int] | None = None) -> np.ndarray:
    """An image, or its part (left, top, right, bottom), as float32 [H, W, 3] in [-1, 1]: grey thrice, alpha on white.

    All of 16 bits is kept. Raises ImageError, with `name`, for floats that are not in [-1, 1].
    """
    if isinstance(image, np.ndarray):
        part = image[box[1] : box[3], box[0] : box[2]] if box else image
        if not (np.abs(part) <= 1 + 1e-3).all():
            low, high = float(part.min()), float(part.max())
            raise ImageError(f"{name}: values from {low:.3g} to {high:.3g}; floats must be in [-1, 1]")
        return part
    with explain_errors(name):
        picture = lay_on_white(from_pil(image.crop(box) if box else image))
    return picture.rgb * np.float32(255) / np.float32(127.5) - 1


def pixels(image: Image.Image | np.ndarray, name: str) -> np.ndarray:
    """A whole image as uint8 [H, W, 3]."""
    if isinstance(image, Image.Image) and image.mode == "RGB":
        return np.array(image)
    return ((values(image, name) + 1) * 127.5).round().clip(0, 255).astype(np.uint8)


def _size(path: Path) -> tuple[int, int]:
    with explain_errors(path), path.open("rb") as file:
        if not file.read(1):
            raise ImageError(f"{path}: the file is empty; get it again")
        file.seek(0)
        with Image.open(file, formats=READ_FORMATS) as image:
            size = image.size
            whole = _ends(file, image.format or "")
        if not whole:
            file.seek(0)
            with Image.open(file, formats=READ_FORMATS) as image:
                image.load()
    return size


def _ends(file: IO[bytes], kind: str) -> bool:
    """True if the file ends as files of its kind do."""
    length = file.seek(0, 2)
    end = _ENDS.get(kind, b"")
    file.seek(max(0, length - len(end)))
    return file.read() == end


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception as error:  # EXIF that nobody can parse says nothing; the pixels are fine
        _log.debug("unreadable EXIF: %s", error)
        return image


def _is_pixels(item: object) -> TypeGuard[np.ndarray]:
    if not isinstance(item, np.ndarray) or item.dtype != np.uint8 or not item.size:
        return False
    return item.ndim == 2 or (item.ndim == 3 and item.shape[2] in (1, 2, 3, 4))
