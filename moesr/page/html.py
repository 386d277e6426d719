"""The page's own HTML: uploads, progress, results, messages. Everything that comes from outside is escaped."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

from ..errors import format_size
from ..evaluation.invented_detail import TICKS, VISIBLE, place_on_scale
from ..hosting.model_facts import Plan
from ..images.expert_timeline import palette
from .job import Job, JobProgress

Url = Callable[[Path], str]

WORDS = {
    "load": "Loading the model", "encode": "Reading", "sample": "Sharpening", "decode": "Drawing", "save": "Saving",
}  # fmt: skip
#: Bars of a plan; a run of more steps shows some of them.
BARS = 100

HEADER = """<header class="moesr-head"><h1>MoESR</h1>
<p>Diffusion super-resolution. Drop pictures, they come back larger: any size in, exact size out.</p></header>"""
EMPTY = """<div class="moesr-empty"><p>The result appears here, to compare with what you sent.</p></div>"""
FOOTER = """<footer class="moesr-foot"><p>A diffusion model invents detail. Where it matters whether a detail was really
there, do not use one; <em>fidelity</em> 1 holds the result to the input as far as it goes. Nothing leaves this page's
own server, and uploads and results are deleted after a while.</p></footer>"""


def draw_message(text: str, kind: str = "error") -> str:
    """A line that tells something: error, note or done."""
    role = "alert" if kind == "error" else "status"
    return f'<p class="moesr-message moesr-{kind}" role="{role}">{escape(text)}</p>' if text else ""


def draw_messages(texts: Sequence[str], kind: str = "error") -> str:
    """A line for each."""
    return "".join(draw_message(text, kind) for text in texts)


def draw_waiting(ahead: int, seconds: float | None) -> str:
    """Where a job is in the queue."""
    if not ahead:
        return draw_bar(0.0, "Starting")
    others = "1 job is" if ahead == 1 else f"{ahead} jobs are"
    about = "" if seconds is None else f"about {format_duration(seconds)}"
    return draw_bar(0.0, f"You are number {ahead + 1} in line: {others} before yours", about)


def draw_progress(progress: JobProgress, plan: Plan | None, seeds: int = 0) -> str:
    """How far a job is: bar, words, seconds left, the expert at work, and the picture so far.

    seeds: of a job that compares so many results.
    """
    event, details = progress.event, []
    if progress.pictures > 1:
        details.append(f"picture {progress.picture} of {progress.pictures}")
    if seeds:
        details.append(f"try {round(event.done * seeds) + 1} of {seeds}")
    if event.phase == "sample":
        details += [f"step {event.step} of {event.steps}", f"expert {event.expert}"]
    if event.tiles > 1:
        details.append(f"tile {event.tile} of {event.tiles}")
    left = "" if progress.seconds_left is None else f", {format_duration(progress.seconds_left)} left"
    drawn = ""
    if plan is not None and event.phase in ("sample", "decode", "save"):
        drawn = draw_plan(plan, event.step if event.phase == "sample" else None)
    preview = ""
    if progress.preview:
        preview = f'<img class="moesr-preview" alt="The picture so far" src="{_make_data_url(progress.preview)}">'
    return draw_bar(progress.fraction, WORDS[event.phase] + left, " · ".join(details)) + drawn + preview


def draw_plan(plan: Plan, current: int | None = None) -> str:
    """Which expert works at which step: bars as high as the noise, grouped by expert. current: step at work, from 1."""
    count = len(plan.experts)
    colours = palette(max(plan.experts) + 1)
    order = list(dict.fromkeys(plan.experts))
    words = f"{count} steps; experts in the order in which they work: {', '.join(map(str, order))}"
    groups, stride = [], max(1, -(-count // BARS))
    for expert, steps in itertools.groupby(range(count), key=lambda i: plan.experts[i]):
        bars, numbers = [], list(steps)
        for i in numbers[::stride]:
            state = "" if current is None or i + 1 < current else "now" if i + 1 < current + stride else "next"
            bars.append(f'<i class="{state}" style="height:{max(4, round(100 * plan.noise[i]))}%"></i>')
        colour = "rgb({},{},{})".format(*colours[expert])
        groups.append(
            f'<div style="flex:{len(numbers)};--expert:{colour}"><div class="moesr-bars">{"".join(bars)}</div>'
            f"<span>expert {expert}</span></div>"
        )
    return f'<div class="moesr-plan" role="img" aria-label="{escape(words)}">{"".join(groups)}</div>'


def draw_outcome(job: Job) -> str:
    """What became of a job that has ended."""
    late = " It was finished before it could be cancelled." if job.is_cancelled else ""
    if job.invented is not None:
        text = f"Done: {job.seeds} tries compared in {format_duration(job.seconds)}.{late}"
        return draw_message(text, "done") + draw_messages(job.notes, "note")
    count = len(job.results)
    pictures = "1 picture" if count == 1 else f"{count} pictures"
    if job.state == "done" and count:
        seed = job.results[0].record["seed"]
        text = f"Done: {pictures} in {format_duration(job.seconds)}, seed {seed}.{late}"
        return draw_message(text, "done") + draw_messages(job.notes, "note") + draw_messages(job.failures)
    kept = f"; {pictures} finished before {'is' if count == 1 else 'are'} kept" if count else ""
    if job.error == "cancelled":
        return draw_message(f"Cancelled{kept}", "note") + draw_messages(job.failures)
    return draw_message(job.error + kept) + draw_messages([line for line in job.failures if line != job.error])


def draw_results(job: Job, url: Url) -> str:
    """The comparison and the downloads of what is finished so far; nothing if nothing is."""
    done = list(job.results)
    if not done:
        return ""
    pairs = [
        {
            "name": result.path.name,
            "source": result.source.name,
            "before": url(result.before),
            "after": url(result.view),
            "file": url(result.path),
            "width": result.size[0],
            "height": result.size[1],
            "from": f"{result.before_size[0]} x {result.before_size[1]}",
            "to": f"{result.size[0]} x {result.size[1]}",
        }
        for result in done
    ]
    links = []
    for pair, result in zip(pairs, done):
        size = format_size(result.path.stat().st_size)
        links.append(_draw_link(pair["file"], result.path.name, f"{pair['to']}, {size}"))
    links += [_draw_link(url(r.protect), r.protect.name, "what was protected") for r in done if r.protect]
    if job.archive is not None:
        text, size = f"All {len(done)} as a zip", format_size(job.archive.stat().st_size)
        links.insert(0, _draw_link(url(job.archive), text, size, name=job.archive.name, kind="moesr-all"))
    compare = f'<moesr-compare job="{job.id}" pairs="{escape(json.dumps(pairs))}"></moesr-compare>'
    return f'{compare}<ul class="moesr-downloads">{"".join(links)}</ul>'


def draw_invented(job: Job, url: Url) -> str:
    """The map of what was invented, its scale, and what its two numbers mean; nothing if the job has none."""
    found = job.invented
    if found is None:
        return ""
    name, error = escape(job.uploads[0].name), 255 * 10 ** (-found.lr_consistency / 20)
    if found.share < 0.0005:
        words = f"Almost nothing in {name} looks different from try to try."
    else:
        words = f"{found.share:.1%} of the pixels of {name} look different from try to try."
    labels = "".join(f'<span style="left:{100 * place_on_scale(level):.3g}%">{level}</span>' for level in TICKS)
    return (
        f'<figure class="moesr-invented"><figcaption><strong>{words}</strong> The map compares {job.seeds} tries '
        "with other seeds, every second one of the picture turned by 180 degrees. Where it is bright, detail is "
        f"invented: a change of more than {VISIBLE} of 255 grey levels is seen.</figcaption>"
        f'<img alt="Map of what was invented: bright places change from try to try" src="{escape(url(found.path))}">'
        f'<div class="moesr-scale" aria-hidden="true"><i></i>{labels}</div>'
        '<p class="moesr-unit">grey levels by which a pixel changes (standard deviation)</p>'
        f"<p>Made small again, the result differs from your picture by about {error:.1f} of 255 grey levels "
        f"({found.lr_consistency:.1f} dB). Dark does not mean true: the model can invent the same thing each time.</p>"
        "</figure>"
    )


def draw_files(rows: Sequence[tuple[str, str, bytes]], count: int) -> str:
    """What was dropped: thumbnail, name, sizes before and after. count: of all files, of which these are the first."""
    items = "".join(
        f'<li><img alt="" src="{_make_data_url(thumbnail)}"><span>{escape(name)}</span><span>{escape(size)}</span></li>'
        for name, size, thumbnail in rows
    )
    more = f"<li><span>and {count - len(rows)} more</span></li>" if count > len(rows) else ""
    return f'<ul class="moesr-picked">{items}{more}</ul>' if rows else ""


def format_duration(seconds: float) -> str:
    """Seconds for people: 4 s, 2 min, 1 h 5 min."""
    whole = round(seconds)
    if whole < 90:
        return f"{max(whole, 1)} s"
    minutes = round(whole / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def draw_bar(fraction: float, words: str, details: str = "") -> str:
    """A progress bar, and what it says."""
    percent = round(100 * fraction)
    return (
        f'<div class="moesr-progress" role="progressbar" aria-valuemin="0" aria-valuemax="100"'
        f' aria-valuenow="{percent}" aria-label="Progress"><div style="width:{percent}%"></div></div>'
        f'<p class="moesr-where" role="status"><span>{escape(words)}</span><span>{escape(details)}</span></p>'
    )


def _make_data_url(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def _draw_link(link: str, text: str, details: str, *, name: str | None = None, kind: str = "") -> str:
    return (
        f'<li class="{kind}"><a href="{escape(link)}" download="{escape(name or text)}">'
        f"<span>{escape(text)}</span><span>{escape(details)}</span></a></li>"
    )
