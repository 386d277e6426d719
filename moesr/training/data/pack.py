"""One small file with the best parts of many photographs: all that a training run needs.

A pack is a ZIP file without further compression. Its first entry, pack.json, says how it was made and which
photographs it is from; every other entry is one part of 256 x 256 pixels as WebP of quality 85. Of what Pillow
reads everywhere that is the smallest at equal error: on detailed parts 0.26 bytes per pixel at 37 dB, where JPEG takes
0.34 (AVIF takes 0.22, but needs Pillow 11.3 and many times as long to write). Any ZIP program opens it.
"""

from __future__ import annotations

import io
import json
import re
import threading
import zipfile
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from ...atomic_files import open_new
from ...errors import ImageError, SettingError
from ...images.files import explain_errors, from_pil
from .photos import Photo, round_pixels

#: Side of a part in pixels, and the step of places where one may begin.
SIDE, STEP = 256, 16
_QUALITY, _INDEX = 85, "pack.json"
#: Reductions that are tried, and the growth of differences from a distance of 1 to 2 pixels that is sharp enough.
_FACTORS, _SHARP = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0), 2.9
#: Share of parts that are too hard to be preferred.
_HARDEST = 0.97


class Pack:
    """A pack, open for reading, by several threads if need be. Raises ImageError for a file that is none."""

    def __init__(self, path: str | Path) -> None:
        self.path, self._lock = Path(path), threading.Lock()
        try:
            self._archive = zipfile.ZipFile(path)
            self._facts = json.loads(self._archive.read(_INDEX))
        except OSError as error:
            raise ImageError(f"{path}: cannot be read ({error.strerror}); give a pack or a folder") from error
        except (zipfile.BadZipFile, KeyError, ValueError) as error:
            raise ImageError(f"{path}: is no pack; make one with `python -m moesr data PHOTOS --pack FILE`") from error
        self._names = [name for name in self._archive.namelist() if name != _INDEX]

    def __len__(self) -> int:
        return len(self._names)

    @property
    def photos(self) -> list[Photo]:
        """The parts, to read."""
        return [Photo(f"{self.path}: {name}", partial(self._read, name)) for name in self._names]

    def _read(self, name: str) -> np.ndarray:
        with self._lock:
            data = self._archive.read(name)
        with explain_errors(f"{self.path}: {name}"), Image.open(io.BytesIO(data), formats=["WEBP"]) as image:
            return round_pixels(from_pil(image))

    @property
    def photographs(self) -> list[str]:
        """Names of the files that the parts are from."""
        return list(self._facts["photographs"])


@dataclass(frozen=True)
class Part:
    """A rectangle of a photograph that may go into a pack."""

    photo: int  # index
    reduced: float  # the photograph is reduced by this factor before the part is cut out
    box: tuple[int, int, int, int]  # left, top, right, bottom, in pixels
    detail: float  # mean absolute difference of neighbouring pixels, in grey levels


def write_pack(photos: Sequence[Photo], path: Path, *, max_mb: float, leave_out: Collection[str] = ()) -> Pack:
    """Write the most detailed and some smooth parts of photographs into a pack of at most `max_mb` MB (10^6 bytes).

    How they are chosen: every photograph is first reduced by the smallest of 1, 1.25, 1.5, 2, 2.5, 3, 4 at which it is
    sharp (squared differences grow by less than 2.9 times from 1 to 2 pixels of distance: about 2 where edges
    are steps, 4 where all is smooth). Its most detailed 256 x 256 pixels are a part, then the most detailed that do not
    overlap it, and so on. The parts of one photograph are ordered by detail, but the second, fifth ... is the smoothest
    that is left, so that skies are learned too; those above the 97th percentile of all parts come last. The k-th part
    (from 0) goes in at rank k / sqrt(pixels of the photograph): every photograph has one before a large one has many.
    Files whose names differ only in two numbers at their end are one photograph.

    leave_out: file names, or stems of these. The same photographs give the same bytes. Raises SettingError where
    nothing is left or fits; an existing file stays until the pack is whole.
    """
    left_out = {Path(name).stem for name in leave_out}
    names = [Path(photo.name).stem for photo in photos]
    kept = [k for k, name in enumerate(names) if name not in left_out and _photograph(name) not in left_out]
    if not kept:
        raise SettingError(f"{path}: all photographs are left out; give others")
    with ThreadPoolExecutor() as pool:
        parts = [part for found in pool.map(lambda k: list(_cut(photos[k], k)), kept) for part in found]
    used: set[int] = set()
    with open_new(path, replaces=True) as file, zipfile.ZipFile(file, "w") as archive, ThreadPoolExecutor() as pool:
        size = 4096 + 2 * sum(len(name) + 8 for name in names)  # bytes of directory and index, counted generously
        for part, data in pool.map(lambda part: (part, _encode(photos[part.photo], part)), _order(parts, names)):
            name = "{}_{}_{}.webp".format(names[part.photo], *part.box[:2])
            size += len(data) + 2 * len(name.encode()) + 128
            if size > max_mb * 1e6:
                break
            _add(archive, name, data)
            used.add(part.photo)
        if not used:
            raise SettingError(f"{path}: {max_mb:g} MB hold no part; give --max-mb more")
        files = [Path(photos[k].name).name for k in sorted(used)]
        _add(archive, _INDEX, json.dumps({"side": SIDE, "quality": _QUALITY, "photographs": files}).encode())
        pool.shutdown(cancel_futures=True)
    return Pack(path)


