"""One device at work on the jobs of a page: pictures are read, run and saved, one after the other."""

from __future__ import annotations

import gc
import io
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import ImageError, MoESRError, SettingError
from ..evaluation.invented_detail import invention
from ..hosting.model_runner import ModelSource, OpenModel, Result, Stopped, use_model
from ..images.files import WRITE_SUFFIXES, Picture, to_pil, write_image
from ..images.write import check_size, encode_image
from ..progress import Event, estimate_seconds_left
from ..result_files import Target
from ..result_sizes import TargetSize
from ..settings import result_size
from ..settings_record import digest_bytes, to_texts
from ..tiling import LARGEST_TILE
from .job import FinishedPicture, InventedDetail, Job, JobProgress
from .limits import Limits, format_megapixels
from .page_host import PageHost
from .results import new_folder, pack, plan_results
from .uploads import Upload, open_picture, read_size

log = logging.getLogger(__name__)

#: Side of the live preview in pixels, and seconds between two of them.
PREVIEW, PREVIEW_SECONDS = 640, 0.7
#: Largest picture that browsers are given as it is, in pixels.
VIEW_PIXELS = 40_000_000


class Worker:
    """Runs jobs on one device, in one thread."""

    def __init__(self, host: PageHost, limits: Limits, results: Path, source: ModelSource) -> None:
        self._host, self._limits, self._results, self._source = host, limits, results, source

    def run(self, job: Job) -> tuple[str, str]:
        """Do the job: its state at the end, and what to say. What is wrong with one picture is noted in its failures.

        Raises Stopped if it has to end early, MoESRError for what concerns all pictures. Finished results are kept.
        """

        def check() -> None:
            job.check()
            self._host.check()

        with self._host.begin_job(job):
            job.check()
            job.start(self._limits.seconds)
            size = job.size
            if size is None:
                scale = job.settings.get("scale") or self._host.facts.read_config(job.model).scale
                size = TargetSize("Times", float(scale))
            with use_model(self._source, job.model, side=self._longest_side(job, size), check=check) as model:
                folder = new_folder(self._results)
                targets = plan_results(folder, [upload.name for upload in job.uploads], size.tag, job.format)
                began = time.monotonic()
                try:
                    for number, target in enumerate(targets, 1):
                        reporter = _Reporter(job, self._host, number, began)
                        if job.seeds:
                            run = partial(self._inspect, job, model, reporter, folder, size)
                        else:
                            run = partial(self._upscale, job, model, reporter, target, size)
                        self._catch(job, number, run)
                finally:
                    if len(job.results) > 1 and job.output is None:
                        job.archive = pack([result.path for result in job.results], folder / "moesr.zip")
                    gc.collect()
        if job.results or job.invented or not job.failures:
            return "done", ""
        return "failed", job.failures[0] if len(job.failures) == 1 else "none of the pictures could be done"

    def close(self) -> None:
        self._source.close()

    def _upscale(self, job: Job, model: OpenModel, reporter: _Reporter, target: Target, size: TargetSize) -> None:
        upload = job.uploads[reporter.number - 1]
        picture, settings = self._open(job, upload, size)
        height, width = picture.rgb.shape[:2]
        kind = WRITE_SUFFIXES[target.path.suffix.lower()]
        check_size(upload.name, kind, *result_size(height, width, settings["scale"]))
        result = model.upscale(picture, settings, reporter.show)
        job.check()  # the last time: from here on the picture is finished and kept
        job.results.append(save_result(result, picture, upload.path, target, protect=job.protect))
        self._host.keep(job, job.results[-1])

    def _inspect(self, job: Job, model: OpenModel, reporter: _Reporter, folder: Path, size: TargetSize) -> None:
        """What is invented in the result of a picture; see invented_detail.invention."""
        upload = job.uploads[0]
        picture, settings = self._open(job, upload, size)
        height, width = picture.rgb.shape[:2]
        rows, columns = result_size(height, width, settings["scale"])
        if rows * columns > VIEW_PIXELS:
            raise ImageError(
                f"{upload.name}: results of {format_megapixels(rows * columns)} are not compared on this page, but of "
                f"{format_megapixels(VIEW_PIXELS)} at most; cut out a part, or use python -m moesr invention"
            )
        found = invention(model.model, picture, job.seeds, callback=reporter.show, **settings)
        job.check()
        path = folder / "invented.png"
        Image.fromarray(found.draw()[0, :rows]).save(path)  # the page draws the scale itself
        job.invented = InventedDetail(path, found.share, found.lr_consistency)

    def _open(self, job: Job, upload: Upload, size: TargetSize) -> tuple[Picture, dict[str, Any]]:
        """A picture and the settings of its run. Raises ImageError and SettingError."""
        job.check()
        picture = open_picture(upload, self._limits)
        height, width = picture.rgb.shape[:2]
        settings = {**job.settings, "scale": size.find_scale(width, height)}
        if job.protect:
            settings["protect"] = Image.open(io.BytesIO(job.protect))
        self._limits.check_output(upload.name, width, height, settings["scale"])
        return picture, settings

    def _catch(self, job: Job, number: int, run: Callable[[], None]) -> None:
        """Do what concerns one picture, and note what goes wrong. Raises Stopped, and what is wrong with all."""
        upload = job.uploads[number - 1]
        try:
            run()
        except MoESRError as error:
            if isinstance(error, Stopped) or (isinstance(error, SettingError) and len(job.uploads) > 1):
                raise  # what is wrong with a setting is wrong for all pictures alike
            text = str(error)
            job.failures.append(text if text.startswith(upload.name) else f"{upload.name}: {text}")
        except Exception as error:  # one broken picture must not take the others with it
            log.exception("a picture failed")
            job.failures.append(f"{upload.name}: something went wrong ({type(error).__name__}); the log says more")

    def _longest_side(self, job: Job, size: TargetSize) -> int:
        """Of all results, in pixels, as far as headers tell."""
        longest = 1.0
        for upload in job.uploads:
            try:
                width, height = read_size(upload, self._limits)
                longest = max(longest, max(width, height) * size.find_scale(width, height))
            except MoESRError as error:  # said when it is that picture's turn
                log.debug("%s", error)
                longest = max(longest, LARGEST_TILE)
        return int(longest + 0.5)


