"""`bench`: how fast the networks are on this machine, and in how much memory."""

from __future__ import annotations

import argparse
import json
from typing import Any

from .common import choose_parts, positive

_HEAD = ("", "seconds", "TMAC", "of matrix rate", "x reference", "peak MiB", "GB/s")


def add(commands: Any) -> None:
    """Add the command to the parser's."""
    bench = commands.add_parser("bench", help="measure speed and memory on this machine")
    bench.add_argument("--json", action="store_true", help="print a JSON list of rows and nothing else")
    bench.add_argument("--quick", action="store_true", help="small sizes, one round: does it run? not for tables")
    bench.add_argument("--only", metavar="PARTS", help="some of matrix,copy,step,decode,image,scaling,full")
    bench.add_argument("--model", default="tiny", help="of whole images and scaling (default: tiny)")
    bench.add_argument("--side", type=positive, default=512, help="of the decoded image in pixels (default: 512)")
    bench.add_argument("--rounds", type=positive, help="repetitions, of which the median counts (default: 3)")
    bench.add_argument("--threads", type=positive, help="threads of torch (default: as torch has them)")
    bench.add_argument("--clock", default="wall", choices=("wall", "cpu"), help="cpu: CPU time, for busy machines")
    bench.add_argument("--device", default="cpu", help="cpu, cuda, mps (default: cpu)")
    bench.set_defaults(run=_bench)


def _bench(options: argparse.Namespace) -> int:
    import torch

    from ..errors import SettingError
    from ..evaluation.selftest_device import check_device, device_name
    from ..evaluation.speed.bench import SECTIONS, Bench, choose_sections

    device = check_device(options.device)
    sections = choose_parts(options.only, SECTIONS) if options.only else choose_sections(device, options.quick)
    if options.clock == "cpu" and (options.device != "cpu" or (options.threads or torch.get_num_threads()) > 1):
        raise SettingError("--clock cpu adds up the time of all threads: use --device cpu --threads 1")
    if options.threads:
        torch.set_num_threads(options.threads)
    bench = Bench(
        device=device,
        clock=options.clock,
        quick=options.quick,
        sections=sections,
        rounds=options.rounds or (1 if options.quick else 3),
        side=options.side,
        model=options.model,
    )
    rows = []
    if not options.json:
        threads = torch.get_num_threads()
        print(f"torch {torch.__version__}, {device} ({device_name(device)}), {threads} threads")
        print(_format_line(_HEAD))
    for row in bench.rows():
        rows.append(row.values())
        if not options.json:
            print(_format_line([_format_cell(k, v) for k, v in rows[-1].items()]), flush=True)
    if options.json:
        print(json.dumps(rows, indent=2, allow_nan=False))
    return 0


def _format_cell(key: str, value: Any) -> str:
    formats = {"seconds": ".3f", "tmac": ".4f", "share_of_matrix_rate": ".2f", "speedup_over_reference": ".2f"}
    if value is None:
        return "-"
    return value if isinstance(value, str) else format(value, formats.get(key, ".0f"))


def _format_line(cells: Any) -> str:
    name, *rest = cells
    return name.ljust(68) + "".join(cell.rjust(15) for cell in rest)
