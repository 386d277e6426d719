"""Jobs of a page: order, places, cancelling, clients that leave, limits, results and what they say of themselves."""

from __future__ import annotations

import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import moesr
from moesr.errors import MoESRError, SettingError
from moesr.hosting.facts import ModelFacts, plan_steps
from moesr.hosting.runner import Stopped
from moesr.images.files import read_image
from moesr.page import jobs as jobs_module
from moesr.page.fragments import outcome
from moesr.page.host import StandaloneHost
from moesr.page.job_queue import JobQueue
from moesr.page.jobs import Job
from moesr.page.limits import Limits
from moesr.page.uploads import Upload, accept
from moesr.record import read_run

pytestmark = pytest.mark.parametrize("nano", ["residual_shift"], indirect=True)

Send = Callable[..., list[Upload]]
Settings = dict[str, Any]


@pytest.fixture
def host(nano: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandaloneHost]:
    monkeypatch.setenv("MOESR_HOME", str(nano.parent))
    host = StandaloneHost()
    host.upload_folders[0].mkdir()
    yield host
    host.close()
    assert not host.folder.exists()


@pytest.fixture
def open_queue(host: StandaloneHost) -> Iterator[Callable[..., JobQueue]]:
    queues: list[JobQueue] = []

    def make(limits: Limits | None = None, **more: Any) -> JobQueue:
        queues.append(JobQueue(host, limits or Limits(), **more))
        return queues[-1]

    yield make
    for queue in queues:
        queue.close()


@pytest.fixture
def send(host: StandaloneHost) -> Send:
    """Puts random pictures where uploads lie, all of one size or one for each name."""
    rng = np.random.default_rng(0)

    def make(*names: str, size: tuple[int, int] = (8, 6)) -> list[Upload]:
        uploads = []
        for name in names:
            path = host.upload_folders[0] / name
            Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), np.uint8)).save(path)
            uploads.append(accept(path, host.upload_folders))
        return uploads

    return make


@pytest.fixture
def quick(nano: Path) -> Settings:
    return {"model": nano.stem, "steps": 1}


def submit(queue: JobQueue, uploads: list[Upload], values: Settings, **more: Any) -> Job:
    settings = {**values}
    return queue.submit(Job(uploads, settings.pop("model"), settings, **more))


def finish(*jobs: Job, within: float = 60.0) -> None:
    """Do as a client does that waits for its jobs."""
    end = time.monotonic() + within
    while not all(job.is_finished for job in jobs):
        for job in jobs:
            job.wait(0.02)
        assert time.monotonic() < end, [job.state for job in jobs]


def test_a_result_is_what_upscale_makes_and_says_how(
    nano: Path, open_queue: Callable[..., JobQueue], send: Send, quick: Settings
) -> None:
    queue, settings = open_queue(), {**quick, "seed": 7, "fidelity": 0.5, "scale": 2.5}
    uploads = send("one.png")
    job = submit(queue, uploads, settings)
    finish(job)
    assert (job.state, job.failures, job.error) == ("done", [], "")
    (result,) = job.results
    assert (result.path.name, result.before_size, result.size) == ("one_x2.5.png", (8, 6), (20, 15))
    own = {name: value for name, value in settings.items() if name != "model"}
    expected = moesr.upscale(moesr.load(nano), read_image(uploads[0].path), **own)
    assert np.array_equal(np.asarray(Image.open(result.path)), expected.rgb)
    found = read_run(result.path)
    assert found is not None
    assert (found.model, found.model_hash) == (nano.stem, queue.host.facts.compute_hash(nano.stem))
    assert own.items() <= found.settings.items()
    assert job.archive is None


@pytest.mark.parametrize("format", ["jpg", "webp", "tiff", "same"])
def test_every_format_says_the_models_own_scale_and_steps(
    open_queue: Callable[..., JobQueue], send: Send, quick: Settings, format: str
) -> None:
    job = submit(open_queue(), send("one.webp"), {**quick, "steps": None}, format=format)
    finish(job)
    (result,) = job.results
    assert result.path.name == f"one_x4.{ {'tiff': 'tif', 'same': 'webp'}.get(format, format) }"
    found = read_run(result.path)
    assert found is not None
    assert (found.settings["scale"], found.settings["steps"]) == (4.0, 4)


