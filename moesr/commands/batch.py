"""`batch`: thousands of pictures as one job that resumes, on this machine or on many."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ..batch.job import Estimate, Options, Report, batch, estimate
from ..settings import RUN_SETTINGS
from .common import Bar, add_model_options, add_settings, fail, say


def add(commands: Any) -> None:
    """Add the command to the parser's."""
    parser = commands.add_parser("batch", help="make thousands of pictures larger, on one machine or many")
    parser.add_argument(
        "inputs", nargs="+", metavar="IN",
        help="folders (with all below), patterns, lists (.txt), columns (.parquet), archives (.tar); also s3://, gs://",
    )  # fmt: skip
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="a folder, or an address such as s3://b/x")
    parser.add_argument("--dry-run", action="store_true", help="count, measure one picture, write nothing")
    _add_options(parser)
    add_settings(parser, "model", *RUN_SETTINGS, "dtype", "device", "residency")
    add_model_options(parser)
    parser.set_defaults(run=_batch)


def _add_options(parser: argparse.ArgumentParser) -> None:
    """An option for each field of Options that is no setting, in the group that the field names."""
    groups: dict[str, Any] = {}
    for field in fields(Options):
        if not field.metadata:
            continue
        words = dict(field.metadata)
        title = words.pop("group")
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        name = words.pop("flag", f"--{field.name.replace('_', '-')}")
        if isinstance(field.default, bool):
            words["action"] = f"store_{not field.default}".lower()
        else:
            words |= {"default": field.default, "type": words.get("type", type(field.default or ""))}
            words["help"] += "" if field.default is None else f" (default: {field.default})"
        groups[title].add_argument(name, dest=field.name, **words)


def _batch(options: argparse.Namespace) -> int:
    names = [*(option.name for option in fields(Options)), *RUN_SETTINGS]
    chosen = {name: getattr(options, name) for name in names}
    if options.dry_run:
        return _print_estimate(estimate(options.inputs, options.output, **chosen))
    with Bar(unit="picture") as bar:

        def show(report: Report, line: Mapping[str, Any]) -> None:
            failed = len(report.failed)
            bar.move(report.done + report.skipped + failed, report.total, text=f"{failed} failed" if failed else "")
            for note in line.get("notes") or ():
                if "memory" in note:
                    bar.note(f"{line['source']}: {note}")

        report = batch(options.inputs, options.output, callback=show, **chosen)
    if report.passed_over:
        say(report.passed_over)
    rate = f", {report.done / report.seconds:.2f} pictures per second" if report.done else ""
    there = f", {report.skipped} finished before" if report.skipped else ""
    say(f"{report.done} done{there}, {len(report.failed)} failed{rate}; journal: {report.journal}")
    for line in report.failed:
        fail(line)
    if report.stopped:
        fail(f"{options.output}: {report.stopped}")
    return 1 if report.failed or report.stopped else 0


def _print_estimate(found: Estimate) -> int:
    if found.passed_over:
        say(found.passed_over)
    hours = f"{found.seconds / 3600:.2f} hours with one worker" if found.seconds else "no sample could be read"
    print(
        f"{found.pictures} pictures, {found.megapixels:.1f} megapixels, {hours} "
        f"({found.seconds_per_megapixel:.2f} s per megapixel of input, from one picture measured here)"
    )
    return 0
