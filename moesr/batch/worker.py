"""A worker: one model, one picture after the other, from its address to a finished file. The same for every engine."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

from ..errors import ImageError, MoESRError, SettingError, find_reason
from .manifest import Row
from .storage import PlaceError, exists, read_bytes, write_new


@dataclass(frozen=True)
class Work:
    """What all pictures of a job share. It travels to workers as JSON."""

    #: A file or folder with weights, which every worker can open; and what its content must be.
    model: str
    model_hash: str
    #: Settings of `moesr.upscale`; `seed` is added to that of each row.
    settings: dict[str, Any]
    #: Of `moesr.load`: dtype, device, residency, scale, timesteps.
    loading: dict[str, Any] = field(default_factory=dict)
    #: Quality of JPEG and WebP; None is the default.
    quality: int | None = None
    allow_truncated: bool = False
    metadata: bool = True
    #: Threads per worker on a CPU. Fixed, as sums over more threads may end in other bits.
    threads: int = 1
    #: Of everything above that makes a difference to results.
    settings_hash: str = ""


class Worker:
    """A loaded model. Raises MoESRError for what is wrong with all pictures: model, settings."""

    def __init__(self, work: Work) -> None:
        import torch

        from ..library import compute_fingerprint, find
        from ..model import load
        from ..settings_record import describe_settings

        torch.set_num_threads(work.threads)
        path = find(work.model)
        if compute_fingerprint(path) != work.model_hash:
            raise SettingError(f"{path}: not the model that the job was started with; give all machines one file")
        self._work = work
        self._model = load(str(path), **work.loading)
        self._record = describe_settings(self._model.config, path, work.settings)

    def process(self, row: Row, *, attempt: int = 1) -> dict[str, Any]:
        """Upscale a picture and write it; the journal's line. Raises nothing.

        status: "done", "failed", or "pending" with an error where no picture can be written any more. attempt: from
        the second on, the result of an attempt before this may be there, and counts if it is equal.
        """
        started = time.perf_counter()
        line = row.describe("done")
        try:
            if attempt == 1 and exists(row.target):
                raise ImageError(f"{row.target}: is there already, and not of this job; move it, or give another OUT")
            data, found = self.upscale(row)
            line.update(found)
            write_new(row.target, data)
        except PlaceError as error:
            line.update(status="pending", error=str(error))
        except MoESRError as error:
            line.update(status="failed", error=str(error))
        except Exception as error:  # one broken file must not take the others with it
            logging.getLogger(__name__).info("%s", row.label, exc_info=True)
            line.update(status="failed", error=f"{row.label}: {type(error).__name__}: {find_reason(error)}; report it")
        seconds, now, work = round(time.perf_counter() - started, 3), round(time.time(), 3), self._work
        same = {"model_hash": work.model_hash, "settings_hash": work.settings_hash, "worker": describe_process()}
        return {**line, "seconds": seconds, "time": now, "attempts": attempt, **same}

    def upscale(self, row: Row) -> tuple[bytes, dict[str, Any]]:
        """The bytes of the result, and what the journal says of it. Raises MoESRError."""
        from ..images.files import WRITE_SUFFIXES, read_image, write_image
        from ..images.write import check_size
        from ..pipeline import upscale
        from ..settings import result_size
        from ..settings_record import digest_bytes, to_texts

        data = read_bytes(row.source, row.offset, row.size)
        picture = read_image(data, name=row.label, allow_truncated=self._work.allow_truncated)
        notes = list(picture.notes)
        kind = WRITE_SUFFIXES[PurePosixPath(row.target).suffix.lower()]
        height, width = picture.rgb.shape[:2]
        check_size(row.target, kind, *result_size(height, width, self._record["scale"]))
        settings = {**self._work.settings, "seed": (self._work.settings.get("seed", 0) + row.seed) % 2**64}
        result = upscale(
            self._model, picture, **settings, callback=lambda event: notes.append(event.note) if event.note else None
        )
        record = {**self._record, "seed": settings["seed"], "input_hash": digest_bytes(data)}
        buffer = io.BytesIO()
        result = replace(result, metadata=result.metadata.with_text(to_texts(record)))
        notes += write_image(buffer, result, format=kind, quality=self._work.quality, metadata=self._work.metadata)
        encoded, size = buffer.getvalue(), result.rgb.shape
        shrunk = [found[1] for found in (re.search(r"tiles of (\d+) ", note) for note in notes) if found]
        return encoded, {
            "notes": notes,
            "tile": int(shrunk[-1]) if shrunk else settings.get("tile", "auto"),
            "width": width, "height": height, "result_width": size[1], "result_height": size[0],
            "bytes": len(encoded), "hash": digest_bytes(encoded),
        }  # fmt: skip


def describe_process() -> str:
    """Machine and number of this process."""
    import socket

    return f"{socket.gethostname()}:{os.getpid()}"


def describe_death(row: Row, attempts: int, sign: str) -> dict[str, Any]:
    """The journal's line for a picture whose worker died at every attempt."""
    error = f"{row.label}: its worker died {attempts} times ({sign}); try a smaller --tile"
    return {**row.describe("failed", error), "attempts": attempts}


def main() -> None:
    """A process of the local engine: JSON lines in (the job, then rows), JSON lines out, until its input ends."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's, which ends this process
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer

    def answer(line: dict[str, Any]) -> None:
        out.write(json.dumps(line) + "\n")
        out.flush()

    first = sys.stdin.readline()
    try:
        worker = Worker(Work(**json.loads(first)))
    except MoESRError as error:
        return answer({"error": str(error)})
    answer({"ready": True})
    for line in sys.stdin:
        fields = json.loads(line)
        answer(worker.process(Row(**fields["row"]), attempt=fields["attempt"]))
