"""Results, by a model or from files, measured against a folder of HR images."""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import ImageError, MoESRError, SettingError
from ..images.files import READ_SUFFIXES, read_image
from ..images.resize import resize_uint8
from .metric_suite import Suite, columns_of

#: uint8 LR [h, w, 3] -> uint8 result [H, W, 3].
Upscale = Callable[[np.ndarray], np.ndarray]
#: What LR files and results append to the name of their HR: photo.png and photo_x4.png are a pair.
_SUFFIX = re.compile(r"[ _-]?x\d+$", re.IGNORECASE)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Case:
    """Files of one image. lr is None if it is made from the HR, result if a model makes it."""

    name: str
    hr: Path
    lr: Path | None = None
    result: Path | None = None


@dataclass(frozen=True)
class Row:
    """What was measured on one image."""

    name: str
    #: By metric; None where the image does not allow it.
    values: dict[str, float | None]
    #: Seconds that the model took; None for results from files.
    seconds: float | None = None
    #: A line for each metric that the image does not allow.
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trio:
    """The pixels behind a row, uint8 [H, W, 3]: the LR as it is, and result and HR of one size."""

    lr: np.ndarray
    result: np.ndarray
    hr: np.ndarray


def match(
    hr: Path, lr: Path | None = None, results: Path | None = None, limit: int | None = None
) -> tuple[list[Case], list[str]]:
    """The images of the folder `hr` by name, the first `limit`, with the files of one stem in the other folders.

    In those an ending such as x4 or _x4 may follow the stem. Also returns a line for each image without such a file.
    Raises SettingError for a folder that does not exist or holds no pictures.
    """
    found, missing = [], []
    partners = {folder: _index_by_stem(folder) for folder in (lr, results) if folder is not None}
    for path in _list_pictures(hr)[:limit]:
        files = []
        for folder in (lr, results):
            files.append(None if folder is None else partners[folder].get(path.stem))
            if folder is not None and files[-1] is None:
                missing.append(f"{path}: no picture of that name in {folder}")
                break
        else:
            found.append(Case(path.stem, path, *files))
    return found, missing


def make_bicubic(scale: int) -> Upscale:
    """Pillow's bicubic, the baseline of every table."""

    def upscale(lr: np.ndarray) -> np.ndarray:
        height, width = lr.shape[:2]
        return np.array(Image.fromarray(lr).resize((width * scale, height * scale), Image.Resampling.BICUBIC))

    return upscale


