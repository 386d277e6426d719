"""A job: inputs into a manifest, an engine over what is left of it, a report at the end."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from .. import outputs
from ..errors import SettingError
from ..inputs import PassedOver
from ..settings import LOADING, SETTINGS, check_settings
from .journal import Journal, export_report, journal_name
from .local import choose_workers, run_local
from .lock import JobLock
from .manifest import Row, read_manifest, write_manifest
from .places import find_size, is_remote
from .sources import list_addresses
from .worker import Work

ENGINES = ("local", "ray")
ON_ERROR = ("skip", "fail")
#: The folder in OUT that holds manifest, journals and locks.
JOB_FOLDER = ".moesr-batch"
#: Settings of `moesr.upscale` that a job takes.
JOB_SETTINGS = (
    "scale", "fidelity", "restore", "seed", "steps", "color_fix", "wrap", "sampler", "spacing", "eta", "tile",
    "tile_batch",
)  # fmt: skip


@dataclass
class Report:
    """What became of a job, or of its shard."""

    #: Pictures of this shard; those finished now, finished in runs before, and failed in any run.
    total: int = 0
    done: int = 0
    skipped: int = 0
    #: One line per picture that failed.
    failed: list[str] = field(default_factory=list)
    #: How many of these failed in this run.
    failed_now: int = 0
    #: Why it ended early, None if it did not.
    stopped: str | None = None
    #: What lies in the inputs and is no picture, one line or none.
    passed_over: str = ""
    #: Wall time of the work, and megapixels of results made in it.
    seconds: float = 0.0
    megapixels: float = 0.0
    #: The journal's file.
    journal: Path = Path()


@dataclass(frozen=True)
class Estimate:
    """What a job would be (--dry-run)."""

    pictures: int
    #: Of all inputs, from the sizes of a sample.
    megapixels: float
    #: With one worker, and per megapixel of input, from one picture of the sample that was measured.
    seconds: float
    seconds_per_megapixel: float
    passed_over: str = ""


def batch(
    inputs: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    engine: str = "local",
    workers: int | str | None = None,
    shard: tuple[int, int] | str = (0, 1),
    resume: bool = False,
    retry_failed: bool = False,
    on_error: str = "skip",
    max_errors: int | None = None,
    attempts: int = 3,
    format: str = "png",
    quality: int | None = None,
    metadata: bool = True,
    allow_truncated: bool = False,
    column: str = "path",
    job_folder: str | os.PathLike[str] | None = None,
    report: str | os.PathLike[str] | None = None,
    address: str | None = None,
    cpus_per_worker: int = 1,
    gpus_per_worker: float = 0,
    in_flight: int = 2,
    model: str = "tiny",
    loading: Mapping[str, Any] | None = None,
    callback: Callable[[Report, Mapping[str, Any]], Any] | None = None,
    **settings: Any,
) -> Report:
    """Upscale all pictures of folders, patterns, lists, tables and archives into OUT; no finished picture is lost.

    Results do not depend on engine, workers, shards or order. A picture that fails is a line of the report.

    Args:
        engine: "local" (processes of this machine) or "ray" (Ray Data, with the extra `cluster`).
        workers: a number, or "MIN:MAX" with Ray; by default one per GPU or core, one with Ray.
        shard: (i, n) or "i/n": every n-th picture from i (0, 1, ...) on.
        resume: go on with the job in OUT; without it, such a job is an error. retry_failed: also what failed.
        on_error: "fail" ends the job at the first failure. max_errors: end it after so many.
        attempts: how often a picture is tried whose worker dies.
        format: of results: png, jpg, webp, tiff or same.
        column: of Parquet files, with paths. job_folder: for manifest and journal, by default in OUT; must be local.
        report: a Parquet file to write, the journal sorted by source.
        address: of a Ray cluster. cpus_per_worker: also threads. gpus_per_worker, in_flight: of Ray.
        loading: arguments of `moesr.load`. settings: those of `moesr.upscale`.
        callback: called with the report so far and the journal's line, after every picture.

    Raises:
        SettingError: before the work for what is wrong with the job; during it where OUT takes no more files.
    """
    cut = _read_shard(shard)
    _check_options(engine=engine, on_error=on_error, format=format, attempts=attempts, cpus=cpus_per_worker)
    fewest, most = _read_workers(workers, engine, str((loading or {}).get("device", "auto")))
    names, out = _read_names(inputs), os.fspath(output)
    work = _prepare_work(
        model, loading or {}, settings, quality=quality, metadata=metadata, allow_truncated=allow_truncated,
        threads=cpus_per_worker,
    )  # fmt: skip
    folder = _choose_job_folder(out, job_folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingError(f"{folder}: cannot be made ({error.strerror}); give another OUT or --job-folder") from error
    with closing(JobLock(folder, cut)):
        passed_over = PassedOver()
        count = _prepare_manifest(
            folder, names, out, work, format=format, column=column, shard=cut, resume=resume, passed_over=passed_over
        )
        with closing(Journal(folder, cut)) as journal:
            state = Report(
                total=len(range(cut[0], count, cut[1])), passed_over=passed_over.describe(), journal=journal.path
            )
            rows = _find_pending(folder, cut, journal, state, retry_failed)
            started = time.perf_counter()
            if engine == "ray":
                from .ray_engine import Cluster, run_ray

                cluster = Cluster(address, (fewest, most), cpus_per_worker, gpus_per_worker, in_flight)
                lines = run_ray(
                    work, rows, journal, folder=folder, shard=cut, attempts=attempts, cluster=cluster, count=state.total
                )
            else:
                lines = run_local(work, rows, journal, workers=min(most, max(1, state.total)), attempts=attempts)
            limit = 1 if on_error == "fail" else max_errors
            try:
                _collect(cast(Any, lines), state, limit, callback)
            finally:
                state.seconds = time.perf_counter() - started
        if report is not None:
            export_report(folder, Path(report))
    return state


def estimate(
    inputs: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    format: str = "png",
    column: str = "path",
    model: str = "tiny",
    loading: Mapping[str, Any] | None = None,
    cpus_per_worker: int = 1,
    **settings: Any,
) -> Estimate:
    """How many pictures and megapixels a job has, and how long one worker takes; nothing is written to OUT."""
    import random

    from PIL import Image

    from .places import open_file
    from .worker import Worker

    work = _prepare_work(model, loading or {}, settings, threads=cpus_per_worker)
    passed_over = PassedOver()
    with tempfile.TemporaryDirectory(prefix="moesr-") as folder:
        path = Path(folder, "manifest.jsonl")
        found = list_addresses(_read_names(inputs), os.fspath(output), passed_over, column=column)
        count = write_manifest(path, found, os.fspath(output), outputs.FORMATS[format])
        chosen = set(random.Random(0).sample(range(count), min(count, 100)))
        sample = [row for index, row in enumerate(read_manifest(path)) if index in chosen]
    sizes: list[tuple[float, Row]] = []
    for row in sample:
        try:
            with open_file(row.source) as file:
                file.seek(max(0, row.offset))
                with Image.open(file) as image:
                    sizes.append((image.width * image.height / 1e6, row))
        except Exception:  # damaged ones are named when the job reads them
            continue
    if not sizes:
        return Estimate(count, 0.0, 0.0, 0.0, passed_over.describe())
    sizes.sort(key=lambda item: item[0])
    megapixels, middle = sizes[len(sizes) // 2]
    worker = Worker(work)
    worker.upscale(middle)  # the first of a process is slower
    started = time.perf_counter()
    worker.upscale(middle)
    per_megapixel = (time.perf_counter() - started) / megapixels
    total = sum(size for size, _ in sizes) / len(sizes) * count
    return Estimate(count, total, total * per_megapixel, per_megapixel, passed_over.describe())


def _collect(
    lines: Any, state: Report, limit: int | None, callback: Callable[[Report, Mapping[str, Any]], Any] | None
) -> None:
    """Count the lines of an engine and end it early where that is asked for."""
    with closing(lines):
        for line in lines:
            if line["status"] == "pending":  # OUT takes no more files
                raise SettingError(line["error"])
            if line["status"] == "failed":
                state.failed.append(line["error"])
                state.failed_now += 1
            else:
                state.done += 1
                state.megapixels += line.get("result_width", 0) * line.get("result_height", 0) / 1e6
            if callback is not None:
                callback(state, line)
            if limit is not None and state.failed_now >= limit:
                state.stopped = f"ended after {state.failed_now} failed; --resume goes on"
                return


def _find_pending(
    folder: Path, shard: tuple[int, int], journal: Journal, state: Report, retry_failed: bool
) -> Iterator[Row]:
    """The rows that are left to do; the others are counted."""
    for row in read_manifest(folder / "manifest.jsonl", shard):
        known = journal.find(row.id)
        if known.status == "done" and find_size(row.target) == known.bytes:
            state.skipped += 1
        elif known.status == "failed" and not retry_failed:
            state.failed.append(journal.find_error(row.id))
        else:
            if known.status != "pending":
                journal.finish({"id": row.id, "status": "pending"})
            yield row


def _prepare_manifest(
    folder: Path, names: list[str], out: str, work: Work, *, format: str, column: str, shard: tuple[int, int],
    resume: bool, passed_over: PassedOver,
) -> int:  # fmt: skip
    """Write the manifest, or take that of another shard of the same inputs; its number of rows.

    Raises SettingError if the folder has another job, or this one without `resume`.
    """
    described, manifest = folder / "job.json", folder / "manifest.jsonl"
    own = {"inputs": names, "format": format, "column": column, **asdict(work)}
    before = _read_json(described)
    if before:
        for name in ("format", "model_hash", "settings", "quality", "metadata", "threads", "settings_hash"):
            if before.get(name) != own[name]:
                what = name.replace("_", " ")
                raise SettingError(f"{out}: holds a job of other settings ({what}); take its settings, or another OUT")
        if not resume and (folder / journal_name(shard)).exists():
            raise SettingError(f"{out}: holds this job already; --resume goes on with it, or give another OUT")
    if shard[1] > 1 and before and before.get("inputs") == names and manifest.exists():
        return int(before["count"])
    found = list_addresses(names, out, passed_over, column=column)
    count = write_manifest(manifest, found, out, outputs.FORMATS[format])
    if not count:
        raise SettingError(f"{', '.join(names)[:200]}: no pictures in there")
    with outputs.open_new(described, replaces=True) as file:
        file.write(json.dumps({**own, "count": count}).encode())
    return count


def _prepare_work(
    model: str, loading: Mapping[str, Any], settings: Mapping[str, Any], *, quality: int | None = None,
    metadata: bool = True, allow_truncated: bool = False, threads: int = 1,
) -> Work:  # fmt: skip
    """What workers are given. Raises SettingError and CheckpointError for what no worker could do."""
    from ..library import compute_fingerprint, find

    unknown = [name for name in settings if name not in JOB_SETTINGS]
    if unknown:
        raise SettingError(f"{unknown[0]}: no setting of a batch job; choose from {', '.join(JOB_SETTINGS)}")
    check_settings(**settings)
    if quality is not None and not 1 <= quality <= 100:
        raise SettingError(f"quality {quality}: give 1 to 100")
    path = find(model)
    work = Work(
        model=os.path.abspath(model) if os.path.exists(model) else model,
        model_hash=compute_fingerprint(path),
        settings={**{name: SETTINGS[name].default for name in JOB_SETTINGS}, **settings},
        loading={**{name: LOADING[name].default for name in ("dtype", "device", "residency")}, **loading},
        quality=quality,
        allow_truncated=allow_truncated,
        metadata=metadata,
        threads=threads,
    )
    counts = {**asdict(work), "model": "", "loading": {**work.loading, "device": "", "residency": ""}}
    digest = hashlib.blake2b(json.dumps(counts, sort_keys=True).encode(), digest_size=8).hexdigest()
    return replace(work, settings_hash=digest)


def _check_options(*, engine: str, on_error: str, format: str, attempts: int, cpus: int) -> None:
    for name, value, choices in (
        ("engine", engine, ENGINES), ("on error", on_error, ON_ERROR), ("format", format, tuple(outputs.FORMATS)),
    ):  # fmt: skip
        if value not in choices:
            raise SettingError(f"{name} {value}: choose one of {', '.join(choices)}")
    if attempts < 1 or cpus < 1:
        raise SettingError(f"attempts {attempts}, CPUs per worker {cpus}: give whole numbers above 0")


def _read_workers(workers: int | str | None, engine: str, device: str) -> tuple[int, int]:
    """Fewest and most workers."""
    if workers is None:
        most = choose_workers(device) if engine == "local" else 1
        return most, most
    fewest, _, most = str(workers).partition(":")
    most = most or fewest
    if not (fewest.isdecimal() and most.isdecimal() and 1 <= int(fewest) <= int(most)):
        raise SettingError(f"workers {workers}: give a number above 0, or MIN:MAX with --engine ray")
    if engine == "local" and fewest != most:
        raise SettingError(f"workers {workers}: --engine local has a fixed number; give {most}")
    return int(fewest), int(most)


def _read_shard(shard: tuple[int, int] | str) -> tuple[int, int]:
    index, _, count = shard.partition("/") if isinstance(shard, str) else (str(shard[0]), "/", str(shard[1]))
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise SettingError(f"shard {index}/{count}: give i/n with i from 0 to n - 1, such as 0/4")
    return int(index), int(count)


def _read_names(inputs: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[str]:
    several = [inputs] if isinstance(inputs, (str, os.PathLike)) else inputs
    return [os.fspath(name) if is_remote(os.fspath(name)) else os.path.abspath(name) for name in several]


def _choose_job_folder(out: str, chosen: str | os.PathLike[str] | None) -> Path:
    """Where manifest and journal lie. Object stores cannot append to a file: for these it is a folder beside us."""
    if chosen is not None:
        return Path(chosen)
    if not is_remote(out):
        return Path(out) / JOB_FOLDER
    return Path(f"{JOB_FOLDER}-{hashlib.blake2b(out.rstrip('/').encode(), digest_size=4).hexdigest()}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
