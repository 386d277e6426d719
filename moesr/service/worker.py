"""One device at work: it keeps a model loaded, and can be stopped between any two layers."""

from __future__ import annotations

import gc
import io
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from PIL import Image

from ..errors import ImageError, MoESRError, SettingError
from ..images.files import Picture, to_pil, write_image
from ..model import SRModel
from ..pipeline import upscale
from ..progress import Event
from .adapter import Adapter
from .intake import open_picture
from .job import Job, Progress, Result, Stopped
from .limits import Limits
from .pace import Pace, Run
from .results import new_folder, pack, result_path
from .settings import as_text
from .stopping import StoppableHost, stoppable

log = logging.getLogger(__name__)

#: Side of the live preview, and seconds between two of them.
PREVIEW, PREVIEW_SECONDS = 640, 0.7
#: Largest picture that browsers are given as it is, in pixels.
VIEW_PIXELS = 40_000_000


class Worker:
    """Runs jobs on one device, in one thread. The model of the last job stays loaded for the next."""

    def __init__(self, adapter: Adapter, limits: Limits, results: Path, device: str, dtype: str) -> None:
        self._adapter, self._limits, self._results = adapter, limits, results
        self._device, self._dtype = device, dtype
        self._host = StoppableHost(adapter.memory())
        self._pace = Pace()
        self._loaded: tuple[str, str, SRModel] | None = None

    def run(self, job: Job) -> None:
        """Do the job and end it. What is wrong with one picture is noted, and the others are still done.

        Raises Stopped if it has to end early, MoESRError for what concerns all pictures. Finished results are kept.
        """
        with self._adapter.turn(job), stoppable(self._host, lambda: self._check(job)):
            self._check(job)
            job.start(self._limits.seconds)
            model, texts = self._model(job)
            folder, taken = new_folder(self._results), set[str]()
            try:
                for number in range(1, len(job.uploads) + 1):
                    self._one(job, model, texts, number, folder, taken)
            finally:
                if len(job.results) > 1:
                    job.archive = pack([result.path for result in job.results], folder / "moesr.zip")
                gc.collect()
        if job.results or not job.failures:
            job.end("done")
        else:
            job.end("failed", job.failures[0] if len(job.failures) == 1 else "none of the pictures could be done")

    def close(self) -> None:
        """Let go of the model."""
        if self._loaded is not None:
            self._loaded[2].close()
        self._loaded = None

    def _model(self, job: Job) -> tuple[SRModel, dict[str, str]]:
        """The job's model, and the texts that say so in its results."""
        name = job.settings.model
        digest = self._adapter.models.digest(name)
        if self._loaded is None or self._loaded[:2] != (name, digest):
            job.show(replace(job.progress, phase="load"))
            self.close()
            path = self._adapter.models.path(name)
            self._loaded = (name, digest, self._adapter.load(path, self._dtype, self._device, self._host))
        model = self._loaded[2]
        scale = float(model.scale) if job.settings.scale is None else job.settings.scale
        steps = model.config.steps if job.settings.steps is None else job.settings.steps
        return model, as_text(replace(job.settings, scale=scale, steps=steps), digest)

    def _one(self, job: Job, model: SRModel, texts: dict[str, str], number: int, folder: Path, taken: set[str]) -> None:
        upload, count = job.uploads[number - 1], len(job.uploads)
        start = Progress("encode", number, count, upload.name, share=(number - 1) / count)
        job.show(start)
        try:
            job.check()
            picture = open_picture(upload, self._limits)
            height, width = picture.rgb.shape[:2]
            scale = model.scale if job.settings.scale is None else job.settings.scale
            self._limits.check_output(upload.name, width, height, scale)
            steps = model.config.steps if job.settings.steps is None else job.settings.steps
            run = self._pace.run(job.settings.model, width * height * scale**2, steps)
            watch = _Watch(job, start, run, lambda: self._adapter.show(job))
            result = upscale(model, picture, **job.settings.arguments(), callback=watch.tell)
            watch.saving()
            path = result_path(folder, upload.name, scale, taken)
            job.results.append(_save(upload.path, picture, result, folder, path, texts))
            run.finished()
        except Stopped:
            raise
        except (SettingError, ImageError) as error:
            if isinstance(error, SettingError) and count > 1:
                raise  # wrong for all pictures alike
            job.failures.append(_about(upload.name, error))
        except MoESRError as error:
            job.failures.append(_about(upload.name, error))
        except Exception as error:  # one broken picture must not take the others with it
            log.exception("a picture failed")
            job.failures.append(f"{upload.name}: something went wrong ({type(error).__name__}); the log says more")

    def _check(self, job: Job) -> None:
        job.check()
        self._adapter.check()


class _Watch:
    """Turns the pipeline's events into the progress of a job."""

    def __init__(self, job: Job, start: Progress, run: Run, shown: Callable[[], None]) -> None:
        self._job, self._start, self._run, self._shown = job, start, run, shown
        self._preview: bytes | None = None
        self._drawn = float("-inf")

    def tell(self, event: Event) -> None:
        """The callback of `upscale`."""
        now = time.monotonic()
        if self._job.preview and event.preview is not None and now - self._drawn > PREVIEW_SECONDS:
            self._preview = _jpeg(event.preview())
            self._drawn = time.monotonic()
        self._show(event.phase, self._run.at(event), step=event.step, steps=event.steps, tile=event.tile,
                   tiles=event.tiles, expert=event.expert)  # fmt: skip

    def saving(self) -> None:
        """All is decoded."""
        self._show("save", self._run.saving())

    def _show(self, phase: str, share: float, **where: int) -> None:
        left, todo = self._run.left(share), self._start.pictures - self._start.picture
        if left is not None and todo:
            left = left + todo * left / (1 - share) if share < 1 else None
        whole = (self._start.picture - 1 + share) / self._start.pictures
        self._job.show(replace(self._start, phase=phase, share=whole, left=left, preview=self._preview, **where))
        self._shown()


def _save(upload: Path, before: Picture, after: Picture, folder: Path, path: Path, texts: dict[str, str]) -> Result:
    """Put a result on disk, with what a browser needs to compare it."""
    write_image(path, replace(after, metadata=after.metadata.with_text(texts)))
    height, width = after.rgb.shape[:2]
    inputs = folder / "inputs"
    inputs.mkdir(exist_ok=True)
    source = inputs / path.name
    write_image(source, replace(before, bits=8))
    view = path
    if width * height > VIEW_PIXELS:
        view = inputs / f"{path.stem}_view.jpg"
        shrink = (VIEW_PIXELS / (width * height)) ** 0.5
        small = to_pil(after).convert("RGB").resize((int(width * shrink), int(height * shrink)), Image.Resampling.BOX)
        small.save(view, "JPEG", quality=92)
    return Result(path.name, path, source, view, (before.rgb.shape[1], before.rgb.shape[0]), (width, height), upload)


def _jpeg(image: Image.Image) -> bytes:
    image.thumbnail((PREVIEW, PREVIEW))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def _about(name: str, error: Exception) -> str:
    text = str(error)
    return text if text.startswith(name) else f"{name}: {text}"
