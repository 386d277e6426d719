"""What happens when something on the page is clicked, dropped or changed. Plain functions of values; see builder.py."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ..errors import MoESRError, SettingError
from ..hosting.model_facts import Plan, plan_steps
from ..result_sizes import BUTTONS, KINDS, choose_button, read_size
from ..settings import SETTINGS, result_size
from ..settings_record import RunRecord, read_run
from . import html
from .controls import CONTROLS, list_own_values, list_preset, read_form
from .gradio_versions import list_uploads, make_refusal, update
from .job import Job
from .job_queue import JobQueue
from .protection import HINT, NO_PICTURE, SEVERAL, draw_background, read_painting
from .uploads import Upload, accept, clean_name, draw_thumbnail
from .uploads import read_size as read_upload_size

log = logging.getLogger(__name__)

#: Seconds between two looks at a job.
TICK = 0.4
#: Pictures that are shown before a run.
THUMBNAILS = 12
#: Results that are compared to see what was invented.
SEEDS = 4


class Handlers:
    """The page's functions over a job queue."""

    def __init__(self, queue: JobQueue, examples: Sequence[tuple[Path, str]] = ()) -> None:
        self.queue, self.host, self.facts = queue, queue.host, queue.host.facts
        self.examples = list(examples)
        self._roots = [*self.host.upload_folders, queue.results, *{path.parent for path, _ in self.examples}]

    def run(self, files: Any, painted: Any, *values: Any, client: str = "") -> Iterator[tuple[Any, ...]]:
        """Upscale what was dropped; see `run_uploads`. painted: the value of the painter, see protection.py."""
        yield from self.run_uploads(lambda: self._accept_all(files), *values, client=client, painted=painted)

    def run_example(self, files: Any, *values: Any, client: str = "") -> Iterator[tuple[Any, ...]]:
        """Upscale what was chosen just now: what is painted still belongs to the picture before."""
        yield from self.run(files, None, *values, client=client)

    def run_uploads(
        self, find_uploads: Callable[[], list[Upload]], model: str, choice: str, value: Any, format: str, *values: Any,
        client: str = "", output: Path | None = None, painted: Any = None,
    ) -> Iterator[tuple[Any, ...]]:  # fmt: skip
        """Upscale pictures: (progress, results, run, cancel, job id, what was invented), again and again.

        choice, value: see result_sizes.read_size. client: who asks; see JobQueue.cancel_jobs_of. output: see Job.
        """
        on, off = update(interactive=True), update(interactive=False)
        try:
            size, settings = read_size(choice, value), read_form(dict(zip(CONTROLS, values)))
            uploads = find_uploads()
            protect = read_painting(painted, uploads, self._accept, self.queue.limits)
            job = Job(uploads, model, settings, size=size, format=format, client=client, output=output, protect=protect)
            self.queue.submit(job)
        except MoESRError as error:
            yield html.draw_message(str(error)), update(), on, off, "", update()
            return
        try:
            yield html.draw_waiting(0, None), "", off, on, job.id, ""
            yield from ((*parts, *[update()] * 4) for parts in self._follow(job))
        finally:
            job.cancel()  # if the client went away; a finished job does not mind
        results = html.draw_results(job, self.host.url)
        yield html.draw_outcome(job), results, on, off, "", update()

    def find_invented(self, address: str, client: str = "") -> Iterator[tuple[Any, ...]]:
        """What was invented in the result at an address of the page.

        Yields (progress, map, its button, run button, cancel button, job id), again and again.
        """
        try:
            pair = self.queue.find_result(self._find_file(address).path)
            if pair is None:
                raise SettingError("this result is too old to look into; make it again")
            made, result = pair
            job = Job(
                [Upload(result.source, clean_name(result.source.name))], made.model, made.settings, size=made.size,
                preview=False, client=client, protect=made.protect, seeds=SEEDS,
            )  # fmt: skip
            self.queue.submit(job)
        except MoESRError as error:
            yield html.draw_message(str(error)), "", update(), update(), update(), update()
            return
        off, on = update(interactive=False), update(interactive=True)
        try:
            yield html.draw_waiting(0, None), "", off, off, on, job.id
            yield from ((progress, *[update()] * 5) for progress, _ in self._follow(job))
        finally:
            job.cancel()
        found = "" if job.invented is None else html.draw_invented(job.invented, self.host.url)
        yield html.draw_outcome(job), found, on, on, off, ""

    def offer_painting(self, files: Any) -> tuple[str, Any]:
        """The picture to paint on: (what to do, the painter's value). It changes with what was dropped."""
        found = list_uploads(files)
        if len(found) != 1:
            return html.draw_message(SEVERAL if found else NO_PICTURE, "note"), None
        try:
            upload = self._accept(found[0])
            read_upload_size(upload, self.queue.limits)
            return f"<p>{HINT}</p>", draw_background(upload)
        except MoESRError:  # said by `list_files`
            return html.draw_message(NO_PICTURE, "note"), None

    def reopen(self, job_id: str) -> tuple[Any, Any]:
        """The page was loaded again: (progress, results) of the job that it showed last, if that is still there."""
        job = self.queue.find(str(job_id or ""))
        if job is None or not job.is_finished or not all(result.path.is_file() for result in job.results):
            return update(), update()
        return html.draw_outcome(job), html.draw_results(job, self.host.url) or html.EMPTY

    def use_again(self, address: str) -> Any:
        """The result at an address of the page, as what to upscale next."""
        try:
            return update(value=[str(self._find_file(address).path)])
        except MoESRError as error:
            log.info("no result to use again: %s", error)
            return update()

    def choose_size(self, choice: str) -> Any:
        """The field beside the choice of a size: what to type, or nothing."""
        if choice in BUTTONS:
            return update(visible=False, value=BUTTONS[choice])
        label, first = KINDS[choice]
        return update(visible=True, label=label, value=first)

    def choose_preset(self, name: str, model: str) -> list[Any]:
        """What a preset changes: one update per control."""
        try:
            values = list_preset(name, self.facts.read_config(model))
        except MoESRError:  # said when it runs
            values = {}
        return [update(value=values[control]) if control in values else update() for control in CONTROLS]

    def cancel(self, job_id: str) -> Any:
        """Stop the job with that id: the cancel button. One value: Gradio takes a tuple for the button's text."""
        job = self.queue.find(str(job_id))
        if job is not None:
            job.cancel()
        return update(interactive=False)

    def api(
        self, image: Any, model: str, *values: Any, protect: Any = None, client: str = ""
    ) -> Iterator[tuple[Any, Any]]:
        """Upscale one picture for a program: (file, what was done). Raises Gradio's Error with a line that says why.

        values: of the scale and of CONTROLS.
        """
        try:
            settings = read_form(dict(zip(("scale", *CONTROLS), values)))
            uploads = self._accept_all(image)
            plane = read_painting(protect, uploads, self._accept, self.queue.limits)
            job = Job(uploads, model or self.facts.default, settings, preview=False, client=client, protect=plane)
            self.queue.submit(job)
        except MoESRError as error:
            raise make_refusal(str(error)) from error
        version = -1
        try:
            while not job.is_finished:
                fraction = round(job.progress.fraction, 3)
                yield None, {"state": job.state, "ahead": self.queue.count_ahead(job), "progress": fraction}
                version = job.wait(TICK, version)
        finally:
            job.cancel()
        if not job.results:
            raise make_refusal(job.error or "; ".join(job.failures))
        yield str(job.results[0].path), {"state": job.state, **describe_result(job)}

    def list_files(self, files: Any, choice: str, value: Any) -> str:
        """What was dropped, with sizes before and after, or why it will not do."""
        found, rows, wrong = list_uploads(files), [], []
        try:
            self.queue.limits.check_files(len(found))
            target = read_size(choice, value)
        except MoESRError as error:
            return html.draw_message(str(error))
        for paths in found:
            try:
                upload = self._accept(paths)
                width, height = read_upload_size(upload, self.queue.limits)
                scale = target.find_scale(width, height)
                self.queue.limits.check_output(upload.name, width, height, scale)
                if len(rows) < THUMBNAILS:
                    high, wide = result_size(height, width, scale)
                    size = f"{width} x {height} → {wide} x {high}"
                    rows.append((upload.name, size, draw_thumbnail(upload)))
            except MoESRError as error:
                wrong.append(str(error))
        more = [f"and {len(wrong) - 8} more that cannot be used"] if len(wrong) > 8 else []
        return html.draw_files(rows, len(found) - len(wrong)) + html.draw_messages([*wrong[:8], *more])

    def restore_settings(self, files: Any) -> tuple[Any, ...]:
        """The settings inside the first picture, if any: (note, timeline, model, choice, size, *controls)."""
        nothing = ("", *[update()] * (4 + len(CONTROLS)))
        for paths in list_uploads(files)[:1]:
            try:
                upload = self._accept(paths)
            except MoESRError:
                return nothing  # `list_files` says why
            found = read_run(upload.path)
            if found is not None:
                return self._show_run(upload.name, found)
        return nothing

    def change_model(self, model: str) -> tuple[Any, ...]:
        """What another model changes: (plan, choice, size, steps, fidelity, restore)."""
        try:
            config = self.facts.read_config(model)
            choice, scale = choose_button(config.scale)
            own = list_own_values(config)
            plan = self.draw_plan(model, own["steps"]["value"])
            size = update(value=scale, visible=choice not in BUTTONS)
            return plan, update(value=choice), size, *(update(**change) for change in own.values())
        except MoESRError as error:
            return html.draw_message(str(error)), *[update()] * 5

    def draw_plan(self, model: str, steps: float, sampler: str = "auto") -> str:
        """Which expert works at which step, and what had to be assumed about the model's files."""
        try:
            plan = plan_steps(self.facts.read_config(model), steps=int(steps), sampler=sampler)
            return html.draw_plan(plan) + html.draw_messages(self.facts.list_notes(model), "note")
        except (MoESRError, TypeError, ValueError) as error:
            return html.draw_message(str(error))

    def choose_example(self, index: int) -> tuple[Any, ...]:
        """An example: (files, preset, *controls)."""
        path, preset = self.examples[index]
        return [str(path)], update(value=preset), *self.choose_preset(preset, self.facts.default)

    def list_models(self) -> Any:
        """The models that are there now, for the menu."""
        return update(choices=self.facts.list_names())

    def _follow(self, job: Job) -> Iterator[tuple[Any, Any]]:
        """(progress, results) until the job has ended."""
        version, done, plan = -1, 0, None if job.seeds else self._plan(job)
        while not job.is_finished:
            if job.is_cancelled:
                progress = html.draw_cancelling(job.progress)
            elif job.state == "waiting":
                progress = html.draw_waiting(self.queue.count_ahead(job), self.queue.estimate_wait(job))
            else:
                progress = html.draw_progress(job.progress, plan, job.seeds)
            has_more = len(job.results) > done
            done = len(job.results)
            yield progress, html.draw_results(job, self.host.url) if has_more else update()
            if not job.is_cancelled:
                job.wait(TICK)
            version = job.wait(TICK, version)

    def _find_file(self, address: str) -> Upload:
        """The result at an address of the page. Raises ImageError."""
        return accept(Path(unquote(str(address).partition("file=")[2])), [self.queue.results])

    def _plan(self, job: Job) -> Plan | None:
        try:
            own = {name: job.settings[name] for name in ("steps", "sampler", "spacing") if name in job.settings}
            return plan_steps(self.facts.read_config(job.model), **own)
        except MoESRError:
            return None

    def _accept_all(self, files: Any) -> list[Upload]:
        found = list_uploads(files)
        self.queue.limits.check_files(len(found))
        return [self._accept(paths) for paths in found]

    def _accept(self, paths: Sequence[Path]) -> Upload:
        first, *_ = [accept(path, self._roots) for path in paths]
        return first

    def _show_run(self, name: str, run: RunRecord) -> tuple[Any, ...]:
        notes, model = [], run.model
        if model not in self.facts.list_names():
            notes.append(f"its model {model} is not in the library")
            model = ""
        elif run.model_hash and run.model_hash != self.facts.compute_hash(model):
            notes.append(f"its model {model} was another version, the result will differ")
        if run.maps:
            words = " and ".join(name.removesuffix("_map") for name in run.maps)
            notes.append(f"its {words} map is not in the file: give it again")
        steps, seed = run.settings.get("steps"), run.settings.get("seed", SETTINGS["seed"].default)
        text = "; ".join([f"Settings taken from {name}: seed {seed}, {steps or 'own'} steps", *notes])
        plan = self.draw_plan(model or self.facts.default, steps or 1, run.settings.get("sampler", "auto"))
        values = {control: run.settings.get(control, SETTINGS[control].default) for control in CONTROLS}
        words = {control: str(value) if SETTINGS[control].choices else value for control, value in values.items()}
        changes = [update() if words[control] is None else update(value=words[control]) for control in CONTROLS]
        choice, size = update(), update()
        if "scale" in run.settings:
            button, scale = choose_button(run.settings["scale"])
            choice, size = update(value=button), update(value=scale, visible=button not in BUTTONS)
        model_change = update(value=model) if model else update()
        return html.draw_message(text, "note"), plan, model_change, choice, size, *changes


def describe_result(job: Job) -> dict[str, Any]:
    """What a program reads of the first result of a job."""
    result = job.results[0]
    record = {**result.record}
    digest = record.pop("model_hash")
    size, seconds = dict(zip(("width", "height"), result.size)), round(job.seconds, 2)
    return {**size, "seconds": seconds, "settings": record, "model_hash": digest}
