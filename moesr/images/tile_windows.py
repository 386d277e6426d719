"""Windows over a canvas: where tiles are cut, and how they are blended back. Pure geometry, for latents and pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import SettingError

_FAINT = 1e-6  # weight of the outer quarter of an overlap: next to nothing, yet safe to divide by

_SMALL = 2**20  # cells of which the sum of all weights may lie on the device


@dataclass(frozen=True)
class Window:
    """A rectangle of a canvas, in cells. On a canvas that wraps it may reach beyond the lower and right border."""

    y0: int
    x0: int
    h: int
    w: int

    def moved(self, y: int, x: int) -> Window:
        """The same rectangle so many cells further down and right."""
        return Window(self.y0 + y, self.x0 + x, self.h, self.w)

    def scaled(self, factor: int) -> Window:
        """The same place on a canvas that is `factor` times as large (a latent's window in pixels)."""
        return Window(self.y0 * factor, self.x0 * factor, self.h * factor, self.w * factor)


def plan_windows(
    height: int, width: int, tile: int, overlap: int, multiple: int = 1, wrap: bool = False,
    alignment: int | None = None,
) -> list[Window]:  # fmt: skip
    """Windows of one size, row by row, that cover the canvas and overlap their neighbours by at least `overlap` cells.

    A side of the canvas up to `tile` takes one window. A longer one takes as few as sides of `tile` need, each a
    multiple of `multiple` and as small as that many can be; starts are multiples of `alignment`, which divides
    `multiple` (default: the same), and evenly spread, and the last window is flush with the border. With `wrap` windows
    go around the border instead, so that it lies inside of one; an axis that fits in one tile then gets two, half a
    turn apart, unless `overlap` is 0. Raises SettingError if an axis that needs several windows is no multiple of
    `alignment`, or if the overlap leaves nothing of a tile.
    """
    rows, h = _plan_axis(height, tile, overlap, multiple, alignment or multiple, wrap)
    columns, w = _plan_axis(width, tile, overlap, multiple, alignment or multiple, wrap)
    return [Window(y, x, h, w) for y in rows for x in columns]


def is_whole_canvas(window: Window, height: int, width: int) -> bool:
    """True if the window is the whole canvas as it stands."""
    return window == Window(0, 0, height, width)


def crop(canvas: Tensor, window: Window) -> Tensor:
    """The window's part of a canvas [..., H, W] as [..., h, w]; around the border where it reaches across."""
    for dim, start, size in ((-2, window.y0, window.h), (-1, window.x0, window.w)):
        side = canvas.shape[dim]
        if start + size <= side:
            canvas = canvas.narrow(dim, start, size)
        else:
            index = torch.arange(start, start + size, device=canvas.device) % side
            canvas = canvas.index_select(dim, index)
    return canvas


class Blender:
    """Adds tiles into a canvas with weights that sum to one everywhere: tiles cut from a picture give it back.

    The weights are smooth (raised cosine) across every overlap, without a ramp at true borders of the canvas, and
    positive. The outer quarter of an overlap counts next to nothing, because that is where a tile has seen the least of
    its surroundings. `windows` are those of `plan_windows`, all of them; with `partial` any of them, and weights sum to
    one wherever one of them is. Raises SettingError if they leave a gap that is not meant to be.
    """

    def __init__(self, windows: Sequence[Window], height: int, width: int, *, partial: bool = False) -> None:
        self._height, self._width = height, width
        rows, columns = sorted({(w.y0, w.h) for w in windows}), sorted({(w.x0, w.w) for w in windows})
        axes = (_compute_axis_weights(rows, height, partial), _compute_axis_weights(columns, width, partial))
        self._axes = {torch.device("cpu"): axes}  # copies by device: tiles are weighted where they are
        self._total: Tensor | None = None
        if len(set(windows)) != len(rows) * len(columns):
            if not partial:
                raise SettingError("the windows are not a full grid of rows and columns")
            total = torch.zeros(height, width)
            for window in windows:
                self.add(total, torch.ones(window.h, window.w), window)
            self._total = torch.where((total - 1).abs() < 1e-6, 1, total)

    def weight(self, window: Window, device: torch.device | None = None) -> Tensor:
        """The window's weights, float32 [h, w], on a device (default: the CPU)."""
        device = device or torch.device("cpu")
        if device not in self._axes:
            rows, columns = self._axes[torch.device("cpu")]
            rows, columns = ({start: w.to(device) for start, w in axis.items()} for axis in (rows, columns))
            self._axes[device] = (rows, columns)
        rows, columns = self._axes[device]
        weight = rows[window.y0][:, None] * columns[window.x0][None, :]
        if self._total is None:
            return weight
        if self._total.numel() <= _SMALL:
            self._total = self._total.to(device)  # once for all steps
        return weight / crop(self._total, window).to(device)

    def add(self, canvas: Tensor, tile: Tensor, window: Window, top_row: int = 0) -> None:
        """canvas [..., H, W] += tile [..., h, w] * weight, in place; start from zeros, in float32.

        `canvas` may be a band of rows of the whole one, of which `top_row` is the first.
        """
        part = (tile * self.weight(window, tile.device)).to(canvas.device, canvas.dtype)
        top = min(window.h, self._height - window.y0)  # rows before the border; the others start again at 0
        left = min(window.w, self._width - window.x0)
        for rows, y in ((part[..., :top, :], window.y0 - top_row), (part[..., top:, :], 0)):
            for piece, x in ((rows[..., :left], window.x0), (rows[..., left:], 0)):
                if not piece.numel():
                    continue
                canvas[..., y : y + piece.shape[-2], x : x + piece.shape[-1]] += piece


def _plan_axis(side: int, tile: int, overlap: int, multiple: int, alignment: int, wrap: bool) -> tuple[list[int], int]:
    """Starts of the windows along one axis, and their size."""
    if tile < 1 or overlap < 0 or min(multiple, alignment) < 1:
        raise SettingError(f"tile {tile}, overlap {overlap}, multiple {multiple}: sizes must be positive")
    if side <= tile:
        if not wrap or not overlap or side == 1:
            return [0], side
        # Two views half a turn apart, so that the border of each lies in the middle of the other.
        return [0, side // 2 // alignment * alignment or side // 2], side
    if side % alignment:
        raise SettingError(f"a side of {side} cannot be cut into tiles: pad it to a multiple of {alignment}")
    # In units of `alignment`, so that every start is one.
    units, shared, whole = side // alignment, math.ceil(overlap / alignment), multiple // alignment
    size = tile // multiple * whole
    step = size - shared
    if step < 1:
        raise SettingError(f"an overlap of {overlap} leaves nothing of a tile of {tile}: take larger tiles")
    count = math.ceil(units / step) if wrap else math.ceil((units - size) / step) + 1
    # As many windows overlap by less work when each is only as large as it must be.
    needed = math.ceil(units / count) + shared if wrap else math.ceil((units + (count - 1) * shared) / count)
    size = min(size, math.ceil(needed / whole) * whole)
    last = units if wrap else units - size
    starts = [i * last // (count if wrap else count - 1) for i in range(count)]
    return [start * alignment for start in starts], size * alignment


def _compute_axis_weights(spans: Sequence[tuple[int, int]], side: int, partial: bool) -> dict[int, Tensor]:
    """Weights of the windows (start, size) along one axis, by start, normalised to sum to one where there is one."""
    ring = any(start + size > side for start, size in spans)
    ends = [start + size for start, size in spans]
    previous = [ends[-1] - side if ring else 0, *ends]  # where the window before ends; 0: there is none
    shared = [max(end - start, 0) for end, (start, _) in zip(previous, spans)]
    shared.append(shared[0])  # the last window's right neighbour is the first; without a ring both are 0

    raw = [_make_ramp(size, shared[i]) * _make_ramp(size, shared[i + 1]).flip(0) for i, (_, size) in enumerate(spans)]
    cells = [torch.arange(start, start + size) % side for start, size in spans]
    total = torch.zeros(side, dtype=torch.float64)
    for index, weight in zip(cells, raw):
        total.index_add_(0, index, weight)
    if not partial and bool((total == 0).any()):
        raise SettingError(f"the windows do not cover a side of {side}")
    return {start: (w / total[index]).float() for (start, _), w, index in zip(spans, raw, cells)}


def _make_ramp(size: int, overlap: int) -> Tensor:
    """[size] weights that rise over the first `overlap` cells: faint for a quarter, a raised cosine, then one."""
    guard = overlap // 4
    length = overlap - 2 * guard
    weight = torch.ones(size, dtype=torch.float64)
    weight[:guard] = _FAINT
    phase = (torch.arange(length, dtype=torch.float64) + 0.5) / max(length, 1)
    weight[guard : guard + length] = torch.sin(phase * math.pi / 2) ** 2
    return weight
