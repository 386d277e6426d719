"""Jobs of a page: order, places, cancelling, clients that leave, limits, results and what they say of themselves."""

from __future__ import annotations

import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import moesr
from moesr.errors import SettingError
from moesr.images.files import read_image
from moesr.page import job as jobs_module
from moesr.page import worker
from moesr.page.html import draw_outcome
from moesr.page.job import Job
from moesr.page.job_queue import JobQueue
from moesr.page.limits import Limits
from moesr.page.page_host import StandaloneHost
from moesr.page.uploads import Upload, accept
from moesr.settings_record import read_run
from tests.batch_jobs import draw

pytestmark = pytest.mark.parametrize("nano", ["residual_shift"], indirect=True)

OpenQueue = Callable[..., JobQueue]
Send = Callable[..., list[Upload]]
Submit = Callable[..., Job]

#: Settings of a job that takes minutes.
SLOW = {"steps": 1000}


@pytest.fixture
def host(nano: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandaloneHost]:
    monkeypatch.setenv("MOESR_HOME", str(nano.parent))
    host = StandaloneHost()
    host.upload_folders[0].mkdir()
    yield host
    host.close()
    assert not host.folder.exists()


@pytest.fixture
def open_queue(host: StandaloneHost) -> Iterator[OpenQueue]:
    queues: list[JobQueue] = []

    def make(limits: Limits | None = None) -> JobQueue:
        queues.append(JobQueue(host, limits or Limits()))
        return queues[-1]

    yield make
    for queue in queues:
        queue.close()


@pytest.fixture
def send(host: StandaloneHost) -> Send:
    """Puts random pictures where uploads lie, all of one size or one for each name."""

    def make(*names: str, size: tuple[int, int] = (8, 6)) -> list[Upload]:
        paths = [draw(host.upload_folders[0] / name, seed, size=size) for seed, name in enumerate(names)]
        return [accept(path, host.upload_folders) for path in paths]

    return make


@pytest.fixture
def submit(nano: Path) -> Submit:
    """Puts a job of the small model into a queue: one step, unless settings or options of Job say otherwise."""

    def make(queue: JobQueue, uploads: list[Upload], settings: Mapping[str, Any] | None = None, **options: Any) -> Job:
        options.setdefault("model", nano.stem)
        return queue.submit(Job(uploads, settings={"steps": 1, **(settings or {})}, **options))

    return make


def finish(*jobs: Job, within: float = 60.0) -> Job:
    """Do as a client does that waits for its jobs; the first of them."""
    end = time.monotonic() + within
    while not all(job.is_finished for job in jobs):
        for job in jobs:
            job.wait(0.02)
        assert time.monotonic() < end, [job.state for job in jobs]
    return jobs[0]


def test_a_result_is_what_upscale_makes_and_says_how(
    nano: Path, open_queue: OpenQueue, send: Send, submit: Submit
) -> None:
    queue, settings = open_queue(), {"steps": 1, "seed": 7, "fidelity": 0.5, "scale": 2.5}
    job = finish(submit(queue, send("one.png"), settings))
    assert (job.state, job.failures, job.error) == ("done", [], "")
    (result,) = job.results
    assert (result.path.name, result.before_size, result.size) == ("one_x2.5.png", (8, 6), (20, 15))
    expected = moesr.upscale(moesr.load(nano), read_image(job.uploads[0].path), **settings)
    assert np.array_equal(np.asarray(Image.open(result.path)), expected.rgb)
    found = read_run(result.path)
    assert found is not None
    assert (found.model, found.model_hash) == (nano.stem, queue.host.facts.compute_hash(nano.stem))
    assert settings.items() <= found.settings.items()
    assert job.archive is None


@pytest.mark.parametrize(("format", "suffix"), [("jpg", "jpg"), ("tiff", "tif"), ("same", "webp")])
def test_every_format_says_the_models_own_scale_and_steps(
    open_queue: OpenQueue, send: Send, submit: Submit, format: str, suffix: str
) -> None:
    job = finish(submit(open_queue(), send("one.webp"), {"steps": None}, format=format))
    assert job.results[0].path.name == f"one_x4.{suffix}"
    found = read_run(job.results[0].path)
    assert found is not None
    assert (found.settings["scale"], found.settings["steps"]) == (4.0, 4)


