"""What each part of the method is worth: small variants, trained and evaluated alike (paper, Tables 3, 4 and 5)."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from PIL import Image

from ..errors import SettingError
from ..evaluation.metric_suite import Suite, columns_of
from ..evaluation.quality_benchmark import Benchmark, match
from ..model import load as load_model
from ..pipeline import upscale
from . import config as configs
from . import weight_files
from .config import TrainingConfig
from .stages import export, train

log = logging.getLogger(__name__)

TABLES = ("experts", "steps", "decoder")
STEPS = (4, 10, 20, 50, 200)

#: Loops whose seeds `reseed` changes.
_LOOPS = ("first_stage.loop", "experts.trunk", "experts.loop", "decoder.loop")

#: Without Space MoE there are no FFN layers at all: LDM's network.
_NO_SPACE = ("experts.space_experts=0", "model.unet.space_experts=0")
#: The first stage's own decoder, which knows neither the LR image nor frequencies.
_PLAIN = ("model.autoencoder.lr_fusion=false", "model.autoencoder.refine=false")


@dataclass(frozen=True)
class Variant:
    """A row of the paper's Table 3 or 5."""

    #: "experts" or "decoder". Rows of "experts" take the first stage's own decoder.
    table: str
    name: str
    #: What differs from the config, as KEY=VALUE.
    overrides: tuple[str, ...]


def list_variants(base: TrainingConfig) -> list[Variant]:
    """The rows of Tables 3 and 5 for a config. All rows of a table take the same number of optimiser steps and images.

    A single expert takes as many steps after the trunk as all the experts of the other rows together.
    """
    total = base.experts.loop.steps * len(base.model.stages)
    one = (f"model.stages=[{base.model.stages[-1]}]", f"experts.loop.steps={total}")
    count = len(base.model.stages)
    return [
        Variant("experts", "one expert", (*_PLAIN, *_NO_SPACE, *one)),
        Variant("experts", "one expert + Space MoE", (*_PLAIN, *one)),
        Variant("experts", f"{count} time experts", (*_PLAIN, *_NO_SPACE)),
        Variant("experts", f"{count} time experts + Space MoE", _PLAIN),
        Variant("decoder", "plain decoder", (*_PLAIN, "decoder.frequency_weight=0")),
        Variant("decoder", "+ LR fusion", ("model.autoencoder.refine=false", "decoder.frequency_weight=0")),
        Variant("decoder", "+ AFF", ("decoder.frequency_weight=0",)),
        Variant("decoder", "+ FFL", ()),
    ]


