"""A picture of a run's plan: which expert works at which step, with the noise level over it. Needs Pillow only."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

#: Drawn this many times too large and shrunk, for smooth edges.
_FINE = 2
_LEFT, _RIGHT, _TOP, _BOTTOM = 10, 10, 24, 22

Colour = tuple[int, int, int]

_SCALE: tuple[Colour, ...] = ((146, 190, 224), (84, 132, 192), (118, 92, 168), (190, 84, 112))


def draw_timeline(
    experts: Sequence[int], noise: Sequence[float], timesteps: Sequence[int], *, size: tuple[int, int] = (720, 150),
    ink: Colour = (128, 132, 140), zoom: int = 1,
) -> Image.Image:  # fmt: skip
    """An RGBA picture on a transparent ground: a bar for every step, as high as its noise, in its expert's colour.

    experts, noise (0 or more) and timesteps have one entry per step, of which there is at least one, in the order in
    which they run. size: in pixels. ink: of the labels, by default a grey that is read on white and on black. zoom: 2
    for a picture that is twice as large with all that is in it.
    """
    count = len(experts)
    width, height = (side * _FINE for side in size)
    image = Image.new("RGBA", (width, height))
    draw = ImageDraw.Draw(image)
    left, right, top, bottom = (_FINE * margin for margin in (_LEFT, _RIGHT, _TOP, _BOTTOM))
    floor, ceiling = height - bottom, top
    edges = [left + (width - left - right) * i / count for i in range(count + 1)]
    gap = min(2 * _FINE, (edges[1] - edges[0]) / 4)
    highest = max(*noise, 1e-9)
    colours = palette(max(experts) + 1)
    for i, (expert, level) in enumerate(zip(experts, noise)):
        low = floor - max(2 * _FINE, (floor - ceiling) * max(level, 0) / highest)
        draw.rectangle((edges[i], low, edges[i + 1] - gap, floor), fill=(*colours[expert], 255))
    draw.line((left, floor, width - right, floor), fill=(*ink, 255), width=1)
    _draw_labels(draw, experts, timesteps, edges, floor, ink)
    return image.resize((size[0] * zoom, size[1] * zoom), Image.Resampling.LANCZOS)


def palette(count: int) -> list[Colour]:
    """A colour for each of `count` experts, from pale blue (0, least noise) to red (most)."""
    colours = []
    for i in range(count):
        place = (len(_SCALE) - 1) * i / max(count - 1, 1)
        low = min(int(place), len(_SCALE) - 2)
        red, green, blue = (round(a + (b - a) * (place - low)) for a, b in zip(_SCALE[low], _SCALE[low + 1]))
        colours.append((red, green, blue))
    return colours


def _draw_labels(
    draw: ImageDraw.ImageDraw, experts: Sequence[int], timesteps: Sequence[int], edges: Sequence[float], floor: float,
    ink: Colour,
) -> None:  # fmt: skip
    font = _load_font(12 * _FINE)
    draw.text((edges[0], 2 * _FINE), "noise", fill=(*ink, 255), font=font)
    end = edges[0] + draw.textlength("noise", font=font)
    start = 0
    for expert, group in itertools.groupby(experts):
        stop = start + len(list(group))
        # The first wording that fits above, and below, the expert's steps.
        above = f"expert {expert}", f"{expert}"
        below = f"t {timesteps[start]} to {timesteps[stop - 1]}", f"t {timesteps[start]}"
        centre, room = (edges[start] + edges[stop]) / 2, edges[stop] - edges[start] - 4 * _FINE
        for texts, y, left in ((above, 2 * _FINE, end + 4 * _FINE), (below[stop - start == 1 :], floor + 5 * _FINE, 0)):
            for text in texts:
                length = draw.textlength(text, font=font)
                if length <= room and centre - length / 2 > left:
                    draw.text((centre - length / 2, y), text, fill=(*ink, 255), font=font)
                    break
        start = stop


def _load_font(size: int) -> Any:
    try:
        return ImageFont.load_default(size)
    except TypeError:  # Pillow before 10.1 has one small font and no sizes
        return ImageFont.load_default()
