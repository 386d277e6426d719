"""Jobs of a page: order, places, cancelling, clients that leave, limits, results and what they say of themselves."""

from __future__ import annotations

import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import moesr
from moesr.errors import MoESRError, SettingError
from moesr.images.files import read_image, read_text
from moesr.service import job as job_module
from moesr.service.adapter import Alone
from moesr.service.desk import Desk
from moesr.service.intake import Upload, accept
from moesr.service.job import Job, Stopped
from moesr.service.limits import Limits
from moesr.service.models import Models
from moesr.service.settings import Settings, from_text

pytestmark = pytest.mark.parametrize("nano", ["residual_shift"], indirect=True)

Send = Callable[..., list[Upload]]


@pytest.fixture
def adapter(nano: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Alone]:
    monkeypatch.setenv("MOESR_HOME", str(nano.parent))
    adapter = Alone()
    adapter.uploads[0].mkdir()
    yield adapter
    adapter.close()
    assert not adapter.folder.exists()


@pytest.fixture
def open_desk(adapter: Alone) -> Iterator[Callable[..., Desk]]:
    desks: list[Desk] = []

    def make(limits: Limits | None = None, **more: Any) -> Desk:
        desks.append(Desk(adapter, limits or Limits(), **more))
        return desks[-1]

    yield make
    for desk in desks:
        desk.close()


@pytest.fixture
def send(adapter: Alone) -> Send:
    """Puts random pictures where uploads lie, all of one size or one for each name."""
    rng = np.random.default_rng(0)

    def make(*names: str, size: tuple[int, int] = (8, 6)) -> list[Upload]:
        uploads = []
        for name in names:
            path = adapter.uploads[0] / name
            Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), np.uint8)).save(path)
            uploads.append(accept(path, adapter.uploads))
        return uploads

    return make


@pytest.fixture
def quick(nano: Path) -> Settings:
    return Settings(model=nano.stem, steps=1)


def finish(*jobs: Job, within: float = 60.0) -> None:
    """Do as a client does that waits for its jobs."""
    end = time.monotonic() + within
    while not all(job.finished for job in jobs):
        for job in jobs:
            job.wait(0.02)
        assert time.monotonic() < end, [job.state for job in jobs]


def test_a_result_is_what_upscale_makes_and_says_how(
    nano: Path, open_desk: Callable[..., Desk], send: Send, quick: Settings
) -> None:
    desk, settings = open_desk(), replace(quick, seed=7, fidelity=0.5, scale=2.5)
    uploads = send("one.png")
    job = desk.submit(uploads, settings)
    finish(job)
    assert (job.state, job.failures, job.error) == ("done", [], "")
    (result,) = job.results
    assert (result.name, result.before_size, result.size) == ("one_x2.5.png", (8, 6), (20, 15))
    expected = moesr.upscale(moesr.load(nano), read_image(uploads[0].path), **settings.arguments())
    assert np.array_equal(np.asarray(Image.open(result.path)), expected.rgb)
    restored = from_text(read_text(result.path))
    assert restored is not None
    assert restored == (settings, desk.adapter.models.digest(nano.stem))
    assert job.archive is None


def test_the_models_own_scale_and_steps_are_said_too(
    nano: Path, open_desk: Callable[..., Desk], send: Send, quick: Settings
) -> None:
    job = open_desk().submit(send("one.png"), replace(quick, steps=None))
    finish(job)
    restored = from_text(read_text(job.results[0].path))
    assert restored is not None
    assert (restored[0].scale, restored[0].steps) == (4.0, 4)


def test_a_batch_is_zipped_and_a_bad_picture_is_named(
    open_desk: Callable[..., Desk], send: Send, adapter: Alone, quick: Settings
) -> None:
    good = send("a.png", "b.webp", "A.png")
    bad = adapter.uploads[0] / "bad.png"
    bad.write_bytes(good[0].path.read_bytes()[:60])
    job = open_desk().submit([good[0], accept(bad, adapter.uploads), *good[1:]], quick)
    finish(job)
    assert job.state == "done"
    assert [result.name for result in job.results] == ["a_x4.png", "b_x4.png", "A_x4-2.png"]
    assert len(job.failures) == 1
    assert job.failures[0].startswith("bad.png: damaged picture")
    assert str(adapter.folder) not in job.failures[0]
    assert job.archive is not None
    with zipfile.ZipFile(job.archive) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [result.name for result in job.results]
        assert archive.read("b_x4.png") == job.results[1].path.read_bytes()


