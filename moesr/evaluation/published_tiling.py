"""ResShift's published policy for large images, to repeat its numbers: independent tiles, averaged. Else use `upscale`.

Each tile has its own noise and is sampled to the end. Seams are only averaged away (ResShift, section 7).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..diffusion.noise import make_generators
from ..errors import SettingError
from ..images.canvas import as_canvas
from ..images.postprocess import finish_image, hide_masked, read_colours, read_mask
from ..images.tile_windows import Window, crop
from ..model import SRModel
from ..pipeline_run import Run
from ..run_plan import plan_run
from ..settings import resolve

#: Side of tiles and seed of the published runs, and the overlap of tiles by their side, in LR pixels of an x4 model.
#: For x2 sides and overlaps are twice as large, for x1 four times.
CHOP, SEED = 512, 12345
OVERLAPS = {512: 64, 256: 32, 64: 16}

#: noise(tile, draw) [1, C, h, w]: draw 0 is what the tile starts from, draw k that of its k-th step.
TileNoise = Callable[[int, int], Tensor]


def upscale_published(
    model: SRModel, image: Any, *, chop: int | None = None, stride: int | None = None, steps: int | None = None,
    seed: int = SEED, mask: Any = None, noise: TileNoise | None = None,
) -> Any:  # fmt: skip
    """The image at the model's scale, by ResShift's published policy, in the kind it was given.

    chop, stride: side and step of tiles in LR pixels (512 and 448 for x4, 1024 and 896 for x2; smaller tiles have the
    steps 224 for 256 and 48 for 64). Every step is ancestral at the published respacing; there is no colour fix. Noise
    is drawn on the CPU, with one generator per image: its distribution is the published one, its numbers are not.
    noise: numbers drawn elsewhere, for one image. The images of a batch run one by one. Raises what `upscale` raises.
    """
    wider = max(4 // model.scale, 1)
    chop = CHOP * wider if chop is None else chop
    stride = chop - overlap(chop, wider) if stride is None else stride
    if not 1 <= stride <= chop:
        raise SettingError(f"tiles of {chop} every {stride} pixels: the step must be between 1 and the tile")
    settings = resolve(model.config, steps=steps, sampler="ddpm", spacing="leading")
    canvas = as_canvas(image)
    weights = None if mask is None else read_mask(mask, len(canvas.rgb)).to(model.device)
    with torch.inference_mode():
        lr = read_colours(canvas, model.device)
        hidden = hide_masked(lr, weights)[:, 3:] if model.config.unet.mask else None
        windows = published_windows(lr.shape[-2], lr.shape[-1], chop, stride)
        size = (lr.shape[-2] * model.scale, lr.shape[-1] * model.scale)
        out = canvas.empty(*size)
        for i, generator in enumerate(make_generators(seed, "per_image", range(len(lr)))):
            average = Average(3, *size, model.device)
            for k, window in enumerate(windows):
                part = crop(lr[i : i + 1], window)
                plan = plan_run(model, window.h, window.w, tile=0, tile_batch=1)
                run = Run(plan, part, None if hidden is None else crop(hidden[i : i + 1], window))
                drawn = run.noise([generator]) if noise is None else lambda step, k=k: noise(k, step + 1)
                z = run.denoise(run.encode(), settings, noise=drawn)
                tile = run.decode(z, 0).rows(0)(0, window.h * model.scale)
                average.add(tile.clamp(-1, 1), window.scaled(model.scale))
            shown = None if weights is None else weights[i % len(weights)]
            finish_image(canvas, i, lr[i], average.rows, out, mask=shown)
    return canvas.restore(out)


def overlap(chop: int, wider: int = 1) -> int:
    """LR pixels by which published tiles of that side overlap; for other sides an eighth."""
    return OVERLAPS.get(chop // wider, chop // wider // 8) * wider


def starts(length: int, chop: int, stride: int) -> list[int]:
    """Where tiles start along a side: every `stride` pixels. Those that would reach beyond the end are moved back."""
    if length <= chop:
        return [0]
    return list(dict.fromkeys(min(start, length - chop) for start in range(0, length, stride)))


def published_windows(height: int, width: int, chop: int, stride: int) -> list[Window]:
    """Tiles of an LR image, row by row."""
    rows, columns = starts(height, chop, stride), starts(width, chop, stride)
    return [Window(y, x, min(chop, height), min(chop, width)) for y in rows for x in columns]


class Average:
    """The plain mean of overlapping tiles of one picture: `total` [C, H, W] over `count` [H, W]."""

    def __init__(self, channels: int, height: int, width: int, device: torch.device) -> None:
        self.total = torch.zeros(channels, height, width, device=device)
        self.count = torch.zeros(height, width, device=device)

    def add(self, tile: Tensor, window: Window) -> None:
        place = (..., slice(window.y0, window.y0 + window.h), slice(window.x0, window.x0 + window.w))
        self.total[place] += tile
        self.count[place] += 1

    def rows(self, start: int, stop: int) -> Tensor:
        return self.total[:, start:stop] / self.count[start:stop]
