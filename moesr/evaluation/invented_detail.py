"""What a result invents: the spread between several tries, as a map and as two numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from ..errors import SettingError
from ..images.canvas import as_canvas
from ..images.fidelity_map import is_map
from ..images.postprocess import read_colours, read_mask
from ..model import SRModel
from ..pipeline import upscale
from ..pipeline_run import estimate_restore
from ..progress import Callback, narrow_callback
from .metrics import lr_psnr

#: Grey levels above which people see a difference, and at which the colours of the map end.
VISIBLE, BRIGHTEST = 8, 32
#: Grey levels that are written below the map.
TICKS = (0, 2, VISIBLE, 16, BRIGHTEST)
#: Side of the blocks, in pixels, in which map and error are compared.
_BLOCK = 8
#: Rows of the scale below the map, in pixels.
_STRIP = 28


@dataclass(frozen=True)
class Invention:
    """How much of a result differs from try to try."""

    #: Standard deviation of each pixel between the tries, in grey levels (of 255), over R, G and B: float32 [B, H, W].
    spread: np.ndarray
    #: Share of the pixels whose spread is above VISIBLE, 0 to 1.
    share: float
    #: PSNR in dB of the results, reduced to the size of the input, against the input; mean of the tries.
    lr_consistency: float
    #: The first result, float32 [B, H, W, 3] in [0, 1].
    result: torch.Tensor

    def draw(self) -> np.ndarray:
        """The map of each image with its scale below, uint8 [B, H + 28, W, 3]: black is equal, white 32 levels."""
        width = self.spread.shape[2]
        scale = np.broadcast_to(np.linspace(0, 1, width), (_STRIP // 2, width))
        labels = Image.new("RGB", (width, _STRIP - _STRIP // 2), "black")
        for level in TICKS:
            anchor = "la" if level == 0 else "ra" if level == BRIGHTEST else "ma"
            ImageDraw.Draw(labels).text((place_on_scale(level) * (width - 1), 1), str(level), "white", anchor=anchor)
        strip = np.concatenate([_colour(scale), np.asarray(labels)])
        return np.stack([np.concatenate([_colour(place_on_scale(plane)), strip]) for plane in self.spread])

    def describe(self) -> str:
        return (
            f"{self.share:.1%} of the pixels differ by more than {VISIBLE} grey levels from try to try; "
            f"reduced, the result is the input to {self.lr_consistency:.1f} dB"
        )

    def compare_error(self, hr: np.ndarray) -> torch.Tensor:
        """The map and the error of the first result (root mean square of R, G and B) in grey levels: [2, blocks].

        Both are means of blocks of 8 x 8 pixels. hr: the originals, [B, H, W, 3] in [0, 1]. Raises SettingError if they
        have another size.
        """
        if hr.shape != self.result.shape:
            sizes = [f"{shape[2]} x {shape[1]}" for shape in (hr.shape, self.result.shape)]
            raise SettingError(f"original of {sizes[0]} pixels: the result has {sizes[1]}; give one of that size")
        error = (255 * (self.result - torch.tensor(hr))).square().mean(dim=3).sqrt()
        return F.avg_pool2d(torch.stack([torch.tensor(self.spread), error], dim=1), _BLOCK).transpose(0, 1).flatten(1)


def invention(
    model: SRModel, image: Any, seeds: int = 4, *, seed: int = 0, callback: Callback | None = None, **settings: Any
) -> Invention:
    """How results of an image differ that differ in seed, and every second one in how the picture lies.

    Where the input does not say what is there, a network draws something else if the picture is turned by 180 degrees
    (the result is turned back), even if it hardly heeds its noise. Of models that are trained with fidelity, what is
    compared is what results add to that of fidelity 1, which is computed once for each way to lie.
    seeds: at least 2; they are seed, seed + 1, ... The other arguments and errors are those of `upscale`.
    """
    if seeds < 2:
        raise SettingError(f"{seeds} seeds: results are compared, so give at least 2")
    colours = read_colours(as_canvas(image), torch.device("cpu"))
    lr = ((colours + 1) / 2).permute(0, 2, 3, 1)
    for name in ("fidelity", "protect", "mask"):
        if is_map(settings.get(name)):
            settings[name] = read_mask(settings[name], len(lr), name)[:, 0]
    has_zero = model.config.unet.takes_settings
    if has_zero and settings.get("restore", "auto") == "auto" and len(lr) == 1:
        settings["restore"] = estimate_restore(model, colours)[0]  # the same whichever way the picture lies
    runs, done = seeds + 2 * has_zero, 0

    def run(is_turned: int, **changes: Any) -> torch.Tensor:
        nonlocal done
        forward = callback and narrow_callback(callback, done / runs, (done + 1) / runs)
        turned: dict[str, Any] = {**settings, **changes, "image": lr}
        if is_turned:
            turned |= {name: x.flip(1, 2) for name, x in turned.items() if isinstance(x, torch.Tensor)}
        result = upscale(model, **turned, callback=forward)
        done += 1
        return result.flip(1, 2) if is_turned else result

    faithful = [run(way, fidelity=1, protect=None) if has_zero else torch.zeros(()) for way in range(2)]
    first, consistency = torch.zeros(()), 0.0
    mean = squares = torch.zeros(())  # Welford's sums, so that memory does not grow with the seeds
    for k in range(seeds):
        result = run(k % 2, seed=seed + k)
        first = first if k else result
        consistency += lr_psnr(result.permute(0, 3, 1, 2), lr.permute(0, 3, 1, 2)).mean().item() / seeds
        added = result - faithful[k % 2]
        change = added - mean
        mean = mean + change / (k + 1)
        squares = squares + change * (added - mean)
    spread = 255 * (squares / (seeds - 1)).mean(dim=3).sqrt().numpy()
    return Invention(spread, float((spread > VISIBLE).mean()), consistency, first)


def correlate_ranks(pairs: torch.Tensor) -> float:
    """Spearman's rank correlation of two rows of numbers [2, N], -1 to 1."""
    return float(torch.corrcoef(pairs.argsort(dim=1).argsort(dim=1).double())[0, 1])


def place_on_scale(levels: Any) -> Any:
    """Where grey levels are on the map's scale, 0 to 1: by the square root, since most spreads are small."""
    return np.sqrt(np.minimum(levels, BRIGHTEST) / BRIGHTEST)


def _colour(places: np.ndarray) -> np.ndarray:
    """Places on the scale as colours from black over red and yellow to white, uint8 [H, W, 3]."""
    heat = 3 * places[..., None] - np.arange(3)
    return (heat.clip(0, 1) * 255).round().astype(np.uint8)