def test_a_batch_is_zipped_and_a_bad_picture_is_named(
    open_queue: Callable[..., JobQueue], send: Send, host: StandaloneHost, quick: Settings
) -> None:
    good = send("a.png", "b.webp", "A.png")
    bad = host.upload_folders[0] / "bad.png"
    bad.write_bytes(good[0].path.read_bytes()[:60])
    job = submit(open_queue(), [good[0], accept(bad, host.upload_folders), *good[1:]], quick)
    finish(job)
    assert job.state == "done"
    assert [result.path.name for result in job.results] == ["a_x4.png", "b_x4.png", "A_x4-2.png"]
    assert len(job.failures) == 1
    assert job.failures[0].startswith("bad.png: damaged picture")
    assert str(host.folder) not in job.failures[0]
    assert job.archive is not None
    with zipfile.ZipFile(job.archive) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [result.path.name for result in job.results]
        assert archive.read("b_x4.png") == job.results[1].path.read_bytes()


def test_four_clients_are_served_in_order_and_not_mixed_up(
    nano: Path, open_queue: Callable[..., JobQueue], send: Send, quick: Settings
) -> None:
    queue = open_queue()
    jobs = [submit(queue, send(f"{i}.png", size=(8 + i, 6)), {**quick, "seed": i, "steps": 3}) for i in range(4)]
    assert [queue.count_ahead(job) for job in jobs[1:]] in ([1, 2, 3], [2, 3, 4])
    ended: list[int] = []

    def wait(i: int) -> None:
        finish(jobs[i])
        ended.append(i)

    threads = [threading.Thread(target=wait, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ended == [0, 1, 2, 3]
    model = moesr.load(nano)
    for job in jobs:
        expected = moesr.upscale(model, read_image(job.uploads[0].path), **job.settings)
        assert np.array_equal(np.asarray(Image.open(job.results[0].path)), expected.rgb)


def test_progress_only_grows_and_knows_phase_step_tile_and_expert(
    nano: Path, open_queue: Callable[..., JobQueue], send: Send, quick: Settings
) -> None:
    job = submit(open_queue(), send("a.png", "b.png", size=(20, 12)), {**quick, "steps": 4, "tile": 64})
    seen, version = [], -1
    while not job.is_finished:
        version = job.wait(5, version)
        seen.append(job.progress)
    assert job.state == "done"
    shares = [p.fraction for p in seen]
    assert shares == sorted(shares)
    assert shares[0] < 0.1
    assert shares[-1] > 0.9
    sampling = [p for p in seen if p.event.phase == "sample"]
    assert {p.event.steps for p in sampling} == {4}
    assert max(p.event.tiles for p in sampling) > 1
    assert {p.event.expert for p in sampling} == {0, 1, 2, 3}
    assert {p.picture for p in seen} == {1, 2}
    assert any(p.preview and p.preview.startswith(b"\xff\xd8") for p in seen)


def test_the_jobs_of_a_client_that_has_left_end_and_the_others_do_not(
    nano: Path, open_queue: Callable[..., JobQueue], send: Send, quick: Settings
) -> None:
    queue = open_queue()
    slow = {**quick, "steps": 1000}
    running, waiting = (submit(queue, send(f"{i}.png", size=(48, 48)), slow, client="a") for i in range(2))
    other = submit(queue, send("other.png"), quick, client="b")
    anonymous = submit(queue, send("anonymous.png"), quick)
    queue.cancel_jobs_of("a")
    queue.cancel_jobs_of("")
    finish(running, waiting, other, anonymous)
    assert [job.state for job in (running, waiting, other, anonymous)] == ["cancelled"] * 2 + ["done"] * 2


def test_cancel_stops_inside_of_a_tile_and_the_next_job_runs(
    nano: Path, open_queue: Callable[..., JobQueue], send: Send, quick: Settings
) -> None:
    queue = open_queue()
    slow = submit(queue, send("slow.png", size=(48, 48)), {**quick, "steps": 1000})
    while slow.progress.event.step < 2:
        slow.wait(0.05)
    began = time.monotonic()
    slow.cancel()
    assert slow.is_cancelled
    finish(slow)
    assert time.monotonic() - began < 1
    assert (slow.state, slow.error, slow.results) == ("cancelled", "cancelled", [])
    after = submit(queue, send("after.png"), quick)
    finish(after)
    assert after.state == "done"


def test_a_layer_asks_before_it_runs(open_queue: Callable[..., JobQueue], send: Send, quick: Settings) -> None:
    """Between two tiles there is no time on a slow machine: the job ends within one."""
    queue = open_queue()
    job = submit(queue, send("a.png"), {**quick, "steps": 1})
    asked: list[float] = []
    check = job.check

    def counted() -> None:
        asked.append(time.monotonic())
        check()

    job.check = counted  # type: ignore[method-assign]
    finish(job)
    assert len(asked) > 50


@pytest.mark.parametrize("moment", ["decode", "save", "writing"])
def test_cancel_says_one_thing(
    host: StandaloneHost,
    open_queue: Callable[..., JobQueue],
    send: Send,
    quick: Settings,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    """Either there is no picture, or it is finished and said to be."""
    from moesr.page import worker

    def show(job: Job) -> None:
        if job.progress.event.phase == moment:
            job.cancel()

    def write(*values: Any) -> Any:
        if moment == "writing":
            queue._running[0].cancel()
        return save(*values)

    save = worker.save_result
    monkeypatch.setattr(host, "show", show)
    monkeypatch.setattr(worker, "save_result", write)
    queue = open_queue()
    job = submit(queue, send("a.png"), quick)
    finish(job)
    files = [path for path in queue.results.rglob("*") if path.is_file()]
    if moment == "writing":
        assert (job.state, len(job.results)) == ("done", 1)
        assert "Done: 1 picture" in outcome(job)
        assert "It was finished before it could be cancelled." in outcome(job)
    else:
        assert (job.state, job.results, files) == ("cancelled", [], [])
        assert ">Cancelled<" in outcome(job)


def test_finished_pictures_of_a_cancelled_batch_stay(
    open_queue: Callable[..., JobQueue], send: Send, quick: Settings
) -> None:
    job = submit(open_queue(), send(*[f"{i}.png" for i in range(200)]), quick)
    while len(job.results) < 2:
        job.wait(0.05)
    job.cancel()
    finish(job)
    assert job.state == "cancelled"
    assert 2 <= len(job.results) < 200
    assert all(result.path.is_file() for result in job.results)
    assert job.archive is not None


def test_a_client_that_leaves_does_not_block_the_line(
    open_queue: Callable[..., JobQueue], send: Send, quick: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_module, "PATIENCE", 0.5)
    queue = open_queue()
    left = submit(queue, send("left.png", size=(48, 48)), {**quick, "steps": 1000})
    also = submit(queue, send("also.png", size=(48, 48)), {**quick, "steps": 1000})
    stays = submit(queue, send("stays.png"), quick)
    finish(stays, within=20)
    assert stays.state == "done"
    assert (left.state, left.error) == ("cancelled", "the client has left")
    assert also.state == "cancelled"
    assert also.progress.event.step == 0


def test_the_line_has_an_end(open_queue: Callable[..., JobQueue], send: Send, quick: Settings) -> None:
    queue = open_queue(Limits(waiting=2))
    slow = {**quick, "steps": 1000}
    running = submit(queue, send("a.png", size=(48, 48)), slow)
    while running.state != "running":
        running.wait(0.02)
    waiting = [submit(queue, send("b.png"), slow) for _ in range(2)]
    with pytest.raises(SettingError, match="2 jobs are waiting already; try again"):
        submit(queue, send("c.png"), slow)
    waiting[0].cancel()
    submit(queue, send("c.png"), slow)


def test_time_is_limited(open_queue: Callable[..., JobQueue], send: Send, quick: Settings) -> None:
    queue = open_queue(Limits(seconds=0.5))
    job = submit(queue, send("a.png", size=(48, 48)), {**quick, "steps": 1000})
    finish(job, within=10)
    assert job.state == "cancelled"
    assert "longer than the 0 s" in job.error or "longer than the 1 s" in job.error


@pytest.mark.parametrize(
    ("limits", "change", "said"),
    [
        (Limits(files=1), {}, "2 pictures: this page takes 1"),
        (Limits(file_bytes=50), {}, "this page takes files of at most"),
        (Limits(input_pixels=40), {}, "8 x 6 is 0.0 MP, this page takes at most"),
        (Limits(output_pixels=700), {}, "8 x 6 at x4 would be"),
        (Limits(), {"steps": 5000}, "steps 5000: give a whole number from 1 to 1000"),
        (Limits(), {"model": "nonesuch"}, "nonesuch.*not in the library"),
        (Limits(), {"model": "/etc/passwd"}, "not in the library"),
    ],
)
def test_what_cannot_be_is_said_before_the_line(
    open_queue: Callable[..., JobQueue], send: Send, quick: Settings, limits: Limits, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(SettingError, match=said):
        submit(open_queue(limits), send("a.png", "b.png"), {**quick, **change})


def test_no_picture(open_queue: Callable[..., JobQueue], quick: Settings) -> None:
    with pytest.raises(SettingError, match="drop one first"):
        submit(open_queue(), [], quick)


def test_a_job_that_breaks_is_said_and_the_next_one_runs(
    open_queue: Callable[..., JobQueue], send: Send, quick: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = open_queue()

    def broken(*_: object, **__: object) -> None:
        raise KeyError("secret")

    with monkeypatch.context() as patch:
        patch.setattr("moesr.hosting.runner.upscale", broken)
        job = submit(queue, send("a.png"), quick)
        finish(job)
    assert job.state == "failed"
    assert job.error == "a.png: something went wrong (KeyError); the log says more"
    with monkeypatch.context() as patch:
        patch.setattr("moesr.page.worker.new_folder", broken)
        job = submit(queue, send("a.png"), quick)
        finish(job)
    assert job.error == "something went wrong (KeyError); the page's log says more"
    job = submit(queue, send("a.png"), quick)
    finish(job)
    assert job.state == "done"


def test_the_host_holds_its_lock_interrupts_and_sees_progress(
    host: StandaloneHost, send: Send, quick: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[str] = []
    shown: list[str] = []

    class Lock:
        def __enter__(self) -> None:
            held.append("in")

        def __exit__(self, *_: object) -> None:
            held.append("out")

    def check() -> None:
        if "sample" in shown:
            raise Stopped("interrupted by the host")

    monkeypatch.setattr(host, "begin_job", lambda job: Lock())
    monkeypatch.setattr(host, "show", lambda job: shown.append(job.progress.event.phase))
    monkeypatch.setattr(host, "check", check)
    queue = JobQueue(host)
    job = submit(queue, send("a.png"), {**quick, "steps": 8})
    finish(job)
    queue.close()
    assert (job.state, job.error) == ("cancelled", "interrupted by the host")
    assert held == ["in", "out"]


def test_old_files_go_and_those_of_the_start_stay(
    host: StandaloneHost,
    open_queue: Callable[..., JobQueue],
    send: Send,
    quick: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    thumbnail = host.upload_folders[0] / "thumbnail.png"
    thumbnail.write_bytes(b"made with the page")
    time.sleep(0.05)  # clocks of file systems are coarse
    queue = open_queue()
    job = submit(queue, send("a.png"), quick)
    finish(job)
    assert job.results[0].path.is_file()
    queue.delete_old_files()
    assert job.results[0].path.is_file()
    queue.limits, queue._cleaned_at = Limits(keep_seconds=0), float("-inf")
    queue.delete_old_files()
    assert not job.results[0].path.exists()
    assert list(host.upload_folders[0].iterdir()) == [thumbnail]


def test_the_oldest_files_go_when_they_take_too_much_room(
    host: StandaloneHost, open_queue: Callable[..., JobQueue], quick: Settings
) -> None:
    queue = open_queue(Limits(disk_bytes=2500))
    time.sleep(0.05)
    for i in range(4):
        (host.upload_folders[0] / str(i)).mkdir()
        (host.upload_folders[0] / str(i) / "upload").write_bytes(bytes(1000))
        time.sleep(0.02)
    queue.delete_old_files()
    assert sorted(p.name for p in host.upload_folders[0].iterdir()) == ["2", "3"]


def test_models_are_looked_into_once_until_they_change(nano: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOESR_HOME", str(nano.parent))
    models = ModelFacts()
    assert nano.stem in models.list_names()
    assert models.default in models.list_names()
    assert models.read_config(nano.stem) is models.read_config(nano.stem)
    digest = models.compute_hash(nano.stem)
    assert len(digest) == 16
    plan = plan_steps(models.read_config(nano.stem))
    assert plan.experts == [3, 2, 1, 0]
    assert plan.noise == sorted(plan.noise, reverse=True)
    assert 0 < min(plan.noise) < max(plan.noise) <= 1
    with pytest.raises(MoESRError):
        plan_steps(models.read_config(nano.stem), steps=1001)
    (nano.parent / "broken.safetensors").write_bytes(b"not one")
    with pytest.raises(MoESRError, match=r"^broken: ") as raised:
        models.read_config("broken")
    (nano.parent / "broken.safetensors").unlink()
    assert str(nano.parent) not in str(raised.value)
