"""A job: inputs into a manifest, an engine over what is left of it, a report at the end."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any, Union, cast

from PIL import Image

from .. import result_files
from ..atomic_files import open_new
from ..errors import SettingError, explain
from ..input_files import PassedOver
from ..settings import RUN_SETTINGS, SETTINGS, check_settings
from .journal import Journal, export_report, journal_name
from .local_engine import choose_workers, run_local
from .lock import JobLock
from .manifest import Row, read_manifest, write_manifest
from .sources import list_addresses
from .storage import find_size, is_remote, open_file
from .worker import Work, Worker

ENGINES = ("local", "ray")
ON_ERROR = ("skip", "fail")
#: The folder in OUT that holds manifest, journals and locks.
JOB_FOLDER = ".moesr-batch"
MANIFEST = "manifest.jsonl"
#: Options that are arguments of `moesr.load`.
LOADING = ("dtype", "device", "residency", "model_scale", "model_timesteps")


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
    #: Wall time of the work.
    seconds: float = 0.0
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


def _option(default: Any, sentence: str, group: str = "job", **argument: Any) -> Any:
    """A field of Options with what `batch --help` says of it. argument: more for argparse."""
    return field(default=default, metadata={"help": sentence, "group": group, **argument})


@dataclass(frozen=True)
class Options:
    """How a job is done: the options of the command. Raises SettingError for values that do not work."""

    engine: str = _option("local", "processes of this machine, or Ray Data (extra `cluster`)", choices=ENGINES)
    workers: int | str | None = _option(
        None, "how many work at a time (default: one per GPU or core); MIN:MAX with Ray"
    )
    shard: str = _option("0/1", "every n-th picture from i on; i is 0 to n - 1", metavar="i/n")
    resume: bool = _option(False, "go on with the job in OUT, which is an error otherwise")
    retry_failed: bool = _option(False, "with --resume: also what failed before")
    on_error: str = _option("skip", "what a failure does to the job: fail ends it", "faults", choices=ON_ERROR)
    max_errors: int | None = _option(None, "end the job after so many failures", "faults", type=int)
    attempts: int = _option(3, "how often a picture is tried whose worker dies", "faults")
    format: str = _option("png", "of results; same is that of the input", "files", choices=tuple(result_files.FORMATS))
    quality: int | None = _option(None, "of JPEG and WebP results, 1 to 100 (default: 95)", "files", type=int)
    metadata: bool = _option(True, "write pixels and colours only", "files", flag="--strip-metadata")
    allow_truncated: bool = _option(False, "read files that are cut short", "files")
    column: str = _option("path", "of Parquet files, with paths", "files")
    job_folder: str | None = _option(None, "local folder for manifest and journal (default: OUT/.moesr-batch)", "files")
    report: str | None = _option(None, "Parquet file to write: the journal, sorted by source", "files")
    address: str | None = _option(None, "of a Ray cluster; auto: that of this machine (default: starts one)", "Ray")
    cpus_per_worker: int = _option(1, "also its threads on a CPU, without Ray too", "Ray")
    gpus_per_worker: float = _option(0.0, "may be a fraction", "Ray")
    #: Arguments of `moesr.load`.
    model: str = "tiny"
    dtype: str = "auto"
    device: str = "auto"
    residency: str = "auto"
    model_scale: int | None = None
    model_timesteps: int | None = None

    def __post_init__(self) -> None:
        for name in ("engine", "on_error", "format", "max_errors", "attempts", "cpus_per_worker"):
            value, choices = getattr(self, name), type(self).__dataclass_fields__[name].metadata.get("choices")
            if choices and value not in choices:
                raise SettingError(f"{name} {value}: choose one of {', '.join(choices)}")
            if not choices and value is not None and value < 1:
                raise SettingError(f"{name} {value}: give a whole number above 0")
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise SettingError(f"quality {self.quality}: give 1 to 100")
        _ = self.cut, self.pool

    @property
    def cut(self) -> tuple[int, int]:
        """Number of the shard, and of how many."""
        index, _, count = self.shard.partition("/")
        if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
            raise SettingError(f"shard {self.shard}: give i/n with i from 0 to n - 1, such as 0/4")
        return int(index), int(count)

    @property
    def pool(self) -> tuple[int, int]:
        """Fewest and most workers; 0 for as many as the machine has places for."""
        default = 0 if self.engine == "local" else 1
        fewest, _, most = str(default if self.workers is None else self.workers).partition(":")
        most = most or fewest
        if not (fewest.isdecimal() and most.isdecimal() and int(fewest) <= int(most)) or self.workers in (0, "0"):
            raise SettingError(f"workers {self.workers}: give a number above 0, or MIN:MAX with the engine ray")
        if self.engine == "local" and fewest != most:
            raise SettingError(f"workers {self.workers}: the engine local has a fixed number; give {most}")
        return int(fewest), int(most)


Inputs = Union[str, "os.PathLike[str]", Iterable[Union[str, "os.PathLike[str]"]]]
Callback = Callable[[Report, Mapping[str, Any]], Any]


def batch(
    inputs: Inputs, output: str | os.PathLike[str], *, callback: Callback | None = None, **options: Any
) -> Report:
    """Upscale all pictures of folders, patterns, lists, tables and archives into OUT; no finished picture is lost.

    Results do not depend on engine, workers, shards or order. A picture that fails is a line of the report. options:
    fields of `Options`, and settings of `moesr.upscale`. callback: called with the report so far and the journal's line
    after every picture. Raises SettingError: before the work for what is wrong with the job, during it where OUT takes
    no more files.
    """
    chosen, work = _prepare_work(options)
    names, out = _read_names(inputs), os.fspath(output)
    folder = _choose_job_folder(out, chosen.job_folder)
    with explain(SettingError, f"{folder}: cannot be made", "give another OUT or job folder"):
        folder.mkdir(parents=True, exist_ok=True)
    with closing(JobLock(folder, chosen.cut)):
        passed_over = PassedOver()
        count = _prepare_manifest(folder, names, out, work, chosen, passed_over)
        with closing(Journal(folder, chosen.cut)) as journal:
            state = Report(total=len(range(chosen.cut[0], count, chosen.cut[1])), journal=journal.path)
            state.passed_over = passed_over.describe()
            rows = _find_pending(folder, chosen, journal, state)
            started = time.perf_counter()
            if chosen.engine == "ray":
                from .ray_engine import run_ray

                lines = run_ray(work, rows, folder=folder, options=chosen, count=state.total)
            else:
                workers = min(chosen.pool[1] or choose_workers(chosen.device), max(1, state.total))
                lines = run_local(work, rows, journal, workers=workers, attempts=chosen.attempts)
            try:
                _collect(cast(Any, lines), state, 1 if chosen.on_error == "fail" else chosen.max_errors, callback)
            finally:
                state.seconds = time.perf_counter() - started
        if chosen.report is not None:
            export_report(folder, Path(chosen.report))
    return state


def estimate(inputs: Inputs, output: str | os.PathLike[str], **options: Any) -> Estimate:
    """How many pictures and megapixels a job has, and how long one worker takes; nothing is written to OUT.

    options: as of `batch`.
    """
    chosen, work = _prepare_work(options)
    passed_over, out = PassedOver(), os.fspath(output)
    with tempfile.TemporaryDirectory(prefix="moesr-") as folder:
        path = Path(folder, "manifest.jsonl")
        found = list_addresses(_read_names(inputs), out, passed_over, column=chosen.column)
        count = write_manifest(path, found, out, result_files.FORMATS[chosen.format])
        sample = list(islice(read_manifest(path, (0, max(1, count // 100))), 100))
    sizes: list[tuple[float, Row]] = []
    for row in sample:
        with suppress(Exception), open_file(row.source) as file:  # damaged ones are named when the job reads them
            file.seek(max(0, row.offset))
            with Image.open(file) as image:
                sizes.append((image.width * image.height / 1e6, row))
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


def _collect(lines: Any, state: Report, limit: int | None, callback: Callback | None) -> None:
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
            if callback is not None:
                callback(state, line)
            if limit is not None and state.failed_now >= limit:
                state.stopped = f"ended after {state.failed_now} failed; --resume goes on"
                return


def _find_pending(folder: Path, options: Options, journal: Journal, state: Report) -> Iterator[Row]:
    """The rows that are left to do; the others are counted."""
    for row in read_manifest(folder / MANIFEST, options.cut):
        known = journal.find(row.id)
        if known.status == "done" and find_size(row.target) == known.bytes:
            state.skipped += 1
        elif known.status == "failed" and not options.retry_failed:
            state.failed.append(known.error)
        else:
            if known.status != "pending":
                journal.finish({"id": row.id, "status": "pending"})
            yield row


def _prepare_manifest(
    folder: Path, names: list[str], out: str, work: Work, options: Options, passed_over: PassedOver
) -> int:
    """Write the manifest, or take that of another shard of the same inputs; its number of rows.

    Raises SettingError if the folder has another job, or this one without `resume`.
    """
    own = {"inputs": names, "column": options.column, "format": options.format, **asdict(work)}
    before: dict[str, Any] = {}
    with suppress(OSError, ValueError, TypeError):
        before = dict(json.loads((folder / "job.json").read_bytes()))
    if before:
        for name in ("format", "model_hash", "settings", "quality", "metadata", "threads", "settings_hash"):
            if before.get(name) != own[name]:
                what = name.replace("_", " ")
                raise SettingError(f"{out}: holds a job of other settings ({what}); take its settings, or another OUT")
        if not options.resume and (folder / journal_name(options.cut)).exists():
            raise SettingError(f"{out}: holds this job already; --resume goes on with it, or give another OUT")
        if options.cut[1] > 1 and before["inputs"] == names and (folder / MANIFEST).exists():
            return int(before["count"])
    found = list_addresses(names, out, passed_over, column=options.column)
    count = write_manifest(folder / MANIFEST, found, out, result_files.FORMATS[options.format])
    if not count:
        raise SettingError(f"{', '.join(names)[:200]}: no pictures in there")
    with open_new(folder / "job.json", replaces=True) as file:
        file.write(json.dumps({**own, "count": count}).encode())
    return count


def _prepare_work(options: Mapping[str, Any]) -> tuple[Options, Work]:
    """Options, and what workers are given. Raises SettingError and CheckpointError for what no worker could do."""
    from ..library import compute_fingerprint, find

    names = {option.name for option in fields(Options)}
    settings = {name: value for name, value in options.items() if name not in names}
    for name in settings:
        if name not in RUN_SETTINGS:
            raise SettingError(f"{name}: no option of a batch job; choose from {', '.join((*names, *RUN_SETTINGS))}")
    check_settings(**settings)
    chosen = Options(**{name: value for name, value in options.items() if name in names})
    work = Work(
        model=os.path.abspath(chosen.model) if os.path.exists(chosen.model) else chosen.model,
        model_hash=compute_fingerprint(find(chosen.model)),
        settings={**{name: SETTINGS[name].default for name in RUN_SETTINGS}, **settings},
        loading={name.replace("model_", ""): getattr(chosen, name) for name in LOADING},
        threads=chosen.cpus_per_worker,
        **{name: getattr(chosen, name) for name in ("quality", "allow_truncated", "metadata")},
    )
    counts = {**asdict(work), "model": "", "loading": {**work.loading, "device": "", "residency": ""}}
    digest = hashlib.blake2b(json.dumps(counts, sort_keys=True).encode(), digest_size=8).hexdigest()
    return chosen, replace(work, settings_hash=digest)


def _read_names(inputs: Inputs) -> list[str]:
    several = [inputs] if isinstance(inputs, (str, os.PathLike)) else inputs
    return [os.fspath(name) if is_remote(os.fspath(name)) else os.path.abspath(name) for name in several]


def _choose_job_folder(out: str, chosen: str | None) -> Path:
    """Where manifest and journal lie. Object stores cannot append to a file: for these it is a folder beside us."""
    if chosen is not None or not is_remote(out):
        return Path(chosen or Path(out, JOB_FOLDER))
    return Path(f"{JOB_FOLDER}-{hashlib.blake2b(out.rstrip('/').encode(), digest_size=4).hexdigest()}")
