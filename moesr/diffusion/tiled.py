"""Tiling is a wrapper of the predictor: the sampler, its noise and its history stay on the canvas and know no tiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import scratch
from ..errors import SettingError
from ..images.windows import Blender, Window, covers, crop
from .samplers import Predict

# tiles of z [n, C, h, w], t, the window of each tile, the index of its image in the batch -> predicted x0 [n, C, h, w]
PredictTiles = Callable[[Tensor, int, Sequence[Window], Sequence[int]], Tensor]


def tiled(
    predict_tile: PredictTiles, windows: Sequence[Window], tile_batch: int, check: Callable[[], Any] | None = None
) -> Predict:
    """A predictor of the canvas [B, C, H, W] from a predictor of tiles: all tiles take a step together.

    Tiles of all images are run `tile_batch` at a time and their predicted x0 is blended in float32, with weights that
    sum to one; the result has the dtype of z. One window that is the whole canvas, in one batch, is passed through
    untouched. `check` is called before every batch of tiles; what it raises stops the run. `windows` are those of
    `tile_windows`, all of them. Raises SettingError if there is none, or a batch of none.
    """
    if tile_batch < 1 or not windows:
        raise SettingError(f"tile batch {tile_batch} of {len(windows)} windows: both must be at least 1")

    def predict(z: Tensor, t: int) -> Tensor:
        images, _, height, width = z.shape
        jobs = [(image, window) for image in range(images) for window in windows]
        whole = all(covers(window, height, width) for window in windows)
        if whole and len(jobs) <= tile_batch:
            if check is not None:
                check()
            return predict_tile(z, t, [window for _, window in jobs], range(images)).to(z.device, z.dtype)

        blender = Blender(windows, height, width)
        x0 = scratch.zeros(z.shape, z.device)
        for start in range(0, len(jobs), tile_batch):
            batch = jobs[start : start + tile_batch]
            if check is not None:
                check()
            tiles = torch.cat([crop(z[image : image + 1], window) for image, window in batch])  # [n, C, h, w]
            predicted = predict_tile(tiles, t, [window for _, window in batch], [image for image, _ in batch])
            for tile, (image, window) in zip(predicted, batch):
                blender.add(x0[image], tile, window)
        return x0.to(z.dtype)

    return predict
