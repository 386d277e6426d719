"""Before and after in one picture."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from .files import Picture
from .resize import resize

#: Largest side of a panel; of larger results the middle is shown.
PANEL = 640
_GAP = 8


def side_by_side(before: Picture, after: Picture) -> Picture:
    """Input (pixels as squares), bicubic and result, labelled, in a row; the middle of each if they are large."""
    height, width = after.rgb.shape[:2]
    small = torch.from_numpy(before.rgb).permute(2, 0, 1)[None]
    bicubic = resize(small, (height, width)).clamp(0, 1)[0].permute(1, 2, 0).numpy()
    rows = np.arange(height) * before.rgb.shape[0] // height
    columns = np.arange(width) * before.rgb.shape[1] // width
    squares = before.rgb[rows][:, columns]
    top, left = max(0, (height - PANEL) // 2), max(0, (width - PANEL) // 2)
    part = np.s_[top : top + PANEL, left : left + PANEL]
    labels = (f"input {before.rgb.shape[1]} x {before.rgb.shape[0]}", "bicubic", f"MoESR {width} x {height}")
    panels = [_labelled(p[part], text) for p, text in zip((squares, bicubic, after.rgb), labels)]
    gap = np.ones((panels[0].shape[0], _GAP, 3), np.float32)
    return Picture(np.concatenate([panels[0], gap, panels[1], gap, panels[2]], axis=1))


def _labelled(rgb: np.ndarray, text: str) -> np.ndarray:
    strip = Image.new("RGB", (rgb.shape[1], 24), "white")
    ImageDraw.Draw(strip).text((4, 6), text, fill="black", font=ImageFont.load_default())
    return np.concatenate([np.asarray(strip, np.float32) / 255, rgb], axis=0)
