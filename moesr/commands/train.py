"""`train`: a small model by one command, or a large one stage by stage; and the export of a finished run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import SettingError
from .common import add_overwrite, check_new, positive_number

STAGES = ("first-stage", "experts", "decoder", "export")


def add(commands: Any) -> None:
    """Add the command to the parser's."""
    train = commands.add_parser("train", help="train a model")
    train.add_argument(
        "what", nargs="+", metavar="[STAGE] CONFIG",
        help=f"a config by name (tiny) or .json file; before it one stage, if not all: {', '.join(STAGES)}",
    )  # fmt: skip
    train.add_argument("--out", required=True, help="folder of the run, from which an interrupted run continues")
    train.add_argument("--metrics", help="folder of the LPIPS weights (default: MOESR_METRICS)")
    train.add_argument("--override", action="append", metavar="KEY=VALUE", help="as unrolled.loop.steps=100")
    train.add_argument("--threads", type=int, help="CPU threads")
    whole = train.add_argument_group("all stages by one command")
    whole.add_argument("--pack", metavar="FILE", help="a pack of photographs, see `data --pack`; or a folder of them")
    whole.add_argument("--minutes", type=positive_number, help="minutes for all stages (default: the config's steps)")
    whole.add_argument("--start", help="continue from a model of this config: a name, a file, or a folder of its parts")
    whole.add_argument("--device", default="auto", help="auto, cpu, cuda")
    whole.add_argument("--seed", type=int, default=0, help="of all random numbers (default: 0)")
    whole.add_argument("--save-minutes", type=positive_number, default=10.0, help="between states (default: 10)")
    whole.add_argument("--evaluate", action="append", metavar="DIR", help="sets to measure the result on: hr/ and LRs")
    single = train.add_argument_group("one stage")
    single.add_argument("--data", help="folder of photographs, or a pack")
    single.add_argument(
        "--expert", action="append", metavar="I", help="of experts, train only number I, or trunk; may be repeated"
    )
    single.add_argument("--to", help="for export: the file to write")
    add_overwrite(train)
    train.set_defaults(run=_train)


def _train(options: argparse.Namespace) -> int:
    import torch

    from ..training.config import load as load_config

    if options.threads:
        torch.set_num_threads(options.threads)
    *stages, source = options.what
    if len(stages) > 1 or not set(stages) <= set(STAGES):
        raise SettingError(f"train {' '.join(options.what)}: give a config, and before it one of {', '.join(STAGES)}")
    config = load_config(source, options.override)
    out = Path(options.out)
    metrics = Path(options.metrics) if options.metrics else None
    return _stage(stages[0], config, out, metrics, options) if stages else _all(config, out, metrics, options)


def _all(config: Any, out: Path, metrics: Path | None, options: argparse.Namespace) -> int:
    from ..training.recipe import Recipe

    if not options.pack:
        raise SettingError("no training images: give a pack or a folder with --pack")
    for folder in options.evaluate or ():
        if not (Path(folder) / "hr").is_dir():
            raise SettingError(f"--evaluate {folder}: no folder hr in there; make sets with `data --sets`")
    recipe = Recipe(
        config, options.pack, out, minutes=options.minutes, start=options.start, device=options.device,
        seed=options.seed, metrics=metrics, save_minutes=options.save_minutes,
    )  # fmt: skip
    path = recipe.train()
    print(path)
    for folder in options.evaluate or ():
        _evaluate(path, Path(folder), out, options)
    return 0


def _evaluate(model: Path, folder: Path, out: Path, options: argparse.Namespace) -> None:
    """Measure a model on every LR set beside folder/hr, with a report for each in the folder of the run."""
    from ..cli import main

    metrics = ["--metrics", options.metrics] if options.metrics else []
    for lr in sorted(path for path in folder.iterdir() if path.is_dir() and path.name != "hr"):
        report = out / f"{folder.name}_{lr.name}.html"
        print(f"{folder.name}, {lr.name}:", flush=True)
        main(
            ["evaluate", "--model", str(model), "--hr", str(folder / "hr"), "--lr", str(lr), "--html", str(report),
             "--device", options.device, "--overwrite", *metrics]
        )  # fmt: skip


def _stage(stage: str, config: Any, out: Path, metrics: Path | None, options: argparse.Namespace) -> int:
    from ..training.stages import export, train

    if stage == "export":
        check_new(options.to, options)
        print(export(config, out, Path(options.to or out / f"{config.model.name or 'model'}.safetensors")))
        return 0
    if not options.data:
        raise SettingError("no training images: give a folder with --data")
    train(stage, config, options.data, out, metrics, options.expert or ())
    return 0