def test_a_batch_is_zipped_and_a_bad_picture_is_named(
    open_queue: OpenQueue, send: Send, host: StandaloneHost, submit: Submit
) -> None:
    good = send("a.png", "b.webp", "A.png")
    bad = host.upload_folders[0] / "bad.png"
    bad.write_bytes(good[0].path.read_bytes()[:60])
    job = finish(submit(open_queue(), [good[0], accept(bad, host.upload_folders), *good[1:]]))
    assert job.state == "done"
    assert [result.path.name for result in job.results] == ["a_x4.png", "b_x4.png", "A_x4-2.png"]
    [failure] = job.failures
    assert failure.startswith("bad.png: damaged picture")
    assert str(host.folder) not in failure
    assert job.archive is not None
    with zipfile.ZipFile(job.archive) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [result.path.name for result in job.results]
        assert archive.read("b_x4.png") == job.results[1].path.read_bytes()


def test_jobs_are_done_in_order_and_not_mixed_up(nano: Path, open_queue: OpenQueue, send: Send, submit: Submit) -> None:
    queue, model, ended = open_queue(), moesr.load(nano), []
    jobs = [submit(queue, send(f"{i}.png", size=(8 + i, 6)), {"seed": i}) for i in range(4)]
    assert [queue.count_ahead(job) for job in jobs[1:]] in ([1, 2, 3], [2, 3, 4])
    with ThreadPoolExecutor(4) as clients:
        clients.map(lambda job: ended.append(finish(job)), jobs)
    assert ended == jobs
    for job in jobs:
        expected = moesr.upscale(model, read_image(job.uploads[0].path), **job.settings)
        assert np.array_equal(np.asarray(Image.open(job.results[0].path)), expected.rgb)


def test_progress_only_grows_and_knows_phase_step_tile_and_expert(
    open_queue: OpenQueue, send: Send, submit: Submit
) -> None:
    job = submit(open_queue(), send("a.png", "b.png", size=(20, 12)), {"steps": 4, "tile": 64})
    seen, version = [], -1
    while not job.is_finished:
        version = job.wait(5, version)
        seen.append(job.progress)
    assert job.state == "done"
    fractions = [p.fraction for p in seen]
    assert fractions == sorted(fractions)
    assert fractions[0] < 0.1 < 0.9 < fractions[-1]
    sampling = [p for p in seen if p.event.phase == "sample"]
    assert {p.event.steps for p in sampling} == {4}
    assert max(p.event.tiles for p in sampling) > 1
    assert {p.event.expert for p in sampling} == {0, 1, 2, 3}
    assert {p.picture for p in seen} == {1, 2}
    assert any(p.preview and p.preview.startswith(b"\xff\xd8") for p in seen)


def test_the_jobs_of_a_client_that_has_left_end_and_the_others_do_not(
    open_queue: OpenQueue, send: Send, submit: Submit
) -> None:
    queue = open_queue()
    running, waiting = (submit(queue, send(f"{i}.png", size=(48, 48)), SLOW, client="a") for i in range(2))
    other, anonymous = submit(queue, send("other.png"), client="b"), submit(queue, send("anonymous.png"))
    queue.cancel_jobs_of("a")
    queue.cancel_jobs_of("")
    finish(running, waiting, other, anonymous)
    assert [job.state for job in (running, waiting, other, anonymous)] == ["cancelled"] * 2 + ["done"] * 2


def test_cancel_stops_inside_of_a_tile_and_the_next_job_runs(open_queue: OpenQueue, send: Send, submit: Submit) -> None:
    queue = open_queue()
    slow = submit(queue, send("slow.png", size=(48, 48)), SLOW)
    while slow.progress.event.step < 2:
        slow.wait(0.05)
    slow.cancel()
    assert slow.is_cancelled
    finish(slow, within=10)  # at once, but the machine may be busy
    assert (slow.state, slow.error, slow.results) == ("cancelled", "cancelled", [])
    assert finish(submit(queue, send("after.png"))).state == "done"