def test_four_clients_are_served_in_order_and_not_mixed_up(
    nano: Path, open_desk: Callable[..., Desk], send: Send, quick: Settings
) -> None:
    desk = open_desk()
    jobs = [desk.submit(send(f"{i}.png", size=(8 + i, 6)), replace(quick, seed=i, steps=3)) for i in range(4)]
    assert [desk.ahead(job) for job in jobs[1:]] in ([1, 2, 3], [2, 3, 4])
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
        expected = moesr.upscale(model, read_image(job.uploads[0].path), **job.settings.arguments())
        assert np.array_equal(np.asarray(Image.open(job.results[0].path)), expected.rgb)


def test_progress_only_grows_and_knows_phase_step_tile_and_expert(
    nano: Path, open_desk: Callable[..., Desk], send: Send, quick: Settings
) -> None:
    job = open_desk().submit(send("a.png", "b.png", size=(20, 12)), replace(quick, steps=4, tile=64))
    seen, version = [], -1
    while not job.finished:
        version = job.wait(5, version)
        seen.append(job.progress)
    assert job.state == "done"
    shares = [p.share for p in seen]
    assert shares == sorted(shares)
    assert shares[0] < 0.1
    assert shares[-1] > 0.9
    sampling = [p for p in seen if p.phase == "sample"]
    assert {p.steps for p in sampling} == {4}
    assert max(p.tiles for p in sampling) > 1
    assert {p.expert for p in sampling} == {0, 1, 2, 3}
    assert {p.picture for p in seen} == {1, 2}
    assert any(p.preview and p.preview.startswith(b"\xff\xd8") for p in seen)


def test_the_jobs_of_a_client_that_has_left_end_and_the_others_do_not(
    nano: Path, open_desk: Callable[..., Desk], send: Send, quick: Settings
) -> None:
    desk = open_desk()
    slow = replace(quick, steps=1000)
    running, waiting = (desk.submit(send(f"{i}.png", size=(48, 48)), slow, client="a") for i in range(2))
    other = desk.submit(send("other.png"), quick, client="b")
    anonymous = desk.submit(send("anonymous.png"), quick)
    desk.left("a")
    desk.left("")
    finish(running, waiting, other, anonymous)
    assert [job.state for job in (running, waiting, other, anonymous)] == ["cancelled"] * 2 + ["done"] * 2


def test_cancel_stops_inside_of_a_tile_and_the_next_job_runs(
    nano: Path, open_desk: Callable[..., Desk], send: Send, quick: Settings
) -> None:
    desk = open_desk()
    slow = desk.submit(send("slow.png", size=(48, 48)), replace(quick, steps=1000))
    while slow.progress.step < 2:
        slow.wait(0.05)
    began = time.monotonic()
    slow.cancel()
    assert slow.stopping
    finish(slow)
    assert time.monotonic() - began < 1
    assert (slow.state, slow.error, slow.results) == ("cancelled", "cancelled", [])
    after = desk.submit(send("after.png"), quick)
    finish(after)
    assert after.state == "done"


def test_a_layer_asks_before_it_runs(open_desk: Callable[..., Desk], send: Send, quick: Settings) -> None:
    """Between two tiles there is no time on a slow machine: the job ends within one."""
    desk = open_desk()
    job = desk.submit(send("a.png"), replace(quick, steps=1))
    asked: list[float] = []
    check = job.check

    def counted() -> None:
        asked.append(time.monotonic())
        check()

    job.check = counted  # type: ignore[method-assign]
    finish(job)
    assert len(asked) > 50


def test_finished_pictures_of_a_cancelled_batch_stay(
    open_desk: Callable[..., Desk], send: Send, quick: Settings
) -> None:
    job = open_desk().submit(send(*[f"{i}.png" for i in range(200)]), quick)
    while len(job.results) < 2:
        job.wait(0.05)
    job.cancel()
    finish(job)
    assert job.state == "cancelled"
    assert 2 <= len(job.results) < 200
    assert all(result.path.is_file() for result in job.results)
    assert job.archive is not None


def test_a_client_that_leaves_does_not_block_the_line(
    open_desk: Callable[..., Desk], send: Send, quick: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_module, "GONE", 0.5)
    desk = open_desk()
    left = desk.submit(send("left.png", size=(48, 48)), replace(quick, steps=1000))
    also = desk.submit(send("also.png", size=(48, 48)), replace(quick, steps=1000))
    stays = desk.submit(send("stays.png"), quick)
    finish(stays, within=20)
    assert stays.state == "done"
    assert (left.state, left.error) == ("cancelled", "the client has left")
    assert also.state == "cancelled"
    assert also.progress.step == 0


def test_the_line_has_an_end(open_desk: Callable[..., Desk], send: Send, quick: Settings) -> None:
    desk = open_desk(Limits(waiting=2))
    slow = replace(quick, steps=1000)
    running = desk.submit(send("a.png", size=(48, 48)), slow)
    while running.state != "running":
        running.wait(0.02)
    waiting = [desk.submit(send("b.png"), slow) for _ in range(2)]
    with pytest.raises(SettingError, match="2 jobs are waiting already; try again"):
        desk.submit(send("c.png"), slow)
    waiting[0].cancel()
    desk.submit(send("c.png"), slow)


