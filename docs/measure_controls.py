"""Measures the controls of a model: writes the tables of controls.md, its plots and pictures, and that of a help page.

MOESR_METRICS=metrics/ python -m docs.measure_controls originals/ [--model tiny] [--crop 256]
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import moesr
from moesr.evaluation.invented_detail import correlate_ranks
from moesr.evaluation.lpips import LPIPS
from moesr.evaluation.metrics import luma, psnr_y
from moesr.frames import steady_frames

DOCS = Path(__file__).resolve().parent
EXAMPLES = DOCS.parent / "moesr" / "page" / "examples"
FIDELITIES = (0, 0.25, 0.5, 0.75, 1)
SCALE, FRAMES, STEADY = 4, 6, 0.4
#: Side of the protected square and distance from its border that is left out, in LR pixels.
PROTECTED, INSIDE = 40, 10


def main() -> None:
    """Measure, write, and say what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("originals", type=Path)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--crop", type=int, default=256, help="side of the middle part that is measured, in pixels")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = moesr.load(options.model)
    draw_pictures(model)
    study = Study(model, options.crop)
    for path in sorted(options.originals.glob("*.png")):
        study.measure(path)
        print(path.stem, flush=True)
    page = DOCS / "controls.md"
    text = page.read_text(encoding="utf-8")
    for name, rows in study.tabulate().items():
        mark = f"<!-- {name} -->"
        text = re.sub(f"{mark}.*?{mark}", lambda _, r=rows, m=mark: "\n".join([m, *r, m]), text, flags=re.S)
        print("\n".join(["", *rows]))
    page.write_text(text, encoding="utf-8")
    (DOCS / "images" / "controls.svg").write_text(study.plot(), encoding="utf-8")


