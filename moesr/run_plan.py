"""What all images of a call share: their tiles, how many work together, where canvases lie, and who hears of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from . import canvas_memory
from .images.condition import compute_latent_size
from .model import SRModel
from .progress import Callback, Reporter
from .settings import check_settings
from .tiling import LARGEST_BATCH, SMALLEST_TILE, TileSize, to_overlap

#: Most images that work together, and bytes that they may take on the device beside tiles and networks. Constants, so
#: that the same images work together wherever they run, and the device holds no more of a long batch.
LARGEST_GROUP, GROUP_BYTES = LARGEST_BATCH, 256 * 2**20


@dataclass(frozen=True, eq=False)
class Plan:
    """What all images of a call share, decided once: tiles, where canvases lie, who hears of it."""

    model: SRModel
    #: Opposite borders are neighbours.
    wrap: bool
    #: Side of the tiles; shared, since a tile that was too large is too large for all.
    tiles: TileSize
    #: Latent cells by which tiles overlap; None is an eighth of the tile.
    overlap: int | None
    #: Tiles at a time.
    tile_batch: int
    #: Images that are on the device together.
    group: int
    #: The device that latents and decoded pictures lie on.
    canvas_device: torch.device
    reporter: Reporter


def plan_run(
    model: SRModel, height: int, width: int, *, tile: int | str = "auto", tile_batch: int | str = "auto",
    tile_overlap: int | str = "auto", wrap: bool = False, callback: Callback | None = None,
) -> Plan:  # fmt: skip
    """The plan for LR images of that size; the settings are those of `upscale`. Raises SettingError."""
    check_settings(tile=tile, tile_batch=tile_batch, tile_overlap=tile_overlap, wrap=wrap)
    config, unet, reporter = model.config.autoencoder, model.config.unet, Reporter(callback)
    free = model.runtime.free_memory(model.device)
    cells = compute_latent_size(height, width, scale=model.scale, factor=config.factor, multiple=unet.multiple)
    smallest = max(SMALLEST_TILE // config.factor, 2 * unet.alignment, unet.multiple)
    tiles = TileSize(
        tile, whole=max(cells), smallest=smallest, multiple=unet.multiple, config=config, device=model.device,
        runtime=model.runtime, free=free, reporter=reporter,
    )  # fmt: skip
    # float32: LR image twice and its condition; state, y, prediction, noise and one more latent; decoded picture
    image = 4 * (6 * height * width + math.prod(cells) * (4 * unet.detail**2 + 5 * unet.out_channels))
    group = max(1, min(LARGEST_GROUP, GROUP_BYTES // image))
    canvas_device = canvas_memory.place_canvases(
        group * image + 12 * height * width * model.scale**2, model.device, free
    )
    batch = tiles.batch() if tile_batch == "auto" else int(tile_batch)
    overlap = to_overlap(tile_overlap, config.factor)
    return Plan(model, wrap, tiles, overlap, batch, group, canvas_device, reporter)
