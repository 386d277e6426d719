"""The Ray engine: Ray Data's pool of workers over machines; one actor beside the driver keeps the journal."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MoESRError, SettingError, find_reason
from .journal import Journal
from .manifest import Row
from .worker import Work, Worker, describe_death, describe_process

if TYPE_CHECKING:
    from .job import Options

#: Rows that go to a worker together, at most. A worker that dies takes none with it: the journal knows what is done.
_LARGEST_BLOCK = 256


def run_ray(work: Work, rows: Iterator[Row], *, folder: Path, options: Options, count: int) -> Iterator[dict[str, Any]]:
    """Process the rows on a cluster; yield the line of each, which is in the journal by then.

    count: about how many rows there are. Raises SettingError if Ray is missing or cannot be reached.
    """
    try:
        import pyarrow
        import ray
        from ray.exceptions import RayError
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
    except ImportError as error:
        raise SettingError(
            f"--engine ray: {error.name} cannot be imported; run: pip install 'moesr[cluster]' "
            "(Ray has no packages for some Pythons and systems; --engine local with --shard needs none)"
        ) from error
    started = _connect(ray, options)
    fewest, most = options.pool
    try:
        block = max(1, min(_LARGEST_BLOCK, count // (8 * most)))
        lines = (json.dumps(asdict(row)) for row in rows)
        blocks: Any = [ray.put(pyarrow.table({"row": part})) for part in iter(lambda: list(islice(lines, block)), [])]
        if not blocks:
            return
        here: Any = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        keeper = ray.remote(num_cpus=0, scheduling_strategy=here)(_JournalKeeper).remote(folder, options)
        pool = ray.data.ActorPoolStrategy(min_size=fewest, max_size=most, max_tasks_in_flight_per_actor=2)
        results = ray.data.from_arrow_refs(blocks).map_batches(
            _RayWorker, fn_constructor_args=(work, keeper, options.attempts), compute=pool, batch_size=block,
            batch_format="pyarrow", num_cpus=options.cpus_per_worker, num_gpus=options.gpus_per_worker or None,
        )  # fmt: skip
        for found in results.iter_rows():
            line = json.loads(found["row"])
            if line["status"] != "pending" or line["error"]:  # else not tried, as another one has said why
                yield line
    except MoESRError:
        raise
    except RayError as error:
        words = str(error).strip().splitlines()[-1][:300]
        raise SettingError(f"Ray ended the job ({words}); finished files are kept, --resume goes on") from error
    finally:
        if started:
            ray.shutdown()


def _connect(ray: Any, options: Options) -> bool:
    """Join the cluster, or start one that only this machine reaches. False if the caller had done that."""
    if ray.is_initialized():
        return False
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if options.address:
            ray.init(address=options.address, **quiet)
        else:
            cpus = options.cpus_per_worker * options.pool[1]
            ray.init(num_cpus=cpus, include_dashboard=False, _node_ip_address="127.0.0.1", **quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where, words = options.address or "this machine", find_reason(error)[:300]
        raise SettingError(f"Ray at {where}: {words}; check --address") from error
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return True


class _JournalKeeper:
    """The one writer of the journal, on the driver's machine."""

    def __init__(self, folder: Path, options: Options) -> None:
        self._journal = Journal(folder, options.cut)
        self._attempts, self._stopped = options.attempts, False

    def start(self, row_id: str, worker: str) -> tuple[int, dict[str, Any]]:
        """The number of this attempt, and for a picture that is finished (0) its state. -1: do nothing more."""
        if self._stopped:
            return -1, {}
        attempt = self._journal.start(row_id, worker=worker, limit=self._attempts)
        state = asdict(self._journal.find(row_id)) if not attempt else {}
        return attempt, state

    def finish(self, line: dict[str, Any]) -> None:
        self._journal.finish(line)
        self._stopped |= line["status"] == "pending"


class _RayWorker:
    """A worker as Ray Data calls it: a block of rows in, a block of lines out."""

    def __init__(self, work: Work, keeper: Any, attempts: int) -> None:
        import ray

        self._ray, self._keeper, self._attempts = ray, keeper, attempts
        self._worker: Worker | None = None
        self._error = ""
        try:
            device = {"device": "auto"} if ray.get_gpu_ids() else {}  # the one that Ray has chosen
            self._worker = Worker(replace(work, loading={**work.loading, **device}))
        except MoESRError as error:
            self._error = str(error)

    def __call__(self, batch: Any) -> Any:
        import pyarrow

        lines = [self._process_row(Row(**json.loads(text))) for text in batch.column("row").to_pylist()]
        return pyarrow.table({"row": [json.dumps(line) for line in lines]})

    def _process_row(self, row: Row) -> dict[str, Any]:
        if self._worker is None:
            return row.describe("pending", self._error)
        attempt, state = self._ray.get(self._keeper.start.remote(row.id, describe_process()))
        if attempt < 0:
            return row.describe("pending")
        if attempt == 0:
            return row.describe("done") | state
        if attempt > self._attempts:
            line = describe_death(row, self._attempts, "or its machine was taken away")
        else:
            line = self._worker.process(row, attempt=attempt)
        self._ray.get(self._keeper.finish.remote(line))
        return line
