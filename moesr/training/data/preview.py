"""A contact sheet of training pairs, to look at before a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ...errors import SettingError
from ...images.files import Picture
from ..latents import to_bytes
from .crops import Pair, PhotoCrops

#: Width of a sheet that holds more than one pair, at most; and how wide a crop is shown, at least.
WIDTH, PANEL = 1600, 192
#: Pairs on a sheet, at most.
LIMIT = 400
_GAP, _LINE, _LINES = 8, 12, 3


def draw_sheet(crops: PhotoCrops, count: int) -> Picture:
    """The first `count` items of a run: LR (pixels as squares) and HR side by side, with name and degradation above.

    Raises SettingError for more than 400, and what the items raise.
    """
    if count > LIMIT:
        raise SettingError(f"{count} pairs: a sheet holds at most {LIMIT}; choose fewer, or another seed for others")
    zoom = max(1, -(-PANEL // crops.crop))
    panel = crops.crop * zoom
    width, height = 2 * panel + _GAP, panel + _LINES * _LINE + _GAP
    columns = max(1, min(count, WIDTH // width))
    rows = -(-count // columns)
    canvas = Image.new("RGB", (columns * width + _GAP, rows * height + _GAP), "white")
    for index in range(count):
        y, x = divmod(index, columns)
        _draw(canvas, crops.pair(index), (_GAP + x * width, _GAP + y * height), panel)
    return Picture(np.asarray(canvas))


def _draw(canvas: Image.Image, pair: Pair, corner: tuple[int, int], panel: int) -> None:
    x, y = corner
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default()
    caption = f"{Path(pair.name).name}: {pair.facts}".encode("ascii", "replace").decode()
    lines = _wrapped(caption, lambda text: draw.textlength(text, font) <= 2 * panel)[:_LINES]
    for i, line in enumerate(lines, _LINES - len(lines)):
        draw.text((x, y + i * _LINE), line, fill="black", font=font)
    for i, image in enumerate((pair.lr, pair.hr)):
        pixels = Image.fromarray(to_bytes(image).permute(1, 2, 0).numpy())
        enlarged = pixels.resize((panel, panel), Image.Resampling.NEAREST)
        canvas.paste(enlarged, (x + i * panel, y + _LINES * _LINE))


def _wrapped(text: str, fits: Callable[[str], bool]) -> list[str]:
    """The text in lines that fit; words that do not fit by themselves are cut."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if fits(longer):
            lines[-1] = longer
            continue
        while not fits(word):
            word = word[:-1]
        lines.append(word)
    return [line for line in lines if line]
