"""`batch`: thousands of pictures as one job that resumes, on this machine or on many."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from .. import result_files
from ..batch.job import ENGINES, ON_ERROR, Estimate, Options, Report, batch, estimate
from ..settings import RUN_SETTINGS
from .common import Bar, add_model_options, add_settings, fail, positive, say, verbose


def add(commands: Any) -> None:
    """Add the command to the parser's."""
    parser = commands.add_parser("batch", help="make thousands of pictures larger, on one machine or many")
    parser.add_argument(
        "inputs", nargs="+", metavar="IN",
        help="folders (with all below), patterns, lists (.txt), columns (.parquet), archives (.tar); also s3://, gs://",
    )  # fmt: skip
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="a folder, or an address such as s3://b/x")
    parser.add_argument("--engine", choices=ENGINES, default="local", help="processes of this machine, or Ray Data")
    parser.add_argument("--workers", metavar="N", help="how many work at a time; MIN:MAX with Ray")
    parser.add_argument("--shard", default="0/1", metavar="i/n", help="every n-th picture from i on; i is 0 to n - 1")
    parser.add_argument("--resume", action="store_true", help="go on with the job in OUT")
    parser.add_argument("--retry-failed", action="store_true", help="with --resume: also what failed before")
    parser.add_argument("--dry-run", action="store_true", help="count, measure one picture, write nothing")
    faults = parser.add_argument_group("faults")
    faults.add_argument("--on-error", choices=ON_ERROR, default="skip", help="what a failure does to the job")
    faults.add_argument("--max-errors", type=positive, metavar="N", help="end the job after so many")
    faults.add_argument("--attempts", type=positive, default=3, help="per picture whose worker dies (default: 3)")
    files = parser.add_argument_group("files")
    files.add_argument("--format", choices=result_files.FORMATS, default="png", help="of results")
    files.add_argument("--quality", type=positive, metavar="Q", help="of JPEG and WebP results, 1 to 100 (default: 95)")
    files.add_argument("--strip-metadata", action="store_false", dest="metadata", help="pixels and colours only")
    files.add_argument("--allow-truncated", action="store_true", help="read files that are cut short")
    files.add_argument("--column", default="path", help="of Parquet files (default: path)")
    files.add_argument("--job-folder", metavar="DIR", help="manifest and journal; by default OUT/.moesr-batch")
    files.add_argument("--report", metavar="FILE", help="write the journal as Parquet, sorted by source")
    ray = parser.add_argument_group("Ray, and threads")
    ray.add_argument("--address", help="of a cluster; auto for the one of this machine")
    ray.add_argument("--cpus-per-worker", type=positive, default=1, metavar="N", help="also threads (default: 1)")
    ray.add_argument("--gpus-per-worker", type=float, default=0, metavar="N", help="may be a fraction (default: 0)")
    ray.add_argument("--in-flight", type=positive, default=2, metavar="N", help="blocks that wait per worker")
    add_settings(parser, "model", *RUN_SETTINGS, "dtype", "device", "residency")
    add_model_options(parser)
    verbose(parser)
    parser.set_defaults(run=_batch)


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
