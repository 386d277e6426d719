"""The benchmark: rows from the yardstick to whole images, one after the other, as they are measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import torch

from ...checkpoints.weight_reading import DTYPES
from ...model import load
from ...pipeline import upscale
from ..parity import synthetic_picture
from .measure import (
    DEVICE_MATRIX,
    MATRIX,
    Row,
    Run,
    Stopwatch,
    count_products,
    median_ratio,
    peak,
    prepare_matrix_product,
)
from .network_parts import Part, count_run, decoder_parts, expert_step, full_size_model, plain_run

SECTIONS = ("matrix", "copy", "step", "decode", "image", "scaling", "full")
#: Sides in pixels of the square outputs of `scaling`, from one tile to many; and of `image` on devices.
SIDES, DEVICE_SIDES = (512, 1024, 2048, 4096), (512, 1024, 4096)
#: The kinds of full-size models that make whole images, and their steps.
FULL_RUNS = (("MoESR", 50), ("MoESR", 200), ("ResShift", 4), ("ResShift", 15))
#: Bytes of the copy that shows the device's bandwidth.
COPY_BYTES = 2**30


def choose_sections(device: torch.device, quick: bool) -> tuple[str, ...]:
    """What is measured by default: copies and whole full-size images on devices only, and less if `quick`."""
    if device.type == "cpu":
        return tuple(name for name in SECTIONS if name not in ("copy", "full"))
    return ("matrix", "copy", "step", "image") if quick else SECTIONS


@dataclass
class Bench:
    """Measures rows.

    The yardstick (a matrix product), a part by the plain networks and by ours run in turn. Every figure is the median
    of its rounds. Networks of full size have random weights: their speed does not depend on them.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    #: "wall", or "cpu" for CPU time.
    clock: str = "wall"
    #: Smaller sizes, to see that everything runs; not for tables.
    quick: bool = False
    sections: tuple[str, ...] = SECTIONS
    #: Repetitions of every run.
    rounds: int = 3
    #: Side in pixels of decoded images.
    side: int = 512
    #: The model of whole images and scaling.
    model: str = "tiny"

    def __post_init__(self) -> None:
        self.watch = Stopwatch(self.device, self.clock)

    def rows(self) -> Iterator[Row]:
        for section in self.sections:
            yield from getattr(self, f"_{section}")()

    def _dtypes(self) -> list[str]:
        """fp16 is for devices: CPUs without units for it take hundreds of times as long."""
        return ["fp32", "bf16"] if self.device.type == "cpu" else ["fp32", "bf16", "fp16"]

    def _matrix(self) -> Iterator[Row]:
        for name, dtype in DTYPES.items():
            side = self._side(dtype)
            product, count = prepare_matrix_product(dtype, self.device, side), side**3 / 1e12
            seconds = median(self.watch.alternating([product], self.rounds)[0])
            yield Row(f"matrix product {side}, {name}", seconds, count, 1.0)

    def _side(self, dtype: torch.dtype) -> int:
        if self.device.type != "cpu":
            return DEVICE_MATRIX
        return min(512, MATRIX) if dtype == torch.float16 else MATRIX

    def _copy(self) -> Iterator[Row]:
        source = torch.ones(COPY_BYTES // 4, device=self.device)
        target = torch.empty_like(source)
        seconds = median(self.watch.alternating([lambda: target.copy_(source)], self.rounds)[0])
        yield Row(f"copy of {COPY_BYTES // 2**20} MiB", seconds, gb_per_second=2 * COPY_BYTES / 1e9 / seconds)

    @torch.inference_mode()
    def _step(self) -> Iterator[Row]:
        latent = 64 if self.quick and self.device.type == "cpu" else 128
        before: Part | None = None
        for name in self._dtypes():
            part = expert_step(latent, DTYPES[name], self.device)
            yield self._row(part, name)
            if before is not None:
                ours, theirs = self.watch.alternating([part.run, before.run], self.rounds)
                speedup = median_ratio(theirs, ours)
                yield Row(f"  {name} against our fp32", median(ours), speedup_over_reference=speedup)
            before = before or part

    @torch.inference_mode()
    def _decode(self) -> Iterator[Row]:
        side = 128 if self.quick else self.side
        rounds = max(1, self.rounds - 1)
        exact: Part | None = None
        for name in self._dtypes():
            whole, *parts = decoder_parts(side, DTYPES[name], self.device)
            exact = exact or whole
            # Against the plain networks in fp32, which is what one would run otherwise.
            against = replace(whole, plain=exact.plain)
            yield self._row(against, name, rounds if whole is exact else 1, memory=True)
            for part in parts:
                yield self._row(part, name, rounds)

    def _image(self) -> Iterator[Row]:
        sides: tuple[int, ...] = (min(256, self.side) if self.quick else self.side,)
        if self.device.type != "cpu":
            sides = DEVICE_SIDES[:1] if self.quick else DEVICE_SIDES
        model = load(self.model, device=self.device)
        for side in sides:
            picture = synthetic_picture(side // model.scale)
            runs: list[Run] = [lambda p=picture: upscale(model, p)]
            seconds = median(self.watch.alternating(runs, self.rounds)[0])
            with peak(self.device) as used:
                runs[0]()
            steps = model.config.steps
            yield Row(f"{self.model}, {side} x {side}, {steps} steps", seconds, peak_mib=used.mib)

    def _full(self) -> Iterator[Row]:
        """Whole images by full-size networks; the first in turn with the plain networks."""
        name = self._dtypes()[-1]
        product = prepare_matrix_product(DTYPES[name], self.device, self._side(DTYPES[name]))
        for kind, steps in FULL_RUNS:
            model = full_size_model(kind, steps, DTYPES[name], self.device)
            picture = synthetic_picture(self.side // model.scale)
            latent = self.side // model.config.autoencoder.factor
            runs: list[Run] = [product, lambda m=model, p=picture, n=steps: upscale(m, p, steps=n, tile=0)]
            if (kind, steps) == FULL_RUNS[0]:
                runs.append(plain_run(model, steps, latent))
            times = self.watch.alternating(runs, 1 if self.quick else max(1, self.rounds - 1))
            with peak(self.device) as used:
                runs[1]()
            count = count_run(model.config, steps, latent)
            share = median_ratio(times[0], times[1]) * count / (self._side(DTYPES[name]) ** 3 / 1e12)
            speedup = median_ratio(times[2], times[1]) if len(times) == 3 else None
            row = f"full-size {kind}, {self.side} x {self.side}, {steps} steps, {name}"
            yield Row(row, median(times[1]), count, share, speedup, used.mib)

    def _scaling(self) -> Iterator[Row]:
        """Seconds per megapixel, and memory beyond the result, from one tile to many. Two steps are enough to see."""
        model = load(self.model, device=self.device)
        upscale(model, synthetic_picture(64 // model.scale), steps=2)  # weights that are converted come into memory
        for side in SIDES[:2] if self.quick else SIDES:
            picture = synthetic_picture(side // model.scale)

            def run(side: int = side, picture: Any = picture) -> None:
                upscale(model, picture, steps=2, tile=min(side, 512))

            with peak(self.device) as used:
                seconds = self.watch(run)
            beyond = None if used.bytes is None else max(0, used.bytes - side * side * 3) / 2**20
            name = f"{self.model}, {side} x {side}, 2 steps, tiles of 512: seconds per megapixel"
            yield Row(name, seconds / (side * side / 1e6), peak_mib=beyond)

    def _row(self, part: Part, dtype: str, rounds: int | None = None, memory: bool = False) -> Row:
        side = self._side(DTYPES[dtype])
        yardstick = prepare_matrix_product(DTYPES[dtype], self.device, side)
        # The first round warms the caches of kernels; a run of many seconds needs no round for that alone.
        runs = [yardstick, part.run, part.plain]
        times = self.watch.alternating(runs, rounds or self.rounds, warm=rounds is None)
        count = count_products(part.count)
        share = median_ratio(times[0], times[1]) * count / (side**3 / 1e12)
        speedup, mib = median_ratio(times[2], times[1]), None
        if memory:
            with peak(self.device) as used:
                part.run()
            mib = used.mib
        return Row(f"{part.name}, {dtype}", median(times[1]), count, share, speedup, mib)
