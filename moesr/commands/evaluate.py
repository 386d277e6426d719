"""`evaluate`: measure a model, or ready results, against the originals."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from .common import Bar, add_model_options, add_overwrite, add_settings, check_new, fail, open_model, positive

#: Settings of `upscale` that figures depend on.
_SETTINGS = ("steps", "sampler", "seed", "fidelity", "restore", "tile")


def add(commands: Any) -> None:
    """Add the command to the parser's."""
    test = commands.add_parser("evaluate", help="measure a model, or any results, against the originals")
    test.add_argument("--hr", required=True, metavar="DIR", help="the originals")
    test.add_argument("--lr", metavar="DIR", help="their LR, names as they are or with _x4 (default: made from HR)")
    test.add_argument("--scale-from", default="pillow", choices=("pillow", "matlab"), help="bicubic that makes the LR")
    test.add_argument("--results", metavar="DIR", help="score these pictures instead of running a model")
    test.add_argument("--model", default="tiny", help="name, file or folder; bicubic for Pillow's (default: tiny)")
    test.add_argument("--scale", type=positive, help="between LR and HR (default: the model's, or as the files say)")
    add_settings(test, *_SETTINGS, "dtype", "device")
    test.add_argument("--without", choices=("latent", "experts", "filters"), help="measure the model without a part")
    test.add_argument("--metrics", metavar="DIR", help="weights of the metrics (default: MOESR_METRICS)")
    test.add_argument("--limit", type=positive, metavar="N", help="only the first N images")
    test.add_argument("--json", action="store_true", help="print JSON and nothing else")
    test.add_argument("--html", metavar="FILE", help="write a report with the images side by side")
    add_overwrite(test)
    add_model_options(test)
    test.set_defaults(run=_evaluate, residency="auto")


def _evaluate(options: argparse.Namespace) -> int:
    from ..evaluation.metric_suite import Suite
    from ..evaluation.quality_benchmark import Benchmark, format_row, match, to_json
    from ..evaluation.report import Report

    check_new(options.html, options)
    lr, results = (Path(folder) if folder else None for folder in (options.lr, options.results))
    cases, missing = match(Path(options.hr), lr, results, options.limit)
    report = Report(Path(options.html)) if options.html else None
    name, settings, upscale = _choose_upscale(options)
    settings |= {"lr": options.lr or f"{options.scale_from} bicubic, 1/{settings['scale']}"}
    suite = Suite(options.metrics, "cpu" if options.device == "auto" else options.device)
    for line in suite.left_out:
        print(f"note: {line}", file=sys.stderr)
    benchmark = Benchmark(suite, settings["scale"], upscale, options.scale_from)
    benchmark.failed += missing
    width = max([8, *(len(case.name) for case in cases)])

    def show(row: Any) -> None:
        if not options.json:
            print(format_row(row, suite.keys, width, upscale is not None), flush=True)

    show(None)
    for row, trio in benchmark.run(cases):
        if report is not None:
            report.add(row, trio)
        show(row)
        for line in row.notes:
            print(f"note: {row.name}: {line}", file=sys.stderr)
    show(benchmark.mean())
    if options.json:
        print(json.dumps(to_json(name, settings, benchmark), indent=2, allow_nan=False))
    if report is not None:
        report.write(name, settings, benchmark)
    for line in benchmark.failed:
        fail(line)
    return 1 if benchmark.failed else 0


def _choose_upscale(options: argparse.Namespace) -> tuple[str, dict[str, Any], Any]:
    """The name of what is measured, its settings, and the function that makes an image (None for ready results)."""
    from ..evaluation.ablation import remove_part
    from ..evaluation.quality_benchmark import make_bicubic
    from ..pipeline import upscale
    from ..settings import resolve

    if options.results:  # with an LR the files say the scale
        return options.results, {"scale": options.scale or (None if options.lr else 4)}, None
    if options.model == "bicubic":
        scale = options.scale or 4
        return "Pillow bicubic", {"scale": scale}, make_bicubic(scale)
    model = open_model(options)
    name = model.config.name or options.model
    if options.without:
        model = remove_part(model, options.without)
        name = f"{name} without {options.without}"
    settings = {name: getattr(options, name) for name in _SETTINGS}
    settings["scale"] = options.scale or model.scale
    resolved = resolve(model.config, **settings)
    settings |= {"steps": resolved.steps, "fidelity": resolved.fidelity}
    computing = {"dtype": str(model.dtype).removeprefix("torch."), "device": str(model.device)}

    def make(lr: Any) -> Any:
        with Bar("upscale") as bar:
            return upscale(model, lr, **settings, callback=bar.show)

    return name, {**settings, **computing}, make
