"""The page's own HTML: progress, results, messages. Everything that comes from outside is escaped."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

from ..hosting.facts import Plan
from ..images.timeline import timeline
from .jobs import FinishedPicture, Job, JobProgress

Url = Callable[[Path], str]

WORDS = {"load": "Loading the model", "encode": "Reading", "sample": "Sampling", "decode": "Decoding", "save": "Saving"}

HEADER = """<header class="moesr-head"><h1>MoESR</h1>
<p>Diffusion super-resolution. Drop pictures, they come back larger: any size in, exact size out.</p></header>"""
EMPTY = """<div class="moesr-empty"><p>The result appears here, to compare with what you sent.</p></div>"""
FOOTER = """<footer class="moesr-foot"><p>A diffusion model invents detail. Where it matters whether a detail was really
there, do not use one; <em>fidelity</em> 1 holds the result to the input as far as it goes. Nothing leaves this page's
own server, and uploads and results are deleted after a while.</p></footer>"""


def message(text: str, kind: str = "error") -> str:
    """A line that tells something: error, note or done."""
    role = "alert" if kind == "error" else "status"
    return f'<p class="moesr-message moesr-{kind}" role="{role}">{escape(text)}</p>' if text else ""


def messages(texts: Sequence[str], kind: str = "error") -> str:
    """A line for each."""
    return "".join(message(text, kind) for text in texts)


def waiting(ahead: int, seconds: float | None) -> str:
    """Where a job is in the line."""
    if not ahead:
        return _bar(0.0, "Starting", "")
    others = "1 job is" if ahead == 1 else f"{ahead} jobs are"
    about = "" if seconds is None else f"about {duration(seconds)}"
    return _bar(0.0, f"You are number {ahead + 1} in line: {others} before yours", about)


def running(progress: JobProgress, plan: Plan | None) -> str:
    """How far a job is: bar, words, seconds left, the expert at work, and the picture so far."""
    event = progress.event
    words = [WORDS[event.phase]]
    if progress.pictures > 1:
        words.insert(0, f"Picture {progress.picture} of {progress.pictures}")
    if event.phase == "sample":
        words += [f"step {event.step} of {event.steps}", f"expert {event.expert}"]
    if event.tiles > 1:
        words.append(f"tile {event.tile} of {event.tiles}")
    left = "" if progress.seconds_left is None else f"{duration(progress.seconds_left)} left"
    drawn = ""
    if plan is not None and event.phase in ("sample", "decode", "save"):
        drawn = plan_picture(plan, event.step if event.phase == "sample" else None)
    preview = ""
    if progress.preview:
        data = base64.b64encode(progress.preview).decode()
        preview = f'<img class="moesr-preview" alt="The picture so far" src="data:image/jpeg;base64,{data}">'
    return _bar(progress.fraction, " · ".join(words), left) + drawn + preview


def cancelling(progress: JobProgress) -> str:
    """The job was cancelled, and ends with the layer that is at work."""
    return _bar(progress.fraction, "Cancelling", "")


def plan_picture(plan: Plan, current: int | None = None, width: int = 720) -> str:
    """The timeline as an image: which expert works at which step. width: that it is shown at, about."""
    buffer = io.BytesIO()
    timeline(plan.experts, plan.noise, plan.timesteps, current=current, size=(width, 130)).save(buffer, "PNG")
    order = list(dict.fromkeys(plan.experts))
    told = f"{len(plan.timesteps)} steps; experts in the order in which they work: {', '.join(map(str, order))}"
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img class="moesr-timeline" alt="{escape(told)}" src="data:image/png;base64,{data}">'


def outcome(job: Job) -> str:
    """What became of a job that has ended."""
    count = len(job.results)
    pictures = "1 picture" if count == 1 else f"{count} pictures"
    if job.state == "done":
        seed = f", seed {job.results[0].record['seed']}"
        late = " It was finished before it could be cancelled." if job.is_cancelled else ""
        return message(f"Done: {pictures} in {duration(job.seconds)}{seed}.{late}", "done") + messages(job.failures)
    kept = f"; {pictures} finished before {'is' if count == 1 else 'are'} kept" if count else ""
    if job.error == "cancelled":
        return message(f"Cancelled{kept}", "note") + messages(job.failures)
    return message(job.error + kept) + messages([line for line in job.failures if line != job.error])


def results(done: Sequence[FinishedPicture], archive: Path | None, url: Url) -> str:
    """The comparison and the downloads."""
    if not done:
        return EMPTY
    pairs = [
        {
            "name": result.path.name,
            "before": url(result.before),
            "after": url(result.view),
            "width": result.size[0],
            "height": result.size[1],
            "from": f"{result.before_size[0]} x {result.before_size[1]}",
            "to": f"{result.size[0]} x {result.size[1]}",
        }
        for result in done
    ]
    links = [_download(url(result.path), result.path.name, _size_of(result)) for result in done]
    if archive is not None:
        links.insert(
            0, _download(url(archive), f"All {len(done)} as a zip", _bytes(archive), archive.name, "moesr-all")
        )
    compare = f'<moesr-compare pairs="{escape(json.dumps(pairs))}"></moesr-compare>'
    return f'{compare}<ul class="moesr-downloads">{"".join(links)}</ul>'


def files(lines: Sequence[tuple[str, str]]) -> str:
    """What was chosen: names, and sizes before and after."""
    rows = "".join(f"<li><span>{escape(name)}</span><span>{escape(size)}</span></li>" for name, size in lines[:20])
    more = f"<li><span>and {len(lines) - 20} more</span></li>" if len(lines) > 20 else ""
    return f'<ul class="moesr-picked">{rows}{more}</ul>' if lines else ""


def duration(seconds: float) -> str:
    """Seconds for people: 4 s, 2 min, 1 h 5 min."""
    whole = round(seconds)
    if whole < 90:
        return f"{max(whole, 1)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _bar(fraction: float, words: str, right: str) -> str:
    percent = round(100 * fraction)
    return (
        f'<div class="moesr-progress" role="progressbar" aria-valuemin="0" aria-valuemax="100"'
        f' aria-valuenow="{percent}" aria-label="Progress"><div style="width:{percent}%"></div></div>'
        f'<p class="moesr-where" role="status"><span>{escape(words)}</span><span>{escape(right)}</span></p>'
    )


def _download(link: str, text: str, detail: str, name: str | None = None, kind: str = "") -> str:
    return (
        f'<li class="{kind}"><a href="{escape(link)}" download="{escape(name or text)}">'
        f"<span>{escape(text)}</span><span>{escape(detail)}</span></a></li>"
    )


def _size_of(result: FinishedPicture) -> str:
    return f"{result.size[0]} x {result.size[1]}, {_bytes(result.path)}"


def _bytes(path: Path) -> str:
    count = path.stat().st_size
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.0f} kB"
