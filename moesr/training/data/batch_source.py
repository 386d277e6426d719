"""Training batches made on the device: random crops at random sizes, colour, and the degradation, without a loader."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import SettingError
from .degradation import degradation
from .photos import Images, read_images
from .resample import SMOOTH_BICUBIC, matrices

#: Side in pixels of the cells whose detail is measured.
CELL = 16
#: Places of which the one with most detail is preferred, and the quantile of detail above which none is.
_PLACES, _HARDEST = 3, 0.97


#: Index of an image, top, left, side and mean detail of a square in it.
_Place = tuple[int, int, int, int, float]


class BatchSource:
    """Batches of HR crops and their LR, all computed on `device`; the images lie there too, as uint8.

    Args:
        images: Images, or a source of them: a folder, a pack, several of these, or a dataset (see `open_photos`).
        crop, scale: side of an HR crop in pixels, a multiple of the scale.
        batch: crops per batch.
        recipe: name of a degradation (see `degradation`).
        device: where the images lie and everything is computed; CPU and GPU run the same code.
        seed: from 0.
        shrink: an image is reduced by a factor from 1 to this before a crop is taken, evenly in its logarithm.
        colour: probability that brightness, contrast and saturation are changed; a twentieth of these crops also have
            their channels permuted.
        smooth: prefer smooth places as often as detailed ones, to learn that nothing is left of noise there.

    `next(step)` is a function of (seed, step) on one kind of device, so a resumed run sees the same batches:
    hr [batch, 3, crop, crop] and lr [batch, 3, crop / scale, crop / scale], float32 in [-1, 1]; restore [batch], how
    degraded each LR is, 0 to 1 (see restore_value.py). Another kind of device has other noise, and all else equal.

    Places are drawn evenly over all pixels. In two thirds of the cases three are drawn, and the one with most detail
    is taken, but never one of the hardest 3 per cent (pebbles, noise); with `smooth`, in half of these cases the one
    with least detail. Raises SettingError for a crop that the scale does not divide, or a negative seed; ImageError for
    images that are missing, damaged or smaller than the crop.
    """

    def __init__(
        self,
        images: Any,
        *,
        crop: int,
        scale: int,
        batch: int,
        recipe: str,
        device: torch.device | str = "cpu",
        seed: int = 0,
        shrink: float = 2.5,
        colour: float = 0.5,
        smooth: bool = False,
    ) -> None:
        if scale < 1 or crop < scale or crop % scale:
            nearest = max(1, crop // max(scale, 1)) * scale
            raise SettingError(f"crop {crop}: must be a multiple of the scale {scale}; choose {nearest}")
        if seed < 0:
            raise SettingError(f"seed {seed}: must not be negative; choose 0 or more")
        self.crop, self.scale, self.batch, self.seed = crop, scale, batch, seed
        self.shrink, self.colour, self.smooth, self.device = shrink, colour, smooth, torch.device(device)
        self.degradation = degradation(recipe, scale)
        found = images if isinstance(images, Images) else read_images(images, self.device)
        found.check_sizes(crop)
        self.images, self.names = [image.to(self.device) for image in found.tensors], found.names
        self._detail = [_sum_detail(image) for image in self.images]
        areas = np.array([image.shape[1] * image.shape[2] for image in self.images], float)
        self._shares = areas / areas.sum()
        everywhere = np.random.default_rng(seed)
        self._hardest = float(
            np.quantile([place[-1] for _ in range(64) for place in self._places(everywhere, 16)], _HARDEST)
        )

    def next(self, step: int, count: int | None = None) -> dict[str, Tensor]:
        """Batch `step`, from 0. count: crops, if not `batch`."""
        count, rng = count or self.batch, np.random.default_rng((self.seed, step))
        generator = torch.Generator(self.device).manual_seed(int(rng.integers(2**62)))
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False), _without_tf32():
            hr = self._adjust_colour(self._cut_all(self._choose(rng, count), rng), rng)
            numbers = self.degradation.draw(rng, count)
            lr = self.degradation.apply(hr, numbers, generator)
        restore = torch.from_numpy(self.degradation.restore(numbers)).to(self.device)
        return {"hr": hr * 2 - 1, "lr": lr * 2 - 1, "restore": restore}

    def list_names(self, step: int, count: int | None = None) -> list[str]:
        """The names of the images that the crops of a batch are from."""
        rng = np.random.default_rng((self.seed, step))
        rng.integers(2**62)  # the seed of the noise
        return [self.names[place[0]] for place in self._choose(rng, count or self.batch)]

    def _places(self, rng: np.random.Generator, count: int) -> list[_Place]:
        """Random (image, y, x, side, detail): squares of a side from crop to shrink x crop, as far as they fit."""
        which = rng.choice(len(self.images), count, p=self._shares)
        factor = np.exp(rng.uniform(0, np.log(self.shrink), count))
        at = rng.random((count, 2))
        places = []
        for k, image in enumerate(which):
            height, width = self.images[image].shape[1:]
            side = min(round(self.crop * factor[k]), height, width)
            y, x = int(at[k, 0] * (height - side + 1)), int(at[k, 1] * (width - side + 1))
            places.append((int(image), y, x, side, _mean_detail(self._detail[image], y, x, side)))
        return places

    def _choose(self, rng: np.random.Generator, count: int) -> list[_Place]:
        places = self._places(rng, count * _PLACES)
        draw = rng.random(count)
        chosen = []
        for k in range(count):
            group = places[k * _PLACES : (k + 1) * _PLACES]
            good = [place for place in group if place[-1] <= self._hardest]
            place = group[0]
            if self.smooth and draw[k] < 1 / 3:
                place = min(group, key=lambda place: place[-1])
            elif good and draw[k] < 2 / 3:
                place = max(good, key=lambda place: place[-1])
            chosen.append(place)
        return chosen

    def _cut_all(self, places: list[_Place], rng: np.random.Generator) -> Tensor:
        """HR crops [count, 3, crop, crop] in [0, 1]."""
        flips = rng.integers(2, size=(len(places), 3))
        each = 1 if self.device.type == "cpu" else len(places)  # a GPU cuts all at once, a CPU wastes nothing on edges
        groups = [slice(k, k + each) for k in range(0, len(places), each)]
        return torch.cat([self._cut(places[group], flips[group]) for group in groups])

    def _cut(self, places: list[_Place], flips: np.ndarray) -> Tensor:
        """Squares of images at crop size. flips [n, 3]: swap the axes, then mirror rows, mirror columns."""
        sides = np.array([place[3] for place in places])
        largest = int(sides.max())
        canvas = torch.zeros(len(places), 3, largest, largest, device=self.device)
        for k, (image, y, x, side, _) in enumerate(places):
            square = self.images[image][:, y : y + side, x : x + side]
            canvas[k, :, :side, :side] = square.transpose(1, 2) if flips[k, 0] else square
        targets, modes = np.full(len(places), self.crop), np.full(len(places), SMOOTH_BICUBIC)
        shrink = matrices(sides, targets, modes, largest, device=self.device)
        mirrored = torch.as_tensor(flips[:, 1:, None, None], device=self.device) == 1
        rows, columns = (torch.where(mirrored[:, i], shrink.flip(1), shrink)[:, None] for i in (0, 1))
        return (rows @ canvas @ columns.transpose(-1, -2)).div_(255).clamp_(0, 1)

    def _adjust_colour(self, hr: Tensor, rng: np.random.Generator) -> Tensor:
        count = len(hr)
        changed = rng.random(count) < self.colour
        permuted = changed & (rng.random(count) < 0.05)
        gain = np.exp(rng.uniform(-0.25, 0.25, count))  # contrast around middle grey
        offset, saturation = rng.uniform(-0.08, 0.08, count), np.exp(rng.uniform(-0.4, 0.3, count))
        luma = np.array([0.299, 0.587, 0.114])
        matrix = np.tile(np.eye(3), (count, 1, 1))
        for k in np.flatnonzero(changed):
            matrix[k] = gain[k] * (saturation[k] * np.eye(3) + (1 - saturation[k]) * luma[None])
            if permuted[k]:
                matrix[k] = matrix[k][rng.permutation(3)]
        shift = np.where(changed, 0.5 - 0.5 * gain + offset, 0)
        linear, added = (torch.as_tensor(v.astype(np.float32), device=hr.device) for v in (matrix, shift))
        flat = linear @ hr.flatten(2) + added[:, None, None]
        return flat.clamp_(0, 1).reshape(hr.shape)


class PreparedBatches:
    """The batches of a source on a GPU, each made while the step before it is computed: beside it, on its own stream.

    Called with a step, it gives the batch as a list of one part, as a loop of training wants it.
    """

    def __init__(self, source: BatchSource) -> None:
        self._source = source
        self._stream = torch.cuda.Stream(source.device, priority=-1)  # small kernels that should not queue behind large
        self._pool = ThreadPoolExecutor(1)
        self._next: tuple[int, Future[dict[str, Tensor]]] | None = None

    def __call__(self, step: int) -> list[dict[str, Tensor]]:
        if self._next is None or self._next[0] != step:
            self._next = step, self._pool.submit(self._make, step)
        batch = self._next[1].result()
        self._next = step + 1, self._pool.submit(self._make, step + 1)
        now = torch.cuda.current_stream(self._source.device)
        for value in batch.values():
            value.record_stream(now)  # its memory is not used again before the step has read it
        return [batch]

    def _make(self, step: int) -> dict[str, Tensor]:
        with torch.cuda.device(self._source.device), torch.cuda.stream(self._stream):
            batch = self._source.next(step)
        self._stream.synchronize()
        return batch


@contextmanager
def _without_tf32() -> Iterator[None]:
    """Inside the block products are in float32. TF32 and bf16 would change which way coefficients of a JPEG round."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _sum_detail(image: Tensor) -> np.ndarray:
    """Sums over rectangles of cells: mean absolute difference of neighbours per cell, summed from the corner."""
    grey = image.float().mean(0)
    change = (grey[1:, 1:] - grey[:-1, 1:]).abs() + (grey[1:, 1:] - grey[1:, :-1]).abs()
    rows, columns = max(1, change.shape[0] // CELL), max(1, change.shape[1] // CELL)
    cells = torch.nn.functional.adaptive_avg_pool2d(change[None, None], (rows, columns))[0, 0].cpu().numpy()
    return np.pad(cells.cumsum(0).cumsum(1), ((1, 0), (1, 0)))


def _mean_detail(sums: np.ndarray, y: int, x: int, side: int) -> float:
    rows, columns = sums.shape
    top, left = min(y // CELL, rows - 2), min(x // CELL, columns - 2)
    bottom, right = min(rows - 1, max(top + 1, (y + side) // CELL)), min(columns - 1, max(left + 1, (x + side) // CELL))
    total = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
    return float(total / ((bottom - top) * (right - left)))