def find_sharp_size(image: Image.Image) -> float:
    """The smallest factor by which an image must be reduced to be sharp pixel by pixel; 4 if no smaller one will do."""
    for factor in _FACTORS:
        grey = np.asarray(_reduce(image.convert("L"), factor), np.float32)
        if min(grey.shape) < 8:
            return factor
        one, two = (
            float(((grey[k:] - grey[:-k]) ** 2).mean() + ((grey[:, k:] - grey[:, :-k]) ** 2).mean()) for k in (1, 2)
        )
        if two <= _SHARP * one:
            return factor
    return _FACTORS[-1]


def measure_detail(image: np.ndarray) -> np.ndarray:
    """Absolute differences of neighbours, float32 [H - 1, W - 1], of an image [H, W, 3] in grey levels."""
    grey = image.astype(np.float32).mean(2)
    return np.abs(grey[1:, 1:] - grey[:-1, 1:]) + np.abs(grey[1:, 1:] - grey[1:, :-1])


def sum_windows(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Sums of values [H, W] over every window of height x width: float64 [H - height + 1, W - width + 1]."""
    sums = np.pad(values.cumsum(0, np.float64).cumsum(1), ((1, 0), (1, 0)))
    return sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]


def _cut(photo: Photo, index: int) -> Iterator[Part]:
    image = Image.fromarray(photo.read())
    factor = min(find_sharp_size(image), max(1.0, min(image.size) / SIDE))
    reduced = np.asarray(_reduce(image, factor))
    detail = measure_detail(reduced)
    height, width = (min(n, SIDE) for n in reduced.shape[:2])
    total = sum_windows(detail, height - 1, width - 1)[::STEP, ::STEP] / ((height - 1) * (width - 1))
    tops, lefts = (np.arange(n) * STEP for n in total.shape)
    while total.max() >= 0:
        top, left = (int(k) * STEP for k in np.unravel_index(int(total.argmax()), total.shape))
        yield Part(index, factor, (left, top, left + width, top + height), float(total.max()))
        total[np.ix_(abs(tops - top) < height, abs(lefts - left) < width)] = -1


def _order(parts: list[Part], names: list[str]) -> list[Part]:
    """Parts in the order in which they go into a pack."""
    hardest = float(np.quantile([part.detail for part in parts], _HARDEST))
    groups: dict[str, list[Part]] = {}
    for part in parts:
        groups.setdefault(_photograph(names[part.photo]), []).append(part)
    ranked: list[tuple[float, float, Part]] = []
    for group in groups.values():
        group.sort(key=lambda part: -part.detail)
        hard = [part for part in group if part.detail > hardest]
        rest = group[len(hard) :]
        chosen = [rest.pop(-1 if k % 3 == 1 else 0) for k in range(len(rest))] + hard
        area = sum((p.box[2] - p.box[0]) * (p.box[3] - p.box[1]) for p in group)
        ranked += [(rank / area**0.5, -part.detail, part) for rank, part in enumerate(chosen)]
    return [part for _, _, part in sorted(ranked, key=lambda item: item[:2])]


def _encode(photo: Photo, part: Part) -> bytes:
    buffer = io.BytesIO()
    _reduce(Image.fromarray(photo.read()), part.reduced).crop(part.box).save(buffer, "WEBP", quality=_QUALITY, method=6)
    return buffer.getvalue()


def _reduce(image: Image.Image, factor: float) -> Image.Image:
    if factor == 1:
        return image
    size = max(1, round(image.width / factor)), max(1, round(image.height / factor))
    return image.resize(size, Image.Resampling.BICUBIC)


def _photograph(name: str) -> str:
    """What the names of all parts of one photograph have in common."""
    return re.sub(r"(_[a-z]+)?_\d+_\d+$", "", name)


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(name), data)  # dated 1980: equal bytes for equal photographs