class _Reporter:
    """Turns the progress of a picture into that of its job."""

    def __init__(self, job: Job, host: PageHost, number: int, began: float) -> None:
        """number: of the picture, from 1. began: when the first one did, of time.monotonic."""
        count = len(job.uploads)
        self._job, self._host, self.number, self._began = job, host, number, began
        self._start = JobProgress(
            picture=number, pictures=count, name=job.uploads[number - 1].name, fraction=(number - 1) / count
        )
        self._drawn_at = float("-inf")
        self._preview: bytes | None = None
        job.show(self._start)

    def show(self, event: Event) -> None:
        """The picture has come so far."""
        start = self._start
        if event.note and event.note not in self._job.notes:
            self._job.notes.append(event.note)
        if self._job.preview and event.preview is not None and time.monotonic() - self._drawn_at > PREVIEW_SECONDS:
            image = event.preview()
            image.thumbnail((PREVIEW, PREVIEW))
            self._preview = encode_image(image, "JPEG", quality=80)
            self._drawn_at = time.monotonic()
        fraction = start.fraction + event.fraction / start.pictures
        left = estimate_seconds_left(self._began, fraction)
        self._job.show(replace(start, event=event, fraction=fraction, seconds_left=left, preview=self._preview))
        self._host.show(self._job)


def save_result(
    result: Result, before: Picture, upload: Path, target: Target, *, protect: bytes = b""
) -> FinishedPicture:
    """Put a result on disk, with what a browser needs to compare it: all of it, or nothing.

    protect: the map of what was protected, a PNG that is kept beside it.
    """
    path, after, record, protected = target.path, result.picture, result.record, None
    height, width = after.rgb.shape[:2]
    inputs = path.parent / "inputs"
    inputs.mkdir(exist_ok=True)
    source = inputs / f"{path.name}.png"
    write_image(source, replace(before, bits=8))
    view = path
    if width * height > VIEW_PIXELS or path.suffix.lower() in (".tif", ".tiff"):
        view = inputs / f"{path.stem}_view.jpg"
        shrink = min(1.0, (VIEW_PIXELS / (width * height)) ** 0.5)
        small = to_pil(after).convert("RGB").resize((int(width * shrink), int(height * shrink)), Image.Resampling.BOX)
        small.save(view, "JPEG", quality=92)
    if protect:
        record = {**record, "protect": digest_bytes(protect)}
        protected = inputs / f"{path.stem}_protect.png"
        protected.write_bytes(protect)
    write_image(path, replace(after, metadata=after.metadata.with_text(to_texts(record))))
    before_size = (before.rgb.shape[1], before.rgb.shape[0])
    return FinishedPicture(path, source, view, before_size, (width, height), upload, record, protected)
