"""What happens when something on the page is clicked, dropped or changed. Plain functions of values; see builder.py."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import MoESRError
from ..images.files import read_text
from ..service.desk import Desk
from ..service.intake import Upload, accept, size
from ..service.job import Job
from ..service.models import Plan
from ..service.settings import CHOICES, Settings, checked, from_text
from . import pieces
from .compat import refusal, update, uploaded

log = logging.getLogger(__name__)

#: The controls, in the order in which handlers get and give their values; also the API's parameter names.
CONTROLS = ("model", "scale", "steps", "fidelity", "color_fix", "seed", "tile", "wrap", "sampler", "eta")
RANDOM = -1
MOST_STEPS = 250
LARGEST_SCALE = 8
TILES = ("auto", "0", "256", "384", "512", "768", "1024")
#: Seconds between two looks at a job.
TICK = 0.4


class Handlers:
    """The page's functions over a desk."""

    def __init__(self, desk: Desk, examples: Sequence[tuple[Path, dict[str, Any]]] = ()) -> None:
        self.desk, self.adapter, self.models = desk, desk.adapter, desk.adapter.models
        self.examples = list(examples)
        self._roots = [*self.adapter.uploads, *{path.parent for path, _ in self.examples}]

    def run(self, files: Any, *values: Any, client: str = "") -> Iterator[tuple[Any, ...]]:
        """Upscale what was dropped: (progress, results, run button, cancel button, job id), again and again.

        client: who asks; see Desk.left.
        """
        try:
            settings = self._settings(values)
            job = self.desk.submit(self._uploads(files), settings, client=client)
        except MoESRError as error:
            yield pieces.message(str(error)), update(), update(interactive=True), update(interactive=False), ""
            return
        try:
            yield pieces.waiting(0, None), "", update(interactive=False), update(interactive=True), job.id
            yield from ((*shown, update(), update(), update()) for shown in self._watch(job))
        finally:
            job.cancel()  # if the client went away; a finished job does not mind
        shown = pieces.results(job.results, job.archive, self.adapter.url) if job.results else ""
        yield pieces.outcome(job), shown, update(interactive=True), update(interactive=False), ""

    def cancel(self, key: str) -> Any:
        """Stop the job with that id: the cancel button. One value: Gradio takes a tuple for the button's text."""
        job = self.desk.find(str(key))
        if job is not None:
            job.cancel()
        return update(interactive=False)

    def api(self, image: Any, *values: Any, client: str = "") -> Iterator[tuple[Any, Any]]:
        """Upscale one picture for a program: (file, what was done). Raises Gradio's Error with a line that says why."""
        try:
            job = self.desk.submit(self._uploads(image), self._settings(values), preview=False, client=client)
        except MoESRError as error:
            raise refusal(str(error)) from error
        version = -1
        try:
            while not job.finished:
                yield (
                    None,
                    {"state": job.state, "ahead": self.desk.ahead(job), "progress": round(job.progress.share, 3)},
                )
                version = job.wait(TICK, version)
        finally:
            job.cancel()
        if not job.results:
            raise refusal(job.error or "; ".join(job.failures))
        result, settings = job.results[0], job.settings
        told = from_text(read_text(result.path))
        yield (
            str(result.path),
            {
                "state": job.state,
                "width": result.size[0],
                "height": result.size[1],
                "seconds": round(job.seconds, 2),
                "settings": vars(told[0] if told else settings),
                "model_hash": told[1] if told else "",
            },
        )

    def picked(self, files: Any, model: str, scale: float) -> str:
        """What was dropped, with sizes before and after, or why it will not do."""
        lines = []
        try:
            self.desk.limits.check_files(len(uploaded(files)))
            factor = float(scale or self.models.config(model).scale)
        except MoESRError as error:
            return pieces.message(str(error))
        wrong = []
        for paths in uploaded(files):
            try:
                upload = self._accept(paths)
                width, height = size(upload, self.desk.limits)
                self.desk.limits.check_output(upload.name, width, height, factor)
                after = f"{int(width * factor + 0.5)} x {int(height * factor + 0.5)}"
                lines.append((upload.name, f"{width} x {height} → {after}"))
            except MoESRError as error:
                wrong.append(str(error))
        return pieces.picked(lines) + pieces.messages(wrong[:5])

    def restore(self, files: Any) -> tuple[Any, ...]:
        """The settings inside the first picture, if there are any: (note, timeline, *controls)."""
        nothing = ("", *[update()] * (1 + len(CONTROLS)))
        for paths in uploaded(files)[:1]:
            try:
                upload = self._accept(paths)
            except MoESRError:
                return nothing  # `picked` says why
            found = from_text(read_text(upload.path))
            if found is not None:
                return self._restored(upload.name, *found)
        return nothing

    def facts(self, model: str) -> tuple[Any, ...]:
        """What another model changes: (scale, steps, timeline)."""
        try:
            config = self.models.config(model)
            scale = min(config.scale, LARGEST_SCALE)
            most = max(min(MOST_STEPS, config.process.timesteps), config.steps)
            return update(value=scale), update(value=config.steps, maximum=most), self.timeline(model, config.steps)
        except MoESRError as error:
            return update(), update(), pieces.message(str(error))

    def timeline(self, model: str, steps: float, sampler: str = "auto") -> str:
        """The picture of which expert works at which step, and what had to be assumed about the model's files."""
        try:
            picture = pieces.plan_picture(self.models.plan(model, int(steps), sampler), width=400)
            return picture + pieces.messages(self.models.notes(model), "note")
        except (MoESRError, TypeError, ValueError) as error:
            return pieces.message(str(error))

    def example(self, index: int) -> tuple[Any, ...]:
        """An example: (files, wrap)."""
        path, changes = self.examples[index]
        return [str(path)], changes.get("wrap", False)

    def library(self) -> Any:
        """The models that are there now, for the menu."""
        return update(choices=self.models.names())

    def _watch(self, job: Job) -> Iterator[tuple[Any, Any]]:
        """(progress, results) until the job has ended, or was cancelled: the worker may need a moment more."""
        version, done, plan = -1, 0, self._plan(job)
        while not (job.finished or job.stopping):
            if job.state == "waiting":
                shown = pieces.waiting(self.desk.ahead(job), self.desk.expected(job))
            else:
                shown = pieces.running(job.progress, plan)
            new = len(job.results) > done
            done = len(job.results)
            yield shown, pieces.results(job.results[:done], None, self.adapter.url) if new else update()
            job.wait(TICK)
            version = job.wait(TICK, version)

    def _plan(self, job: Job) -> Plan | None:
        try:
            return self.models.plan(job.settings.model, job.settings.steps, job.settings.sampler)
        except MoESRError:
            return None

    def _settings(self, values: Sequence[Any]) -> Settings:
        given = dict(zip(CONTROLS, values))
        for name in ("scale", "steps"):
            given[name] = given[name] or None  # 0 is the model's own
        if given["seed"] in (None, RANDOM):
            given["seed"] = random.SystemRandom().randrange(2**32)
        return checked({name: value for name, value in given.items() if value is not None})

    def _uploads(self, files: Any) -> list[Upload]:
        found = uploaded(files)
        self.desk.limits.check_files(len(found))
        return [self._accept(paths) for paths in found]

    def _accept(self, paths: Sequence[Path]) -> Upload:
        first, *_ = [accept(path, self._roots) for path in paths]
        return first

    def _restored(self, name: str, settings: Settings, digest: str) -> tuple[Any, ...]:
        values: dict[str, Any] = {control: getattr(settings, control) for control in CONTROLS}
        values["tile"] = str(settings.tile)
        notes = []
        if settings.model not in self.models.names():
            notes.append(f"its model {settings.model} is not in the library")
            values["model"] = None
        elif digest and digest != self.models.digest(settings.model):
            notes.append(f"its model {settings.model} was another version, the result will differ")
        text = "; ".join([f"Settings taken from {name}: seed {settings.seed}, {settings.steps} steps", *notes])
        model = values["model"] or self.models.default
        picture = self.timeline(model, settings.steps or 1, settings.sampler)
        changes = [update() if values[control] is None else update(value=values[control]) for control in CONTROLS]
        return pieces.message(text, "note"), picture, *changes


def defaults(desk: Desk) -> dict[str, Any]:
    """The controls' first values: those of the default model."""
    model = desk.adapter.models.default
    config = desk.adapter.models.config(model)
    first = Settings(model=model)
    return {
        **{control: getattr(first, control) for control in CONTROLS},
        "scale": min(config.scale, LARGEST_SCALE),
        "steps": config.steps,
        "most_steps": max(min(MOST_STEPS, config.process.timesteps), config.steps),
        "samplers": list(CHOICES["sampler"]),
        "color_fixes": list(CHOICES["color_fix"]),
    }