class Study:
    """Figures of each photograph, by name of the figure."""

    def __init__(self, model: moesr.SRModel, crop: int) -> None:
        self.model, self.crop = model, crop
        self.lpips = LPIPS("alex")
        self.names: list[str] = []
        self.psnr, self.edges, self.distance = ([[] for _ in FIDELITIES] for _ in range(3))
        self.found: list[tuple[float, ...]] = []
        self.pairs: list[Tensor] = []
        self.protected: list[tuple[float, float]] = []
        self.flicker: list[tuple[float, ...]] = []

    def measure(self, path: Path) -> None:
        """All of one photograph."""
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        top, left = ((side - self.crop) // 2 for side in pixels.shape[:2])

        def cut(shift: int) -> np.ndarray:
            return pixels[top : top + self.crop, left + shift : left + shift + self.crop]

        self.names.append(re.sub(r"^\d+_|_\d+x\d+$", "", path.stem).replace("_", " "))
        hr, lr = to_tensor(cut(0)[None]), reduce(cut(0)[None])
        results = [moesr.upscale(self.model, lr, fidelity=w) for w in FIDELITIES]
        for k, result in enumerate(results):
            self.psnr[k].append(psnr_y(to_planes(result), to_planes(hr)).item())
            self.edges[k].append(compute_edge_energy(result))
            self.distance[k].append(self.compute_lpips(result, hr))
        self.measure_invention(lr, hr)
        self.measure_protection(lr, results[0], results[-1])
        self.measure_flicker(np.stack([cut(k) for k in range(FRAMES)]))

    def measure_invention(self, lr: Tensor, hr: Tensor) -> None:
        """The spread between tries and the error, with the model's own fidelity."""
        found = moesr.invention(self.model, lr)
        self.pairs.append(found.compare_error(hr.numpy()))
        spread = found.spread.mean().item()
        self.found.append((found.share, spread, found.lr_consistency, correlate_ranks(self.pairs[-1])))

    def measure_protection(self, lr: Tensor, low: Tensor, high: Tensor) -> None:
        """Distance from fidelity 1 of a square in the middle, without and with protection."""
        side = self.crop // SCALE
        start, stop = (side - PROTECTED) // 2, (side + PROTECTED) // 2
        protect = np.zeros((side, side))
        protect[start:stop, start:stop] = 1
        mixed = moesr.upscale(self.model, lr, fidelity=0, protect=protect)
        inner = slice((start + INSIDE) * SCALE, (stop - INSIDE) * SCALE)
        levels = [255 * (x - high)[:, inner, inner].abs().mean().item() for x in (low, mixed)]
        self.protected.append((levels[0], levels[1]))

    def measure_flicker(self, pixels: np.ndarray) -> None:
        """Flicker and LPIPS of frames that move by a quarter of an LR pixel: bicubic, as they are, steadied."""
        hr, lr = to_tensor(pixels), reduce(pixels)
        bicubic = torch.nn.functional.interpolate(to_planes(lr), scale_factor=SCALE, mode="bicubic").clamp(0, 1)
        plain = moesr.upscale(self.model, lr, batch_seed="same")
        steadied = plain.clone()
        steady_frames(lr, steadied, STEADY)
        videos = (bicubic.permute(0, 2, 3, 1), plain, steadied)
        self.flicker.append((*map(compute_flicker, videos), *(self.compute_lpips(video, hr) for video in videos)))

    def compute_lpips(self, images: Tensor, hr: Tensor) -> float:
        """Mean over the images [B, H, W, 3]."""
        with torch.no_grad():
            return self.lpips(to_planes(images) * 2 - 1, to_planes(hr) * 2 - 1).mean().item()

    def tabulate(self) -> dict[str, list[str]]:
        """The tables of the page in Markdown, by mark."""
        digits = (2, 2, 3)
        curves = [
            [f"{w:g}", *(f"{np.mean(x[k]):.{n}f}" for x, n in zip((self.psnr, self.edges, self.distance), digits))]
            for k, w in enumerate(FIDELITIES)
        ]
        rows = zip([*self.names, "**all blocks together**"], [*self.found, self.pool()])
        spreads = [
            [name, f"{share:.1%}", f"{spread:.2f}", f"{consistency:.1f}", f"{rank:.2f}"]
            for name, (share, spread, consistency, rank) in rows
        ]
        names = [*self.names, "**mean**"]
        levels = zip(names, [*self.protected, np.mean(self.protected, axis=0)])
        videos = zip(names, [*self.flicker, np.mean(self.flicker, axis=0)])
        return {
            "fidelity": format_table("fidelity, PSNR-Y, edge energy, LPIPS-alex", curves),
            "invention": format_table(
                "photograph, above 8 levels, mean of the map, LR consistency in dB, rank correlation",
                spreads,
            ),
            "protect": format_table(
                "photograph, fidelity 0, protected", [[name, *map("{:.2f}".format, row)] for name, row in levels]
            ),
            "flicker": format_table(
                f"photograph, bicubic, same noise, `steady={STEADY}`, change, LPIPS, LPIPS with `steady`",
                [[name, *self.format_flicker(row)] for name, row in videos],
            ),
        }

    def pool(self) -> tuple[float, ...]:
        """The row of all photographs in the table of what was invented."""
        means = (float(np.mean(column)) for column in list(zip(*self.found))[:3])
        return (*means, correlate_ranks(torch.cat(self.pairs, dim=1)))

    def format_flicker(self, row: Sequence[float]) -> list[str]:
        """Cells of one row of the table of frames."""
        bicubic, plain, steadied, _, before, after = row
        change = f"{steadied / plain - 1:.0%}"
        return [f"{bicubic:.2f}", f"{plain:.2f}", f"{steadied:.2f}", change, f"{before:.3f}", f"{after:.3f}"]

    def plot(self) -> str:
        """Three plots side by side, as SVG: PSNR and edge energy over fidelity, and error over spread."""
        panels = []
        for title, values in (("PSNR-Y in dB", self.psnr), ("Edge energy in grey levels", self.edges)):
            points = np.stack([FIDELITIES, np.mean(values, axis=1)], axis=1)
            low, high = points[:, 1].min(), points[:, 1].max()
            room = (high - low) * 0.15 + 1e-6
            panels.append(Panel(title, "fidelity", (0, 1), (low - room, high + room), points, joined=True))
        pairs = torch.cat(self.pairs, dim=1).T.numpy()
        wide, high = np.quantile(pairs, 0.99, axis=0)
        title = f"Error in grey levels (rank correlation {self.pool()[-1]:.2f})"
        some = pairs[:: max(1, len(pairs) // 1500)]
        panels.append(Panel(title, "spread between tries in grey levels", (0, wide), (0, high), some))
        body = "".join(f'<g transform="translate({k * Panel.WIDTH})">{x.draw()}</g>' for k, x in enumerate(panels))
        size = f'viewBox="0 0 {3 * Panel.WIDTH} {Panel.HEIGHT}" font-family="sans-serif" font-size="11" fill="#222"'
        back = '<rect width="100%" height="100%" fill="white"/>'
        return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{back}{body}</svg>\n'


class Panel:
    """One plot: points [N, 2] in axes from 0 or a smallest to a largest value."""

    WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 300, 250, 42, 28, 14, 40

    def __init__(self, title: str, below: str, x: tuple, y: tuple, points: np.ndarray, *, joined: bool = False) -> None:
        self.title, self.below, self.x, self.y, self.points, self.joined = title, below, x, y, points, joined

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Where a point lies, in units of the picture."""
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        width, height = self.WIDTH - self.LEFT - self.RIGHT, self.HEIGHT - self.TOP - self.BOTTOM
        return self.LEFT + width * across, self.TOP + height * (1 - up)

    def draw(self) -> str:
        """The elements of the plot."""
        inside = (self.points >= [self.x[0], self.y[0]]) & (self.points <= [self.x[1], self.y[1]])
        places = [self.place(*point) for point in self.points[inside.all(axis=1)]]
        radius, opacity = (3.5, 1) if self.joined else (1.6, 0.35)
        parts = [f'<text x="{self.LEFT}" y="16" font-weight="bold">{self.title}</text>']
        for fraction in (0, 0.25, 0.5, 0.75, 1):
            x, y = (low + fraction * (high - low) for low, high in (self.x, self.y))
            left, top = self.place(x, y)
            parts.append(
                f'<path d="M{self.LEFT} {top:.1f}H{self.WIDTH - self.RIGHT}" stroke="#ddd"/>'
                f'<text x="{self.LEFT - 5}" y="{top + 4:.1f}" text-anchor="end">{y:.4g}</text>'
                f'<text x="{left:.1f}" y="{self.HEIGHT - 24}" text-anchor="middle">{x:.2g}</text>'
            )
        middle = (self.LEFT + self.WIDTH - self.RIGHT) / 2
        parts.append(f'<text x="{middle}" y="{self.HEIGHT - 8}" text-anchor="middle">{self.below}</text>')
        if self.joined:
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            parts.append(f'<polyline points="{line}" fill="none" stroke="#4f46e5" stroke-width="2"/>')
        dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>' for x, y in places)
        return "".join([*parts, f'<g fill="#4f46e5" opacity="{opacity}">{dots}</g>'])


def draw_pictures(model: moesr.SRModel) -> None:
    """images/protect.jpg: fidelity 0, with the face protected, fidelity 1. The help's invented.jpg: result and map."""
    with Image.open(EXAMPLES / "face.png") as image:
        face = np.asarray(image.convert("RGB"))
    y, x = np.mgrid[: face.shape[0], : face.shape[1]]
    distance = np.hypot((x - 54) / 30, (y - 46) / 36)
    protect = (6 * (1 - distance)).clip(0, 1)  # an ellipse around the face, feathered
    settings: Sequence[dict[str, Any]] = ({"fidelity": 0}, {"fidelity": 0, "protect": protect}, {"fidelity": 1})
    results = [moesr.upscale(model, face, **own) for own in settings]
    save_beside(DOCS / "images" / "protect.jpg", results)
    with Image.open(EXAMPLES.parents[2] / "assets" / "demo.png") as image:
        cup = np.asarray(image.convert("RGB"))[20:80, 40:120]
    found = moesr.invention(model, cup)
    result = (255 * found.result[0]).round().byte().numpy()
    save_beside(DOCS.parent / "web" / "comfy" / "docs" / "img" / "invented.jpg", [result, found.draw()[0]])


def save_beside(path: Path, pictures: Sequence[np.ndarray]) -> None:
    """Pictures [H, W, 3] in a row, 8 black pixels between."""
    out = Image.new("RGB", (sum(x.shape[1] + 8 for x in pictures) - 8, max(x.shape[0] for x in pictures)))
    left = 0
    for picture in pictures:
        out.paste(Image.fromarray(picture), (left, 0))
        left += picture.shape[1] + 8
    out.save(path, quality=85)


def to_tensor(pixels: np.ndarray) -> Tensor:
    """Bytes [B, H, W, 3] as floats in [0, 1]."""
    return torch.from_numpy(pixels.astype(np.float32) / 255)


def to_planes(images: Tensor) -> Tensor:
    """[B, H, W, 3] -> [B, 3, H, W]."""
    return images.permute(0, 3, 1, 2)


def reduce(pixels: np.ndarray) -> Tensor:
    """Each picture of [B, H, W, 3], reduced by Pillow's bicubic."""
    height, width = (side // SCALE for side in pixels.shape[1:3])
    small = [Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC) for picture in pixels]
    return to_tensor(np.stack([np.asarray(picture) for picture in small]))


def compute_edge_energy(images: Tensor) -> float:
    """Mean absolute difference of neighbours along both axes, of Y, in grey levels."""
    plane = 255 * luma(to_planes(images))
    return sum(plane.diff(dim=dim).abs().mean().item() for dim in (2, 3)) / 2


def compute_flicker(video: Tensor) -> float:
    """Mean absolute difference of consecutive frames, each one pixel to the left of the last, in grey levels."""
    return 255 * (video[1:, :, :-1] - video[:-1, :, 1:]).abs().mean().item()


def format_table(header: str, rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown, line by line. header: with commas between."""
    titles = header.split(", ")
    return [f"| {' | '.join(row)} |" for row in (titles, ["---"] * len(titles), *rows)]


if __name__ == "__main__":
    main()
