"""`train`: the three stages, and the export of a finished run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import SettingError
from .common import verbose


def add(commands: Any) -> None:
    """Add the command to the parser's."""
    train = commands.add_parser("train", help="train a model, stage by stage")
    train.add_argument("stage", choices=["first-stage", "experts", "decoder", "export"])
    train.add_argument("config", help="a name (tiny) or a .json file")
    train.add_argument("--data", help="folder of photographs")
    train.add_argument("--out", required=True, help="folder of the run; an interrupted run goes on from it")
    train.add_argument("--metrics", help="folder of the LPIPS weights (default: MOESR_METRICS)")
    train.add_argument(
        "--expert", action="append", metavar="I", help="of experts: train only number I, or trunk; may be repeated"
    )
    train.add_argument("--override", action="append", metavar="KEY=VALUE", help="as decoder.loop.steps=100")
    train.add_argument("--to", help="for export: the file to write")
    train.add_argument("--threads", type=int, help="CPU threads")
    train.set_defaults(run=_train)
    verbose(train)


def _train(options: argparse.Namespace) -> int:
    import torch

    from ..training.config import load as load_config
    from ..training.export import export
    from ..training.stages import train

    if options.threads:
        torch.set_num_threads(options.threads)
    config = load_config(options.config, options.override)
    out = Path(options.out)
    if options.stage == "export":
        print(export(config, out, Path(options.to or out / f"{config.model.name or 'model'}.safetensors")))
        return 0
    if not options.data:
        raise SettingError("no training images: give a folder with --data")
    metrics = Path(options.metrics) if options.metrics else None
    try:
        train(options.stage, config, Path(options.data), out, metrics, options.expert or ())
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        where = error.filename or out
        raise SettingError(f"{where}: cannot be read or written ({reason}); check the folder") from error
    return 0
