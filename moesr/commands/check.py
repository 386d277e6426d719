"""`check`: the self-test of this device, and a report to send with an issue."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from .common import choose_parts


def add(commands: Any) -> None:
    """Add the command to the parser's."""
    check = commands.add_parser("check", help="self-test: is this device right, and does it keep to its memory?")
    check.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps, xpu (default: the best one)")
    check.add_argument("--quick", action="store_true", help="at most a minute; smaller pictures, nothing compiled")
    check.add_argument("--only", metavar="ROWS", help="some of the rows, with commas")
    check.add_argument("--model", default="tiny", help="name or file (default: tiny)")
    check.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    check.add_argument("--record", action="store_true", help=argparse.SUPPRESS)  # for who changes the embedded model
    check.set_defaults(run=_check)


def _check(options: argparse.Namespace) -> int:
    from ..evaluation.selftest import ROWS, SelfTest
    from ..evaluation.selftest_device import check_device, describe_machine

    rows = choose_parts(options.only, ROWS)
    if options.record:
        return _record(options.model)
    device = check_device(options.device)
    machine = describe_machine(device)
    if not options.json:
        for name, value in machine.items():
            print(f"{name:12}{value}")
    results = []
    for result in SelfTest(device, quick=options.quick, model=options.model).run(rows):
        results.append(result)
        if not options.json:
            word = "ok" if result.passed else "FAILED"
            print(f"{result.name:12}{word:8}{result.seconds:6.1f} s  {result.summary}", flush=True)
    passed = all(result.passed for result in results)
    if options.json:
        report = {"passed": passed, "machine": machine, "rows": [asdict(result) for result in results]}
        print(json.dumps(report, indent=2))
    elif not passed:
        print("Something is wrong here. Please send this report with your issue.")
    return 0 if passed else 1


def _record(source: str) -> int:
    """Record the model's result as the one that the test expects."""
    from ..evaluation import recorded_result
    from ..model import load
    from ..pipeline import upscale

    model = load(source, dtype="fp32", device="cpu")
    result = upscale(model, recorded_result.read_input(), restore=recorded_result.RESTORE)
    recorded_result.write_record(result, model.paths[0])
    return 0