@pytest.mark.parametrize("moment", ["decode", "save", "writing"])
def test_cancel_says_one_thing(
    open_queue: OpenQueue, send: Send, submit: Submit, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Either there is no picture, or it is finished and said to be."""

    def show(job: Job) -> None:
        if job.progress.event.phase == moment:
            job.cancel()

    def write(*values: Any, **options: Any) -> Any:
        if moment == "writing":
            queue._running[0].cancel()
        return save(*values, **options)

    queue, save = open_queue(), worker.save_result
    monkeypatch.setattr(queue.host, "show", show)
    monkeypatch.setattr(worker, "save_result", write)
    job = finish(submit(queue, send("a.png")))
    files = [path for path in queue.results.rglob("*") if path.is_file()]
    if moment == "writing":
        assert (job.state, len(job.results)) == ("done", 1)
        assert "Done: 1 picture" in draw_outcome(job)
        assert "It was finished before it could be cancelled." in draw_outcome(job)
    else:
        assert (job.state, job.results, files) == ("cancelled", [], [])
        assert ">Cancelled<" in draw_outcome(job)


def test_finished_pictures_of_a_cancelled_batch_stay(open_queue: OpenQueue, send: Send, submit: Submit) -> None:
    job = submit(open_queue(), send(*[f"{i}.png" for i in range(50)]))
    while len(job.results) < 2:
        job.wait(0.05)
    job.cancel()
    assert finish(job).state == "cancelled"
    assert 2 <= len(job.results) < 50
    assert all(result.path.is_file() for result in job.results)
    assert job.archive is not None


def test_a_client_that_leaves_does_not_block_the_line(
    open_queue: OpenQueue, send: Send, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = open_queue()
    left = submit(queue, send("left.png", size=(48, 48)), SLOW)
    while left.state != "running":
        left.wait(0.02)
    monkeypatch.setattr(jobs_module, "PATIENCE", 0.5)
    also = submit(queue, send("also.png", size=(48, 48)), SLOW)
    assert finish(submit(queue, send("stays.png"))).state == "done"
    assert (left.state, left.error) == ("cancelled", "the client has left")
    assert also.state == "cancelled"
    assert also.progress.event.step == 0


def test_the_line_has_an_end(open_queue: OpenQueue, send: Send, submit: Submit) -> None:
    queue = open_queue(Limits(waiting=2))
    running = submit(queue, send("a.png", size=(48, 48)), SLOW)
    while running.state != "running":
        running.wait(0.02)
    waiting = [submit(queue, send("b.png"), SLOW) for _ in range(2)]
    with pytest.raises(SettingError, match="2 jobs are waiting already; try again"):
        submit(queue, send("c.png"), SLOW)
    waiting[0].cancel()
    submit(queue, send("c.png"), SLOW)


def test_time_is_limited(open_queue: OpenQueue, send: Send, submit: Submit) -> None:
    job = submit(open_queue(Limits(seconds=1)), send("a.png", size=(48, 48)), SLOW)
    assert finish(job, within=10).state == "cancelled"
    assert "longer than the 1 s that this page gives a job" in job.error


@pytest.mark.parametrize(
    ("limits", "change", "said"),
    [
        (Limits(files=1), {}, "2 pictures: this page takes 1"),
        (Limits(input_pixels=40), {}, "8 x 6 is 0.0 MP, this page takes at most"),
        (Limits(output_pixels=700), {}, "8 x 6 at x4 would be"),
        (Limits(), {"settings": {"steps": 5000}}, "steps 5000: give a whole number from 1 to 1000"),
        (Limits(), {"model": "nonesuch"}, "nonesuch.*not in the library"),
        (Limits(), {"model": "/etc/passwd"}, "not in the library"),
    ],
)
def test_what_cannot_be_is_said_before_the_line(
    open_queue: OpenQueue, send: Send, submit: Submit, limits: Limits, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(SettingError, match=said):
        submit(open_queue(limits), send("a.png", "b.png"), **change)
    with pytest.raises(SettingError, match="drop one first"):
        submit(open_queue(), [])


def test_a_job_that_breaks_is_said_and_the_next_one_runs(
    open_queue: OpenQueue, send: Send, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = open_queue()

    def fail(*_: object, **__: object) -> None:
        raise KeyError("secret")

    for place, message in (
        ("moesr.hosting.model_runner.upscale", "a.png: something went wrong (KeyError); the log says more"),
        ("moesr.page.worker.new_folder", "something went wrong (KeyError); the page's log says more"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, fail)
            job = finish(submit(queue, send("a.png")))
        assert (job.state, job.error) == ("failed", message)
    assert finish(submit(queue, send("a.png"))).state == "done"


def test_old_files_go_and_those_of_the_start_stay(
    host: StandaloneHost, open_queue: OpenQueue, send: Send, submit: Submit
) -> None:
    thumbnail = host.upload_folders[0] / "thumbnail.png"
    thumbnail.write_bytes(b"made with the page")
    time.sleep(0.05)  # clocks of file systems are coarse
    queue = open_queue()
    time.sleep(0.05)
    job = finish(submit(queue, send("a.png")))
    queue.delete_old_files()
    assert job.results[0].path.is_file()
    queue.limits, queue._cleaned_at = Limits(keep_seconds=0), float("-inf")
    queue.delete_old_files()
    assert not job.results[0].path.exists()
    assert list(host.upload_folders[0].iterdir()) == [thumbnail]
