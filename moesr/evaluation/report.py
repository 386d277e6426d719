"""The HTML report: the table, the images side by side, and the square in which result and HR differ most."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ..atomic_files import open_new
from ..errors import SettingError, explain
from ..images.write import encode_image
from .metric_suite import columns_of
from .quality_benchmark import Benchmark, Row, Trio, format_value

#: Largest side in pixels of a panel, to which larger images are reduced, and side of the crops, which are not reduced.
PANEL, CROP = 640, 96
_LABELS = ("LR, bicubic", "result", "HR")
_STYLE = """
:root { color-scheme: light dark; }
body { font: 14px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1400px; padding: 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #8884; }
th:first-child, td:first-child { text-align: left; }
tr:last-child td { font-weight: bold; }
.row { display: grid; grid-template-columns: repeat(3, 1fr); gap: .5rem; margin: .5rem 0; }
figure { margin: 0; min-width: 0; }
figcaption { font-size: 12px; opacity: .75; }
img { width: 100%; display: block; }
.crop img { image-rendering: pixelated; }
"""


class Report:
    """One HTML file that holds all its images. `add` takes one image at a time; `write` writes the file."""

    def __init__(self, path: Path) -> None:
        if path.is_dir():
            raise SettingError(f"{path}: a folder; give the name of an .html file")
        self.path = path
        self._sections: list[str] = []

    def add(self, row: Row, trio: Trio) -> None:
        """Add an image: bicubic, result and HR, and a crop of each."""
        height, width = trio.hr.shape[:2]
        small = Image.fromarray(trio.lr).resize((width, height), Image.Resampling.BICUBIC)
        panels = [np.asarray(small), trio.result, trio.hr]
        top, left = find_most_different(trio.result, trio.hr)
        crops = [p[top : top + CROP, left : left + CROP] for p in panels]
        numbers = ", ".join(f"{c.title} {format_value(row.values[c.key], c.digits)}" for c in columns_of(row.values))
        where = f"{crops[0].shape[1]} x {crops[0].shape[0]} pixels from ({left}, {top})"
        self._sections.append(
            f'<section id="i{len(self._sections)}"><h2>{html.escape(row.name)}</h2><p>{html.escape(numbers)}</p>'
            f"{_figures(panels, _LABELS, 'row')}"
            f"{_figures(crops, [f'{label}, {where}' for label in _LABELS], 'row crop')}</section>"
        )

    def write(self, model: str, settings: dict[str, Any], benchmark: Benchmark) -> None:
        """Write the file; an older one is replaced in one step. Raises SettingError if it cannot be written."""
        facts = ", ".join(f"{k} {v}" for k, v in settings.items())
        lines = "".join(f"<li>{html.escape(line)}</li>" for line in [*benchmark.suite.left_out, *benchmark.failed])
        page = (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(model)}</title>'
            f"<style>{_STYLE}</style></head><body><h1>{html.escape(model)}</h1><p>{html.escape(facts)}</p>"
            f"{_table(benchmark)}<ul>{lines}</ul>{''.join(self._sections)}</body></html>\n"
        )
        cannot = explain(SettingError, f"{self.path}: cannot be written", "check the folder and its space")
        with cannot, open_new(self.path, replaces=True) as file:
            file.write(page.encode())


def find_most_different(a: np.ndarray, b: np.ndarray) -> tuple[int, int]:
    """Top and left of the square of CROP pixels in which two uint8 images [H, W, 3] differ most, in mean square."""
    difference = torch.from_numpy(a.astype(np.float32) - b.astype(np.float32)).square().mean(dim=2)[None, None]
    window = tuple(min(CROP, n) for n in difference.shape[-2:])
    means = F.avg_pool2d(difference, window, stride=8)[0, 0]
    row, column = divmod(int(means.argmax()), means.shape[1])
    return 8 * row, 8 * column


def _table(benchmark: Benchmark) -> str:
    columns = columns_of(benchmark.suite.keys)
    head = "".join(f'<th title="{html.escape(c.about)}; {c.better} is better">{c.title}</th>' for c in columns)
    body = []
    for i, row in enumerate([*benchmark.rows, benchmark.mean()]):
        name = html.escape(row.name)
        link = f'<a href="#i{i}">{name}</a>' if i < len(benchmark.rows) else name
        cells = "".join(f"<td>{format_value(row.values.get(c.key), c.digits)}</td>" for c in columns)
        body.append(f"<tr><td>{link}</td>{cells}<td>{format_value(row.seconds, 2)}</td></tr>")
    return f"<table><tr><th>image</th>{head}<th>seconds</th></tr>{''.join(body)}</table>"


def _figures(images: Sequence[np.ndarray], labels: Sequence[str], kind: str) -> str:
    exact = "crop" in kind
    figures = [
        f'<figure><img src="{_data(image, exact)}" alt="{label}"><figcaption>{label}</figcaption></figure>'
        for image, label in zip(images, labels)
    ]
    return f'<div class="{kind}">{"".join(figures)}</div>'


def _data(pixels: np.ndarray, exact: bool) -> str:
    """An image inside its address: a crop as PNG, a panel as JPEG that is reduced where it is large."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if not exact:
        image.thumbnail((PANEL, PANEL), Image.Resampling.LANCZOS)
    data = encode_image(image, "PNG") if exact else encode_image(image, "JPEG", quality=95, subsampling=0)
    return f"data:image/{'png' if exact else 'jpeg'};base64,{base64.b64encode(data).decode()}"