class Ablations:
    """Trains and measures the variants of one config below `out`. Finished parts are not done again.

    data: folder of training images. hr: folder of originals; their middle crop x crop pixels are measured (0: all).
    """

    def __init__(
        self, source: str, overrides: Sequence[str], *, data: Path, hr: Path, out: Path, metrics: Path | None, crop: int
    ) -> None:
        self.source, self.overrides = source, list(overrides)
        self.data, self.out, self.metrics = data, out, metrics
        self.base = configs.load(source, self.overrides)
        if len(self.base.model.stages) < 2:
            raise SettingError(f"{source}: ablations compare one expert with several, the config has one")
        self.out.mkdir(parents=True, exist_ok=True)
        self.suite = Suite(metrics)
        self.cases = match(_cut_middles(hr, out / f"hr{crop}", crop) if crop else hr)[0]
        self.file = out / "results.json"
        self.results: dict[str, dict[str, dict[str, float | None]]] = {}
        if self.file.exists():
            self.results = json.loads(self.file.read_text())

    def run(self, tables: Sequence[str]) -> Iterator[tuple[str, str]]:
        """(table, row), as each is measured. The figures are in `results`, and in results.json below `out`."""
        for table in tables:
            if table not in TABLES:
                raise SettingError(f"table {table!r} is unknown: choose from {', '.join(TABLES)}")
        variants = list_variants(self.base)
        with_space = [variant for variant in variants[:4] if "Space" in variant.name]
        rows = [(variant.table, variant.name, variant, None) for variant in variants]
        rows += [("steps", f"{v.name}, {steps} steps", v, steps) for steps in STEPS for v in with_space]
        for table, name, variant, steps in rows:
            if table in tables:
                if name not in self.results.get(table, {}):
                    self.results.setdefault(table, {})[name] = self._measure(name, variant, steps)
                    weight_files.write_json(self.file, self.results)
                yield table, name

    def _measure(self, name: str, variant: Variant, steps: int | None) -> dict[str, float | None]:
        model = load_model(self._train_row(variant))
        benchmark = Benchmark(
            self.suite, model.scale, lambda lr: upscale(model, lr, steps=steps, color_fix="none"), "matlab"
        )
        for _ in benchmark.run(self.cases):
            pass
        if benchmark.failed:
            raise SettingError(f"{name}: {benchmark.failed[0]}")
        return benchmark.mean().values

    def _train_row(self, row: Variant) -> Path:
        """The model file of a row, trained if it is not there."""
        config = configs.load(self.source, [*self.overrides, *row.overrides])
        folder = self._name_folder(row)
        file = folder / "model.safetensors"
        if file.exists():
            return file
        log.info("%s: %s", row.table, row.name)
        shared = self.out / "shared"
        train("first-stage", self.base, self.data, shared, self.metrics)
        _copy(shared, folder, "first_stage")
        if row.table == "decoder":
            full = next(v for v in list_variants(self.base) if v.overrides == _PLAIN)
            self._train_row(full)
            _copy(self._name_folder(full), folder, *(f"stage{i}" for i in range(len(config.model.stages))))
            _copy(shared, folder, "samples")
            train("decoder", config, self.data, folder, self.metrics)
            _copy(folder, shared, "samples")
        else:
            trunk = self.out / ("trunk_space" if config.experts.space_experts else "trunk_plain")
            _copy(trunk, folder, "trunk")
            train("experts", config, self.data, folder, self.metrics)
            _copy(folder, trunk, "trunk")
            (folder / "decoder").mkdir(exist_ok=True)
            first = folder / "first_stage" / "first_stage.safetensors"
            shutil.copyfile(first, folder / "decoder" / "decoder.safetensors")
        return export(config, folder, file)

    def _name_folder(self, row: Variant) -> Path:
        return self.out / (row.table + "_" + "".join(c if c.isalnum() else "_" for c in row.name.lower()))


def reseed(seed: int) -> list[str]:
    """Overrides that give every stage of a config other random numbers; none for seed 0."""
    return [f"{loop}.seed={100 * seed + 10 * i}" for i, loop in enumerate(_LOOPS)] if seed else []


def format_table(runs: Sequence[Ablations], name: str) -> str:
    """A table in Markdown of the results of runs with different seeds.

    Several runs give mean and standard deviation, for the rows that all of them have.
    """
    columns = columns_of(runs[0].suite.keys)
    lines = [f"| {name} | {' | '.join(c.title for c in columns)} |", f"|---{'|---' * len(columns)}|"]
    found = [run.results.get(name, {}) for run in runs]
    for row in found[0]:
        if all(row in results for results in found):
            cells = [_format_cell([results[row].get(c.key) for results in found], c.digits) for c in columns]
            lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _format_cell(values: Sequence[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "-"
    spread = f" ± {stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{mean(known):.{digits}f}{spread}"


def _copy(source: Path, target: Path, *names: str) -> None:
    """Copy folders of `source` that `target` does not have."""
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        if (source / name).exists() and not (target / name).exists():
            shutil.copytree(source / name, target / name)


def _cut_middles(folder: Path, out: Path, side: int) -> Path:
    """Write the middle side x side pixels of a folder's images as files in the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    for case in match(folder)[0]:
        with Image.open(case.hr) as image:
            pixels = np.asarray(image.convert("RGB"))
        y, x = ((length - side) // 2 for length in pixels.shape[:2])
        if min(y, x) < 0:
            raise SettingError(f"{case.hr}: smaller than the crop {side}; lower it")
        Image.fromarray(pixels[y : y + side, x : x + side]).save(out / f"{case.name}.png")
    return out
