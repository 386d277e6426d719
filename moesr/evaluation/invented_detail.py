"""What a result owes to the seed: the spread between results of several seeds, as a map and as two numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from ..errors import SettingError
from ..images.canvas import as_canvas
from ..images.postprocess import read_colours
from ..model import SRModel
from ..pipeline import upscale
from ..progress import Callback, Event
from .metrics import lr_psnr

#: Grey levels above which people see a difference, and at which the colours of the map end.
VISIBLE, BRIGHTEST = 8, 32
#: Side of the blocks, in pixels, in which map and error are compared.
_BLOCK = 8
#: Rows of the scale below the map, in pixels.
_STRIP = 28


@dataclass(frozen=True)
class Invention:
    """How much of a result differs from seed to seed."""

    #: Standard deviation of each pixel between the seeds, in grey levels (of 255), over R, G and B: float32 [B, H, W].
    spread: np.ndarray
    #: Share of the pixels whose spread is above VISIBLE, 0 to 1.
    share: float
    #: PSNR in dB of the results, reduced to the size of the input, against the input; mean of the seeds.
    lr_consistency: float
    #: Mean of the results, float32 [B, H, W, 3] in [0, 1].
    mean: torch.Tensor
    #: How many results there were.
    seeds: int

    def draw(self) -> np.ndarray:
        """The map of each image with its scale below, uint8 [B, H + 28, W, 3]: black is equal, white 32 levels."""
        width = self.spread.shape[2]
        scale = np.broadcast_to(np.linspace(0, BRIGHTEST, width, dtype=np.float32), (_STRIP // 2, width))
        labels = Image.new("RGB", (width, _STRIP - _STRIP // 2), "black")
        for level in (0, VISIBLE, BRIGHTEST // 2, BRIGHTEST):
            anchor = "la" if level == 0 else "ra" if level == BRIGHTEST else "ma"
            ImageDraw.Draw(labels).text((level * (width - 1) / BRIGHTEST, 1), str(level), fill="white", anchor=anchor)
        strip = np.concatenate([_colour(scale), np.asarray(labels)])
        return np.stack([np.concatenate([_colour(plane), strip]) for plane in self.spread])

    def describe(self) -> str:
        return (
            f"{self.share:.1%} of the pixels differ by more than {VISIBLE} grey levels between seeds; "
            f"reduced, the result is the input to {self.lr_consistency:.1f} dB"
        )

    def correlate_error(self, hr: np.ndarray) -> float:
        """Rank correlation of the map with the true error, the root mean square over the results.

        Both are means of blocks of 8 x 8 pixels. hr: the originals, [B, H, W, 3] in [0, 1]. Raises SettingError if they
        have another size.
        """
        if hr.shape != self.mean.shape:
            sizes = [f"{shape[2]} x {shape[1]}" for shape in (hr.shape, self.mean.shape)]
            raise SettingError(f"original of {sizes[0]} pixels: the result has {sizes[1]}; give one of that size")
        spread = torch.tensor(self.spread) / 255
        # Mean square error of results = that of their mean + their own variance, here not that of a sample.
        error = (self.mean - torch.tensor(hr)).square().mean(dim=3) + spread.square() * (1 - 1 / self.seeds)
        blocks = F.avg_pool2d(torch.stack([spread, error.sqrt()], dim=1), _BLOCK).transpose(0, 1).flatten(1)
        ranks = blocks.argsort(dim=1).argsort(dim=1).double()
        return float(torch.corrcoef(ranks)[0, 1])


def invention(
    model: SRModel, image: Any, seeds: int = 4, *, seed: int = 0, callback: Callback | None = None, **settings: Any
) -> Invention:
    """What `seeds` results of an image have not in common; what they share comes from the input or from the model.

    seeds: at least 2; they are seed, seed + 1, ... The other arguments and errors are those of `upscale`.
    """
    if seeds < 2:
        raise SettingError(f"{seeds} seeds: results are compared, so give at least 2")
    lr = (read_colours(as_canvas(image), torch.device("cpu")) + 1) / 2
    mean = squares = torch.zeros(())  # Welford's sums, so that memory does not grow with the seeds
    consistency = 0.0
    for k in range(seeds):

        def forward(event: Event, k: int = k) -> None:
            if callback is not None:
                callback(replace(event, done=(k + event.done) / seeds, share=event.share / seeds))

        result = upscale(model, lr.permute(0, 2, 3, 1), seed=seed + k, callback=forward, **settings)
        consistency += lr_psnr(result.permute(0, 3, 1, 2), lr).mean().item() / seeds
        change = result - mean
        mean = mean + change / (k + 1)
        squares = squares + change * (result - mean)
    spread = 255 * (squares / (seeds - 1)).mean(dim=3).sqrt().numpy()
    return Invention(spread, float((spread > VISIBLE).mean()), consistency, mean, seeds)


def _colour(levels: np.ndarray) -> np.ndarray:
    """Grey levels as colours from black over red and yellow to white, uint8 [H, W, 3]."""
    heat = 3 * levels[..., None] / BRIGHTEST - np.arange(3)
    return (heat.clip(0, 1) * 255).round().astype(np.uint8)
