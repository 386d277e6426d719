"""Before and after in one picture."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from .files import Picture
from .resize import resize_rows

#: Largest side of a panel; of larger results the middle is shown.
PANEL = 640
_GAP = 8


def draw_comparison(before: Picture, after: Picture) -> Picture:
    """Input (pixels as squares), result and difference, labelled, in a row; the middle of each if they are large.

    The difference is what the result adds to the bicubic enlargement, twice as strong; grey is none.
    """
    before = before.floats()
    height, width = after.rgb.shape[:2]
    small_height, small_width = before.rgb.shape[:2]
    top, left = max(0, (height - PANEL) // 2), max(0, (width - PANEL) // 2)
    rows = np.arange(top, min(height, top + PANEL))
    columns = np.arange(left, min(width, left + PANEL))
    small = torch.tensor(before.rgb).permute(2, 0, 1)
    stop = int(rows[-1]) + 1
    band = resize_rows(lambda a, b: small[:, a:b], small_height, small_width, (height, width), top, stop)
    bicubic = band.clamp(0, 1).permute(1, 2, 0).numpy()[:, columns]
    squares = before.rgb[rows * small_height // height][:, columns * small_width // width]
    result = replace(after, rgb=after.rgb[rows][:, columns], alpha=None).floats().rgb
    labels = (f"input {small_width} x {small_height}", f"MoESR {width} x {height}", "MoESR - bicubic, x 2")
    difference = (0.5 + 2 * (result - bicubic)).clip(0, 1)
    panels = [_add_label(p, text) for p, text in zip((squares, result, difference), labels)]
    gap = np.ones((panels[0].shape[0], _GAP, 3), np.float32)
    return Picture(np.concatenate([panels[0], gap, panels[1], gap, panels[2]], axis=1))


def _add_label(rgb: np.ndarray, text: str) -> np.ndarray:
    strip = Image.new("RGB", (rgb.shape[1], 24), "white")
    ImageDraw.Draw(strip).text((4, 6), text, fill="black", font=ImageFont.load_default())
    return np.concatenate([np.asarray(strip, np.float32) / 255, rgb], axis=0)