class Benchmark:
    """Rows of a table, one by one, and their mean.

    scale: between LR and HR; None takes it from the sizes of the files. upscale: the model; None if the cases have
    results. reduction: the bicubic that makes the LR of cases without one, "pillow" or "matlab".
    """

    def __init__(self, suite: Suite, scale: int | None, upscale: Upscale | None, reduction: str = "pillow") -> None:
        self.suite, self.scale, self.upscale, self.reduction = suite, scale, upscale, reduction
        self.rows: list[Row] = []
        self.failed: list[str] = []

    def run(self, cases: Sequence[Case]) -> Iterator[tuple[Row, Trio]]:
        """Measure image by image. Rows are kept in `rows`, and a line for each image that fails in `failed`.

        Raises SettingError for an error that all images share.
        """
        for case in cases:
            try:
                row, trio = self._measure(case)
            except SettingError:
                raise
            except MoESRError as error:
                self.failed.append(str(error))
            except Exception as error:  # one broken file must not take the others with it
                _log.info("%s", case.hr, exc_info=True)
                self.failed.append(f"{case.hr}: {type(error).__name__}: {' '.join(str(error).split())}")
            else:
                self.rows.append(row)
                yield row, trio

    def _measure(self, case: Case) -> tuple[Row, Trio]:
        lr, hr = self._read_inputs(case)
        seconds = None
        if case.result is not None:
            result = _read_pixels(case.result)
        elif self.upscale is not None:
            start = time.perf_counter()
            result = self.upscale(lr)
            seconds = time.perf_counter() - start
        else:
            raise SettingError("nothing to evaluate: give a model or a folder of results")
        if result.shape != hr.shape:
            raise ImageError(f"{case.result or case.hr}: the result is {_size(result)}, the HR {_size(hr)} pixels")
        values, notes = self.suite.score(_to_tensor(result), _to_tensor(hr), _to_tensor(lr))
        return Row(case.name, values, seconds, tuple(notes)), Trio(lr, result, hr)

    def mean(self) -> Row:
        """The means over the images that have a value, and the metrics of the set."""
        keys = [k for k in self.suite.keys if k != "fid"]
        values = {k: _mean([row.values.get(k) for row in self.rows]) for k in keys}
        return Row("mean", {**values, **self.suite.score_set()}, _mean([row.seconds for row in self.rows]))

    def _read_inputs(self, case: Case) -> tuple[np.ndarray, np.ndarray]:
        """LR, and HR without the pixels at its right and bottom that the scale does not divide."""
        hr = _read_pixels(case.hr)
        if case.lr is None:
            scale = self.scale or 1
            height, width = (side // scale for side in hr.shape[:2])
            if not height or not width:
                raise ImageError(f"{case.hr}: {_size(hr)} pixels leave nothing at 1/{scale} of the size")
            hr = hr[: height * scale, : width * scale]
            return self._reduce(hr, height, width), hr
        lr = _read_pixels(case.lr)
        scale = self.scale or max(1, round(hr.shape[0] / lr.shape[0]))
        height, width = (side * scale for side in lr.shape[:2])
        if not (0 <= hr.shape[0] - height < scale and 0 <= hr.shape[1] - width < scale):
            raise ImageError(f"{case.lr}: {_size(lr)} pixels do not fit its HR, {_size(hr)}, at scale {scale}")
        return lr, hr[:height, :width]

    def _reduce(self, hr: np.ndarray, height: int, width: int) -> np.ndarray:
        if self.reduction == "matlab":
            return resize_uint8(hr, (height, width))
        return np.array(Image.fromarray(hr).resize((width, height), Image.Resampling.BICUBIC))


def to_json(model: str, settings: dict[str, Any], benchmark: Benchmark) -> dict[str, Any]:
    """Everything that was measured, JSON-able: model, settings, images, mean, left_out, failed.

    A metric that could not be measured, or is infinite (PSNR of equal images), is null.
    """
    rows = [{"name": row.name, **_numbers(row)} for row in benchmark.rows]
    return {
        "model": model, "settings": settings, "images": rows, "mean": _numbers(benchmark.mean()),
        "left_out": list(benchmark.suite.left_out), "failed": list(benchmark.failed),
    }  # fmt: skip


def format_row(row: Row | None, keys: Sequence[str], width: int, timed: bool) -> str:
    """One line of the table on a screen, or its head for None; the name takes `width` characters."""
    cells = [("image" if row is None else row.name).ljust(width)[:width]]
    for column in columns_of(keys):
        value = column.title if row is None else format_value(row.values.get(column.key), column.digits)
        cells.append(value.rjust(10))
    if timed:
        cells.append(("seconds" if row is None else format_value(row.seconds, 2)).rjust(8))
    return " ".join(cells).rstrip()


def format_value(value: float | None, digits: int) -> str:
    """A number as tables print it; a dash for None."""
    return "-" if value is None else f"{value:.{digits}f}"


def _numbers(row: Row) -> dict[str, float | None]:
    numbers = {**row.values, "seconds": row.seconds}
    return {k: None if v is None or not math.isfinite(v) else round(v, 6) for k, v in numbers.items()}


def _mean(values: Sequence[float | None]) -> float | None:
    there = [v for v in values if v is not None]
    return sum(there) / len(there) if there else None


def _list_pictures(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise SettingError(f"{folder}: no such folder")
    pictures = sorted(p for p in folder.iterdir() if p.is_file() and p.suffix.lower() in READ_SUFFIXES)
    if not pictures:
        raise SettingError(f"{folder}: no pictures in there ({', '.join(READ_SUFFIXES)})")
    return pictures


def _index_by_stem(folder: Path) -> dict[str, Path]:
    """Pictures by stem; one without an ending such as x4 counts before one with it."""
    pictures = _list_pictures(folder)
    return {**{_SUFFIX.sub("", p.stem): p for p in pictures}, **{p.stem: p for p in pictures}}


def _read_pixels(path: Path) -> np.ndarray:
    """uint8 [H, W, 3]; alpha is ignored, 16 bits are rounded to 8."""
    return np.rint(read_image(path).floats().rgb * 255).astype(np.uint8)


def _to_tensor(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None].float() / 255


def _size(pixels: np.ndarray) -> str:
    return f"{pixels.shape[1]} x {pixels.shape[0]}"
