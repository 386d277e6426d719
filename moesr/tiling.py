"""Tiles: how large, what they cost, predicting and decoding in them, and smaller ones where memory runs out.

Geometry and blending are in images/tile_windows.py. Sides are in output pixels or in latent cells, as each name says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from . import canvas_memory
from .config import AutoencoderConfig, NetworkConfig
from .errors import SettingError
from .images.tile_windows import Blender, Window, crop, is_whole_canvas, plan_windows
from .progress import Reporter
from .runtime import Runtime

R = TypeVar("R")

#: Largest tile that "auto" takes, in output pixels: networks are trained on crops of this order.
LARGEST_TILE = 768
SMALLEST_TILE = 64
#: Most tiles at a time on a device, and output pixels that they may have together: more keeps no device busier.
LARGEST_BATCH, BATCH_PIXELS = 16, 2 * LARGEST_TILE**2

# tiles of z [n, C, h, w], t, the window of each tile, the index of its image in the batch -> predicted x0 [n, C, h, w]
PredictTiles = Callable[[Tensor, int, Sequence[Window], Sequence[int]], Tensor]


def estimate_tile_memory(config: AutoencoderConfig, device: torch.device, side: int) -> int:
    """Bytes beside the weights that decoding a tile of `side` output pixels takes; a step of the experts takes less.

    Fitted to peaks in float32 (docs/performance.md): on a CPU those of the process, on devices those of tensors. In low
    precision filters, codes and what torch makes of half precision on the way are float32 too, so it takes as much.
    """
    pixels = side**2
    if device.type == "cpu":  # whatever the tile: bands of wide features, distances to codes, the libraries' own
        return 256 * 2**20 + (25 * config.ch + 1250) * pixels
    if not config.refine:
        return ((24 + 3 * config.lr_fusion) * config.ch + 12) * pixels
    # The wide features of the frequency U-Net exist in bands once they are large (networks/inverted_residual.py).
    return int((21.5 * config.ch + 111) * pixels + min((72.5 * config.ch + 11) * pixels, 82 * 2**20))


def retry_smaller(
    runtime: Runtime, size: int, smallest: int, attempt: Callable[[int], R], what: str = "tiles"
) -> tuple[R, int]:
    """The result of `attempt(size)` and the size it succeeded with: out of memory halves the size and tries again.

    Raises SettingError when the smallest does not fit either; other errors pass through.
    """
    while True:
        try:
            return attempt(size), size
        except Exception as error:
            if not runtime.is_out_of_memory(error):
                raise
            if size <= smallest:
                raise SettingError(
                    f"out of memory even with {what} of {size}: free some memory, or load the model in fp16"
                ) from error
        # Outside of the handler, so that the failed attempt's tensors are gone when memory is counted again.
        runtime.release()
        size = max(smallest, size // 2)


def to_overlap(tile_overlap: int | str, factor: int) -> int | None:
    """The overlap in cells of `factor` pixels, None for auto."""
    return None if tile_overlap == "auto" else math.ceil(int(tile_overlap) / factor)


def count_overlap_cells(side: int, overlap: int | None, least: int) -> int:
    """Cells by which tiles of `side` cells overlap. overlap: as asked; None is an eighth of the tile."""
    return max(least, side // 8 if overlap is None else min(overlap, side // 2))


class TileSize:
    """The side of a run's tiles, in latent cells: it gets smaller where memory runs out, and says so.

    "auto" is LARGEST_TILE: it depends on the picture's size and the model alone, so that a seed gives the same picture
    whatever else is in memory. Only a tile that cannot fit, because it needs more than all that is free, is halved
    beforehand.
    """

    def __init__(
        self, tile: int | str, *, whole: int, smallest: int, multiple: int, config: AutoencoderConfig,
        device: torch.device, runtime: Runtime, free: int, reporter: Reporter,
    ) -> None:  # fmt: skip
        """tile: as asked, in pixels. whole, smallest, multiple: in cells. free: bytes free on the device."""
        self._factor, self._runtime, self._reporter = config.factor, runtime, reporter
        self._config, self._device, self._free = config, device, free
        side = whole * self._factor if tile == 0 else LARGEST_TILE if tile == "auto" else int(tile)
        if tile == "auto":
            first = side = min(side, whole * self._factor)
            while side > SMALLEST_TILE and estimate_tile_memory(config, device, side) > free:
                side //= 2
            if side != first:
                reporter.note(f"tiles of {side} instead of {first} pixels: {free / 2**20:.0f} MiB of memory are free")
        self.side = whole if tile == 0 else min(whole, max(smallest, side // self._factor // multiple * multiple))
        self._smallest = min(smallest, self.side)

    def attempt(self, work: Callable[[int], R]) -> R:
        """The result of `work(side)`, with a smaller side if memory runs out; later calls start with that one."""
        first = self.side
        result, self.side = retry_smaller(self._runtime, self.side, self._smallest, work)
        if self.side != first:
            sides = f"{self.side * self._factor} instead of {first * self._factor}"
            self._reporter.note(f"tiles of {sides} pixels: memory ran out; details may differ")
        return result

    def batch(self) -> int:
        """Tiles at a time that "auto" takes: one on a CPU; on a device as many as fit in half of the free memory."""
        if self._device.type == "cpu":
            return 1
        side = self.side * self._factor
        room = self._free // 2 // estimate_tile_memory(self._config, self._device, side)
        return max(1, min(LARGEST_BATCH, BATCH_PIXELS // side**2, room))


def predict_in_tiles(
    predict_tiles: PredictTiles, z: Tensor, t: int, windows: Sequence[Window], *, tile_batch: int,
    blender: Blender | None = None, advance: Callable[[int], Any] = lambda tiles: None,
) -> Tensor:  # fmt: skip
    """The predicted x0 of the canvas z [B, C, H, W] from a predictor of tiles: all tiles take a step together.

    Tiles of all images are run `tile_batch` at a time and their predicted x0 is blended in float32, with weights that
    sum to one; the result has the dtype of z. One window that is the whole canvas, in one batch, is passed through
    untouched. advance(tiles): called before every batch of so many; what it raises stops the run. blender: that of the
    windows, if it is at hand; with one that leaves gaps, x0 is 0 there.
    """
    images, _, height, width = z.shape
    jobs = [(image, window) for image in range(images) for window in windows]
    whole = all(is_whole_canvas(window, height, width) for window in windows)
    if whole and len(jobs) <= tile_batch:
        advance(len(jobs))
        return predict_tiles(z, t, [window for _, window in jobs], range(images)).to(z.device, z.dtype)

    blender = blender or Blender(windows, height, width)
    x0 = canvas_memory.zeros(z.shape, z.device)
    for start in range(0, len(jobs), tile_batch):
        batch = jobs[start : start + tile_batch]
        advance(len(batch))
        tiles = torch.cat([crop(z[image : image + 1], window) for image, window in batch])  # [n, C, h, w]
        predicted = predict_tiles(tiles, t, [window for _, window in batch], [image for image, _ in batch])
        for tile, (image, window) in zip(predicted, batch):
            blender.add(x0[image], tile, window)
    return x0.to(z.dtype)


def decode_in_tiles(
    decode: Callable[[Sequence[Window]], Sequence[Tensor] | Tensor], windows: Sequence[Window], *, height: int,
    width: int, factor: int, wrap: bool = False, tile_batch: int = 1, canvas_device: torch.device,
    blender: Blender | None = None,
) -> Iterator[tuple[int, Tensor]]:  # fmt: skip
    """Decoded rows from the top, (first row, [3, h, W]), as soon as no tile to come reaches them.

    decode: pictures [n, 3, h, w] of windows of the latent, which has height x width cells of `factor` pixels. Only a
    band of tiles is in memory, on `canvas_device`. With wrap-around the last reach the first rows: all come at once.
    blender: that of the windows in pixels, if it is at hand; with a partial one they may leave some of the latent out.
    """
    blender = blender or Blender([w.scaled(factor) for w in windows], height * factor, width * factor)
    starts = sorted({w.y0 for w in windows})
    tall = (height if wrap else windows[0].h) * factor
    band = canvas_memory.zeros((3, tall, width * factor), canvas_device)
    for start, after in zip(starts, [*starts[1:], None]):
        first = 0 if wrap else start * factor
        row = [w for w in windows if w.y0 == start]
        for i in range(0, len(row), tile_batch):
            batch = row[i : i + tile_batch]
            for picture, window in zip(decode(batch), batch):
                blender.add(band, picture.float(), window.scaled(factor), first)
        if after is None:
            yield first, band
        elif not wrap:
            done = (after - start) * factor
            yield first, band[:, :done]
            band[:, : tall - done] = band[:, done:].clone()
            band[:, tall - done :] = 0


class Layout:
    """Where the tiles of a run are: a grid over the latent, or, with a mask, over the part of it that the mask shows.

    cells: height and width of the latent. inside: the cells that a mask shows, see `find_masked_cells`; None for all.
    Tiles that show nothing are left out. overlap: see `count_overlap_cells`.
    """

    def __init__(
        self, cells: tuple[int, int], unet: NetworkConfig, wrap: bool, inside: Tensor | None = None,
        overlap: int | None = None,
    ) -> None:  # fmt: skip
        self._cells, self._unet, self._wrap, self._inside, self._overlap = cells, unet, wrap, inside, overlap
        self._made: dict[int, tuple[list[Window], list[Window]]] = {}
        self._blenders: dict[int, Blender] = {}  # by pixels per cell

    def grid(self, side: int) -> list[Window]:
        """All windows for tiles of `side` cells, those that a mask leaves out too."""
        return self._make(side)[0]

    def windows(self, side: int) -> list[Window]:
        return self._make(side)[1]

    def blender(self, side: int, factor: int = 1) -> Blender:
        """The blender of `windows`, of which there is at least one; with `factor` pixels per cell that of the `grid`.

        Made once for all steps and images, and with it what it keeps on the device.
        """
        grid, windows = self._make(side)
        if factor not in self._blenders:
            used = windows if factor == 1 else [w.scaled(factor) for w in grid]
            height, width = (cells * factor for cells in self._cells)
            self._blenders[factor] = Blender(used, height, width, partial=self._inside is not None)
        return self._blenders[factor]

    def _make(self, side: int) -> tuple[list[Window], list[Window]]:
        if side not in self._made:
            grid, inside = self._cut(side), self._inside
            self._made = {side: (grid, [w for w in grid if inside is None or bool(crop(inside, w).any())])}
            self._blenders.clear()
        return self._made[side]

    def _cut(self, side: int) -> list[Window]:
        unet = self._unet
        overlap = count_overlap_cells(side, self._overlap, unet.alignment)
        rest = (side, overlap, unet.multiple, self._wrap, unet.alignment)
        windows = plan_windows(*self._cells, *rest)
        if self._inside is None or self._wrap or len(windows) == 1 or not bool(self._inside.any()):
            return windows
        region = _surround(self._inside, margin=overlap, multiple=unet.multiple)
        fewer = [window.moved(region.y0, region.x0) for window in plan_windows(region.h, region.w, *rest)]
        area, less = (sum(w.h * w.w for w in some) for some in (windows, fewer))
        return fewer if less < area else windows


def find_masked_cells(
    mask: Tensor, size: tuple[int, int], filled: tuple[int, int], cells: tuple[int, int]
) -> Tensor:  # fmt: skip
    """The cells, bool [h, w] on the CPU, that show in a result: where any mask is above 0, and a little around it.

    mask: [B, 1, h, w]. size: of the decoded image, which `filled` cells hold; the others of `cells` are padding.
    """
    reach = 3 + 2 * max(1, mask.shape[-1] // size[1], mask.shape[-2] // size[0])  # mask pixels that resizes mix
    marked = (mask.cpu() > 0).any(dim=0).float()[None]
    marked = F.max_pool2d(marked, 2 * reach + 1, stride=1, padding=reach)
    found = F.max_pool2d(F.adaptive_max_pool2d(marked, filled), 5, stride=1, padding=2)[0, 0] > 0
    return F.pad(found, (0, cells[1] - filled[1], 0, cells[0] - filled[0]))


def _surround(inside: Tensor, *, margin: int, multiple: int) -> Window:
    """The smallest window around the cells of `inside` [H, W] (bool) with a margin, whose sides are multiples."""
    spans = []
    for dim, side in ((1, inside.shape[0]), (0, inside.shape[1])):
        cells = inside.any(dim=dim).nonzero()
        low, high = max(0, int(cells.min()) - margin), min(side, int(cells.max()) + 1 + margin)
        low = low // multiple * multiple
        spans.append((low, min(side, -(-high // multiple) * multiple) - low))
    return Window(spans[0][0], spans[1][0], spans[0][1], spans[1][1])
