"""`ablate`: what each part of the method is worth, by training small variants alike."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import SettingError


def add(commands: Any) -> None:
    """Add the command to the parser's."""
    ablate = commands.add_parser("ablate", help="train variants without parts of the method, and compare them")
    ablate.add_argument("config", nargs="?", default="ablation", help="a name or a .json file (default: ablation)")
    ablate.add_argument("--data", required=True, metavar="DIR", help="folder of photographs to train on")
    ablate.add_argument("--hr", required=True, metavar="DIR", help="originals to evaluate on")
    ablate.add_argument("--out", required=True, metavar="DIR", help="folder of the runs, to continue from")
    ablate.add_argument("--tables", default="experts,steps,decoder", help="of experts, steps, decoder (default: all)")
    ablate.add_argument("--crop", type=int, default=0, help="evaluate on the middle N x N pixels (default: all)")
    ablate.add_argument("--seeds", type=int, default=1, help="train every row N times; tables have mean ± deviation")
    ablate.add_argument("--metrics", metavar="DIR", help="weights of the metrics (default: MOESR_METRICS)")
    ablate.add_argument("--override", action="append", metavar="KEY=VALUE", help="of every variant, as for train")
    ablate.add_argument("--threads", type=int, help="CPU threads")
    ablate.set_defaults(run=_ablate)


def _ablate(options: argparse.Namespace) -> int:
    import torch

    from ..training.ablations import Ablations, format_table, reseed

    if options.seeds < 1:
        raise SettingError(f"seeds {options.seeds}: every row is trained at least once; choose 1 or more")
    if options.threads:
        torch.set_num_threads(options.threads)
    out = Path(options.out)
    metrics = Path(options.metrics) if options.metrics else None
    runs = [
        Ablations(
            options.config, [*(options.override or []), *reseed(seed)], data=Path(options.data), hr=Path(options.hr),
            out=out / f"seed{seed}" if seed else out, metrics=metrics, crop=options.crop,
        )
        for seed in range(options.seeds)
    ]  # fmt: skip
    tables = options.tables.split(",")
    for seed, run in enumerate(runs):
        for name, row in run.run(tables):
            print(f"{name}: {row}{f', seed {seed}' if seed else ''}", flush=True)
    for name in tables:
        print(f"\n{format_table(runs, name)}")
    return 0
