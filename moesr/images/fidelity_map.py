"""Fidelity as a number or as a map: what `upscale` is given, and the two levels that are computed of it.

Norms of the networks mix what lies far apart in a tile, so a weight per place would change all places. A map is
computed twice instead, as if its lowest and its highest fidelity held everywhere, and the two are mixed per place.
Levels are of the whole picture, never of a tile, so that tiles agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import SettingError
from ..settings import SETTINGS
from .condition import periodic_resize
from .postprocess import read_mask
from .resize import resize


def is_map(value: Any) -> bool:
    """Whether a fidelity is a map, not a number."""
    return isinstance(value, (Image.Image, np.ndarray, Tensor))


@dataclass(frozen=True)
class Fidelity:
    """The fidelity of images that work together."""

    #: Lowest fidelity of each image and, of maps, the highest: float32 [1 or 2, 1 or B].
    levels: Tensor
    #: How much of the highest each place has, [1 or B, 1, H, W] at the size of the LR image; None if it is a number.
    shares: Tensor | None = None

    def part(self, start: int, stop: int) -> Fidelity:
        if self.levels.shape[1] == 1:
            return self
        return Fidelity(self.levels[:, start:stop], None if self.shares is None else self.shares[start:stop])


#: Of networks that are called without one.
FAITHFUL = Fidelity(torch.ones(1, 1))


def read_fidelity(fidelity: Any, protect: Any, images: int, *, size: tuple[int, int], wrap: bool) -> Fidelity:
    """f + (1 - f) protect: 1 where `protect` is 1, f where it is 0.

    fidelity: a number or a map; protect: None or a map. Maps are what `read_mask` takes, of any size; they are resized
    to `size`, that of the LR image. A map of one value is that number. Raises ImageError, and SettingError for values
    that are out of range.
    """

    def read(name: str, value: Any, highest: float) -> Tensor:
        plane = read_mask(value, images, name).cpu()
        low, high = plane.aminmax()
        if not 0 <= low <= high <= highest:  # nor if some are NaN
            raise SettingError(f"{name} with values from {low:g} to {high:g}: give 0 to {highest:g}")
        return (periodic_resize if wrap else resize)(plane, size).clamp(low, high)

    most = SETTINGS["fidelity"].maximum or 1
    found = read("fidelity", fidelity, most) if is_map(fidelity) else torch.full((1, 1, 1, 1), float(fidelity))
    if protect is not None:
        found = torch.lerp(found, torch.ones(()), read("protect", protect, 1))
    low, high = found.flatten(1).aminmax(dim=1)
    if bool((low == high).all()):
        return Fidelity(low[None])
    shares = (found - low.view(-1, 1, 1, 1)) / (high - low).clamp(min=1e-6).view(-1, 1, 1, 1)
    return Fidelity(torch.stack([low, high]), shares)