def test_time_is_limited(open_desk: Callable[..., Desk], send: Send, quick: Settings) -> None:
    desk = open_desk(Limits(seconds=0.5))
    job = desk.submit(send("a.png", size=(48, 48)), replace(quick, steps=1000))
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
        (Limits(), {"steps": 5000}, "has 1000 timesteps"),
        (Limits(), {"model": "nonesuch"}, "nonesuch.*not in the library"),
        (Limits(), {"model": "/etc/passwd"}, "not in the library"),
    ],
)
def test_what_cannot_be_is_said_before_the_line(
    open_desk: Callable[..., Desk], send: Send, quick: Settings, limits: Limits, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(SettingError, match=said):
        open_desk(limits).submit(send("a.png", "b.png"), replace(quick, **change))


def test_no_picture(open_desk: Callable[..., Desk], quick: Settings) -> None:
    with pytest.raises(SettingError, match="drop one first"):
        open_desk().submit([], quick)


def test_a_job_that_breaks_is_said_and_the_next_one_runs(
    open_desk: Callable[..., Desk], send: Send, quick: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = open_desk()

    def broken(*_: object, **__: object) -> None:
        raise KeyError("secret")

    with monkeypatch.context() as patch:
        patch.setattr("moesr.service.worker.upscale", broken)
        job = desk.submit(send("a.png"), quick)
        finish(job)
    assert job.state == "failed"
    assert job.error == "a.png: something went wrong (KeyError); the log says more"
    with monkeypatch.context() as patch:
        patch.setattr("moesr.service.worker.new_folder", broken)
        job = desk.submit(send("a.png"), quick)
        finish(job)
    assert job.error == "something went wrong (KeyError); the page's log says more"
    job = desk.submit(send("a.png"), quick)
    finish(job)
    assert job.state == "done"


def test_the_host_holds_its_lock_interrupts_and_sees_progress(
    adapter: Alone, send: Send, quick: Settings, monkeypatch: pytest.MonkeyPatch
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

    monkeypatch.setattr(adapter, "turn", lambda job: Lock())
    monkeypatch.setattr(adapter, "show", lambda job: shown.append(job.progress.phase))
    monkeypatch.setattr(adapter, "check", check)
    desk = Desk(adapter)
    job = desk.submit(send("a.png"), replace(quick, steps=8))
    finish(job)
    desk.close()
    assert (job.state, job.error) == ("cancelled", "interrupted by the host")
    assert held == ["in", "out"]


def test_old_files_go_and_those_of_the_start_stay(
    adapter: Alone, open_desk: Callable[..., Desk], send: Send, quick: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    thumbnail = adapter.uploads[0] / "thumbnail.png"
    thumbnail.write_bytes(b"made with the page")
    time.sleep(0.05)  # clocks of file systems are coarse
    desk = open_desk()
    job = desk.submit(send("a.png"), quick)
    finish(job)
    assert job.results[0].path.is_file()
    desk.purge()
    assert job.results[0].path.is_file()
    desk.limits, desk._purged = Limits(keep_seconds=0), float("-inf")
    desk.purge()
    assert not job.results[0].path.exists()
    assert list(adapter.uploads[0].iterdir()) == [thumbnail]


def test_the_oldest_files_go_when_they_take_too_much_room(
    adapter: Alone, open_desk: Callable[..., Desk], quick: Settings
) -> None:
    desk = open_desk(Limits(disk_bytes=2500))
    time.sleep(0.05)
    for i in range(4):
        (adapter.uploads[0] / str(i)).mkdir()
        (adapter.uploads[0] / str(i) / "upload").write_bytes(bytes(1000))
        time.sleep(0.02)
    desk.purge()
    assert sorted(p.name for p in adapter.uploads[0].iterdir()) == ["2", "3"]


def test_models_are_looked_into_once_until_they_change(nano: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOESR_HOME", str(nano.parent))
    models = Models()
    assert nano.stem in models.names()
    assert models.default in models.names()
    assert models.config(nano.stem) is models.config(nano.stem)
    digest = models.digest(nano.stem)
    assert len(digest) == 16
    plan = models.plan(nano.stem)
    assert plan.experts == [3, 2, 1, 0]
    assert plan.noise == sorted(plan.noise, reverse=True)
    assert 0 < min(plan.noise) < max(plan.noise) <= 1
    with pytest.raises(MoESRError):
        models.plan(nano.stem, 1001)
    (nano.parent / "broken.safetensors").write_bytes(b"not one")
    with pytest.raises(MoESRError, match=r"^broken: ") as raised:
        models.config("broken")
    (nano.parent / "broken.safetensors").unlink()
    assert str(nano.parent) not in str(raised.value)
