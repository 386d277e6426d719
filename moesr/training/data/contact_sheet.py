"""A contact sheet of training pairs, to look at before a run."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ...errors import SettingError
from ...images.files import Picture
from .batch_source import BatchSource

#: Largest width in pixels of a sheet with more than one pair, and smallest width of a crop on it.
WIDTH, PANEL = 1600, 192
#: Most pairs on a sheet.
LIMIT = 400
_GAP, _LINE, _LINES = 8, 12, 3


def draw_sheet(source: BatchSource, count: int) -> Picture:
    """The first `count` pairs of a run: LR (pixels as squares) and HR side by side, and name and `restore` of each.

    Raises SettingError for more than 400.
    """
    if count > LIMIT:
        raise SettingError(f"{count} pairs: a sheet holds at most {LIMIT}; choose fewer, or another seed for others")
    batch, names = source.next(0, count), source.list_names(0, count)
    panel = source.crop * max(1, -(-PANEL // source.crop))
    width, height = 2 * panel + _GAP, panel + _LINES * _LINE + _GAP
    columns = max(1, min(count, WIDTH // width))
    rows = -(-count // columns)
    canvas = Image.new("RGB", (columns * width + _GAP, rows * height + _GAP), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default()
    for index, name in enumerate(names):
        row, column = divmod(index, columns)
        x, y = _GAP + column * width, _GAP + row * height
        text = f"{Path(name).name}, restore {float(batch['restore'][index]):.2f}".encode("ascii", "replace").decode()
        letters = max(8, int(2 * panel * len(text) / draw.textlength(text, font) * 0.95))
        for i, line in enumerate(textwrap.wrap(text, letters)[:_LINES]):
            draw.text((x, y + i * _LINE), line, fill="black", font=font)
        for i, image in enumerate((batch["lr"][index], batch["hr"][index])):
            canvas.paste(_enlarge(image, panel), (x + i * panel, y + _LINES * _LINE))
    return Picture(np.asarray(canvas))


def _enlarge(image: Tensor, side: int) -> Image.Image:
    pixels = ((image + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST)
