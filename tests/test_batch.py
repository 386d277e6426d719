"""Jobs of many pictures: equal bytes however the work is cut, and nothing lost, with real processes that are killed."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import moesr
from moesr.batch.job import estimate
from moesr.batch.journal import Journal
from moesr.batch.manifest import plan_rows
from moesr.batch.sources import Address, list_addresses
from moesr.cli import main
from moesr.errors import SettingError
from moesr.inputs import PassedOver
from tests.small_models import save_nano

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_nano("residual_shift", tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures in two folders."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(8):
        draw(folder / "ab"[i % 2] / f"{i}.png", i)
    return folder


@pytest.fixture(scope="module")
def undisturbed(model: str, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Hashes of the results of one worker that nothing happened to."""
    out = tmp_path_factory.mktemp("undisturbed")
    report = moesr.batch(photos, out, workers=1, model=model, steps=1)
    assert (report.done, report.failed) == (8, [])
    return hashes(out)


def draw(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (12, 16, 3), np.uint8)).save(path)
    return path


def hashes(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and ".moesr-batch" not in path.parts)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def command(photos: Path, out: Path, model: str, *more: str) -> list[str]:
    return ["batch", str(photos), "-o", str(out), "--model", model, "--steps", "1", "--workers", "1", *more]


def start(arguments: list[str], **options: Any) -> subprocess.Popen[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", **options.pop("env", {})}
    return subprocess.Popen(
        [sys.executable, "-m", "moesr", *arguments], cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True, **options
    )


def read_lines(out: Path) -> list[dict[str, Any]]:
    """The whole lines of all journals."""
    lines = []
    for path in sorted((out / ".moesr-batch").glob("journal-*")):
        lines += [json.loads(line) for line in path.read_text().splitlines(True) if line.endswith("\n")]
    return lines


def wait_until_done(out: Path, count: int) -> list[dict[str, Any]]:
    """The journal once that many pictures are done and another one is at work."""
    for _ in range(3000):
        lines = read_lines(out) if out.exists() else []
        if sum(line.get("status") == "done" for line in lines) >= count and "attempt" in lines[-1]:
            return lines
        time.sleep(0.02)
    raise AssertionError(f"not {count} done: {lines}")


def errors(text: str) -> list[str]:
    assert "Traceback" not in text
    return [line for line in text.splitlines() if line.startswith("error:")]


# ---- what a job is


def test_every_kind_of_input_gives_addresses_in_order(tmp_path: Path) -> None:
    for seed, name in enumerate(("in/x/1.png", "in/x/2.png", "in/.hidden.png", "other/3.png")):
        draw(tmp_path / name, seed)
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    one, three = tmp_path / "in" / "x" / "1.png", tmp_path / "other" / "3.png"
    (tmp_path / "relative.txt").write_text("in/x/1.png\n\nother/3.png\n", "utf-8")
    (tmp_path / "absolute.lst").write_text(f"{one}\n{three}\n", "utf-8")
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        archive.add(one, "../k/1.png")
        archive.add(tmp_path / "in" / "notes.txt", "k/1.txt")
        archive.add(three, "k/3.png")

    def listed(*names: str) -> list[str]:
        found = list_addresses([str(tmp_path / name) for name in names], str(tmp_path / "out"), PassedOver())
        return [(address.folder / address.path.name).as_posix() for address in found]

    assert listed("in") == ["x/1.png", "x/2.png"]
    assert listed("in/x/*.png", "other/3.png") == ["1.png", "2.png", "3.png"]
    assert listed("relative.txt") == listed("absolute.lst") == ["in/x/1.png", "other/3.png"]
    assert listed("set.tar") == ["set/k/1.png", "set/k/3.png"]
    by_address = list_addresses([(tmp_path / "in").as_uri()], "s3://b/o", PassedOver())
    assert [address.folder.as_posix() for address in by_address] == ["x", "x"]
    for name in ("missing", "set.tar.gz", "*.jpg"):
        (tmp_path / "set.tar.gz").touch()
        with pytest.raises(SettingError):
            listed(name)


def test_a_table_of_paths_and_a_report_as_parquet(model: str, photos: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow cannot be imported")
    import pyarrow

    paths = sorted(str(path) for path in photos.rglob("*.png"))[:2]
    parquet.write_table(pyarrow.table({"file": [*paths, str(tmp_path / "gone.png")]}), tmp_path / "set.parquet")
    with pytest.raises(SettingError, match="no column path"):
        moesr.batch(tmp_path / "set.parquet", tmp_path / "out", model=model, workers=1)
    report = moesr.batch(
        tmp_path / "set.parquet", tmp_path / "out", model=model, workers=1, steps=1, column="file", resume=True,
        report=str(tmp_path / "report.parquet"),
    )  # fmt: skip
    assert (report.done, len(report.failed)) == (2, 1)
    rows = parquet.read_table(tmp_path / "report.parquet").to_pylist()
    assert [row["source"] for row in rows] == sorted(row["source"] for row in rows)
    assert {row["status"] for row in rows} == {"done", "failed"}
    assert {row["result_width"] for row in rows if row["status"] == "done"} == {64}


def test_seeds_and_ids_are_of_the_path_alone(tmp_path: Path) -> None:
    def plan(names: list[str], output: str) -> dict[str, Any]:
        addresses = [Address(Path(name), Path(name).parent, name) for name in names]
        return {row.source: row for row in plan_rows(addresses, {a.folder for a in addresses}, output, ".png")}

    first = plan(["x/1.png", "x/1.jpg", "y/1.png"], str(tmp_path))
    second = plan(["y/1.png", "x/1.jpg"], "s3://bucket/out/")
    assert all(first[name].seed == second[name].seed for name in second)
    assert len({row.id for row in first.values()}) == len({row.target for row in first.values()}) == 3
    assert second["y/1.png"].target == "s3://bucket/out/y/1.png"
    assert first["x/1.jpg"].seed == 5423398053752506170  # on every machine, for ever


def test_a_torn_journal_is_read_and_gone_on_with(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    assert journal.start("a", worker="w", limit=2) == 1
    journal.finish({"id": "a", "status": "done", "bytes": 5})
    assert journal.start("b", worker="w", limit=2) == 1
    journal.close()
    with journal.path.open("ab") as file:
        file.write(b'{"id":"b","status":"do')
    for attempt in (2, 3, 3):  # beyond the limit no more is noted
        journal = Journal(tmp_path)
        assert (journal.find("a").status, journal.find("a").bytes) == ("done", 5)
        assert journal.start("a", worker="w", limit=2) == 0
        assert journal.start("b", worker="w", limit=2) == attempt
        journal.close()


@pytest.mark.parametrize(
    "options",
    [{"shard": "2/2"}, {"workers": "1:3"}, {"workers": 0}, {"on_error": "x"}, {"attempts": 0}, {"quality": 101},
     {"engine": "dask"}, {"stepz": 4}, {"steps": 0}],
)  # fmt: skip
def test_wrong_options_are_told_before_the_work(photos: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(SettingError):
        moesr.batch(photos, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_driver_keeps_no_list(tmp_path: Path) -> None:
    script = (
        "import resource, sys; from pathlib import Path; from moesr.batch.manifest import *; from moesr.batch.sources "
        "import Address\nn = int(sys.argv[1]); names = (Path(f'folder{i // 1000}/picture{i}.png') for i in range(n))\n"
        "write_manifest(Path(sys.argv[2]), (Address(p, p.parent, '/data/' + str(p)) for p in names), '/out', '.png')\n"
        "print(sum(1 for _ in read_manifest(Path(sys.argv[2]))), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peaks = []
    for count in (1000, 100000):
        arguments = [sys.executable, "-c", script, str(count), str(tmp_path / "m.jsonl")]
        done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=True)
        rows, peak = map(int, done.stdout.split())
        assert rows == count
        peaks.append(peak / 1024)
    assert peaks[1] - peaks[0] < 30  # MiB; 100 are allowed


# ---- equal bytes however the work is cut


def test_workers_shards_order_and_addresses_do_not_matter(
    model: str, photos: Path, undisturbed: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(command(photos, tmp_path / "two", model, "--workers", "2")) == 0
    assert hashes(tmp_path / "two") == undisturbed
    for shard in ("1/2", "0/2"):
        assert main(command(photos, tmp_path / "cut", model, "--shard", shard)) == 0
    assert hashes(tmp_path / "cut") == undisturbed
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        archive.add(photos / "b", "b")
    fsspec = pytest.importorskip("fsspec", reason="fsspec cannot be imported")
    assert fsspec
    options: dict[str, Any] = {"model": model, "steps": 1, "workers": 1, "job_folder": str(tmp_path / "job")}
    report = moesr.batch(photos.as_uri(), (tmp_path / "by_address").as_uri(), **options)
    assert report.failed == []
    assert hashes(tmp_path / "by_address") == undisturbed
    assert moesr.batch(photos.as_uri(), (tmp_path / "by_address").as_uri(), **options, resume=True).skipped == 8
    options["job_folder"] = None
    moesr.batch(tmp_path / "set.tar", tmp_path / "tar", **options)
    assert set(hashes(tmp_path / "tar")) == {"set/" + name for name in undisturbed if name.startswith("b")}
    assert "Traceback" not in capfd.readouterr().err


def test_ray_gives_the_same_bytes_and_survives_a_killed_worker(
    model: str, photos: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="Ray cannot be installed here")
    pytest.importorskip("pyarrow", reason="pyarrow cannot be installed here")
    (tmp_path / "in").mkdir()
    for folder in ("a", "b"):
        (tmp_path / "in" / folder).symlink_to(photos / folder)
    names = tmp_path / "list.txt"
    sources = sorted(photos.rglob("*.png"))
    names.write_text("\n".join([*map(str, sources), str(tmp_path / "gone.png")]), "utf-8")
    killed: list[int] = []

    def kill_once(report: Any, line: Mapping[str, Any]) -> None:
        if not killed and line["status"] == "done":
            killed.append(int(line["worker"].rpartition(":")[2]))
            os.kill(killed[0], signal.SIGKILL)

    report = moesr.batch(photos, tmp_path / "out", engine="ray", workers=1, model=model, steps=1, callback=kill_once)
    assert killed
    assert report.failed == []
    assert hashes(tmp_path / "out") == undisturbed
    report = moesr.batch(photos, tmp_path / "out", engine="local", workers=1, model=model, steps=1, resume=True)
    assert (report.done, report.skipped) == (0, 8)


# ---- faults


def test_a_bad_picture_is_a_line_and_is_tried_again_when_told(
    model: str, photos: Path, undisturbed: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    for path in sorted(photos.rglob("*.png"))[:3]:
        (folder / path.relative_to(photos)).parent.mkdir(parents=True, exist_ok=True)
        (folder / path.relative_to(photos)).write_bytes(path.read_bytes())
    bad = folder / "a" / "0.png"
    whole, _ = bad.read_bytes(), bad.write_bytes(b"nonsense")
    assert main(command(folder, out, model)) == 1
    (line,) = errors(capfd.readouterr().err)
    assert str(bad) in line
    assert main(command(folder, out, model)) == 1  # a job of before is not begun again
    assert "--resume" in errors(capfd.readouterr().err)[0]
    assert main(command(folder, out, model, "--resume", "--steps", "2")) == 1
    assert "settings" in errors(capfd.readouterr().err)[0]
    bad.write_bytes(whole)
    assert main(command(folder, out, model, "--resume")) == 1
    assert len(errors(capfd.readouterr().err)) == 1
    (out / "a" / "2.png").unlink()  # a result that is gone is made again
    assert main(command(folder, out, model, "--resume", "--retry-failed")) == 0
    assert hashes(out) == {name: undisturbed[name] for name in ("a/0.png", "a/2.png", "a/4.png")}


def test_files_that_were_there_stay(model: str, photos: Path, tmp_path: Path) -> None:
    there = tmp_path / "out" / "a" / "0.png"
    there.parent.mkdir(parents=True)
    there.write_bytes(b"somebody's")
    report = moesr.batch(photos / "a" / "0.png", there.parent, workers=1, model=model, steps=1)
    assert there.read_bytes() == b"somebody's"
    assert len(report.failed) == 1
    assert "is there already" in report.failed[0]
    job = str(tmp_path / "job")
    report = moesr.batch(photos / "a", photos / "a", workers=1, model=model, on_error="fail", job_folder=job)
    assert report.stopped


def test_a_killed_worker_is_replaced(
    model: str, photos: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    driver = start(command(photos, out, model))
    lines = wait_until_done(out, 2)
    os.kill(int(lines[-1]["worker"].rpartition(":")[2]), signal.SIGKILL)
    _, said = driver.communicate(timeout=300)
    assert (driver.returncode, errors(said)) == (0, [])
    assert hashes(out) == undisturbed
    assert max(line.get("attempt", 0) for line in read_lines(out)) == 2


@pytest.mark.slow
def test_a_picture_that_kills_every_worker_fails_by_name(
    model: str, photos: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    out, folder = tmp_path / "out", tmp_path / "killer"
    folder.mkdir()
    # In the workers, reading that one picture is what the OOM killer does.
    (folder / "sitecustomize.py").write_text(
        "import os, signal\nimport moesr.batch.worker as worker\nread = worker.read_bytes\n"
        "def read_or_die(address, *place):\n"
        "    if address.endswith('3.png'): os.kill(os.getpid(), signal.SIGKILL)\n    return read(address, *place)\n"
        "worker.read_bytes = read_or_die\n"
    )
    env = {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    driver = start(command(photos, out, model, "--attempts", "2"), env=env)
    _, said = driver.communicate(timeout=300)
    (line,) = errors(said)
    assert driver.returncode == 1
    assert "3.png: its worker died 2 times (signal SIGKILL)" in line
    assert hashes(out) == {name: value for name, value in undisturbed.items() if name != "b/3.png"}


def test_a_killed_driver_loses_nothing(
    model: str, photos: Path, undisturbed: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    driver = start(command(photos, out, model))
    lines = wait_until_done(out, 2)
    assert main(command(photos, out, model, "--resume")) == 1  # two jobs into one OUT
    (line,) = errors(capfd.readouterr().err)
    assert f"process {driver.pid} on" in line
    assert main(command(photos, out, model, "--resume", "--shard", "1/2")) == 1  # would overlap
    driver.kill()
    driver.communicate()
    kept = {name: value for name, value in hashes(out).items() if name.endswith(".png")}
    assert len(kept) >= 2
    assert kept.items() <= undisturbed.items()
    assert main(command(photos, out, model, "--resume")) == 0
    assert {name: value for name, value in hashes(out).items() if name.endswith(".png")} == undisturbed
    done = [line["id"] for line in read_lines(out) if line.get("status") == "done"]
    assert len(done) == len(set(done)) == 8
    assert len(lines) <= len(done) * 2


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_ends_the_job_with_one_line(
    model: str, photos: Path, undisturbed: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        job = ["--job-folder", str(tmp_path / "job")]
        assert main(command(photos, disk / "out", model, "--workers", "2", *job)) == 1
        (line,) = errors(capfd.readouterr().err)
        assert "No space left" in line
        kept = hashes(disk / "out")
        assert 2 <= len(kept) < 8
        assert kept.items() <= undisturbed.items()
        subprocess.run(["mount", "-o", "remount,size=1m", str(disk)], check=True)
        assert main(command(photos, disk / "out", model, "--resume", *job)) == 0
        assert hashes(disk / "out") == undisturbed
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_model_that_cannot_load_is_one_line(
    photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "no.safetensors").write_bytes(b"no model")
    assert main(command(photos, tmp_path / "out", str(tmp_path / "no.safetensors"), "--workers", "2")) == 1
    assert len(errors(capfd.readouterr().err)) == 1
    assert hashes(tmp_path / "out") == {}


def test_a_dry_run_writes_nothing(model: str, photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = estimate(photos, tmp_path / "out", model=model, steps=1)
    assert found.pictures == 8
    assert found.megapixels == pytest.approx(8 * 12 * 16 / 1e6)
    assert found.seconds == pytest.approx(found.seconds_per_megapixel * found.megapixels)
    assert main(command(photos, tmp_path / "out", model, "--dry-run")) == 0
    assert capfd.readouterr().out.startswith("8 pictures, 0.0 megapixels")
    assert not (tmp_path / "out").exists()


def test_a_bucket_that_refuses_and_one_that_takes(
    model: str, photos: Path, undisturbed: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec = pytest.importorskip("fsspec", reason="fsspec cannot be imported")
    pytest.importorskip("s3fs", reason="s3fs cannot be imported")
    server = pytest.importorskip("moto.server", reason="moto cannot be imported").ThreadedMotoServer(port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        address = f"http://{host}:{port}"
        for name, value in (("ENDPOINT_URL", address), ("ACCESS_KEY_ID", "k"), ("SECRET_ACCESS_KEY", "s")):
            monkeypatch.setenv(f"AWS_{name}", value)
        bucket = fsspec.filesystem("s3")
        bucket.mkdir("s3://pictures")
        bucket.put(str(photos) + "/", "s3://pictures/in/", recursive=True)
        options: dict[str, Any] = {"model": model, "steps": 1, "workers": 2}
        report = moesr.batch("s3://pictures/in", "s3://pictures/out", job_folder=str(tmp_path / "job"), **options)
        assert (report.done, report.failed) == (8, [])
        bucket.get("s3://pictures/out/", str(tmp_path / "copy") + "/", recursive=True)
        assert hashes(tmp_path / "copy") == undisturbed
        with pytest.raises(SettingError, match="s3://nobody/out"):
            moesr.batch("s3://pictures/in", "s3://nobody/out", job_folder=str(tmp_path / "refused"), **options)
    finally:
        server.stop()


@pytest.mark.slow
def test_a_worker_does_not_grow(model: str, photos: Path) -> None:
    from moesr.batch.job import _prepare_work
    from moesr.batch.worker import Worker

    _, work = _prepare_work({"model": model, "steps": 1})
    worker = Worker(work)
    rows = list(plan_rows(list_addresses([str(photos)], "/out", PassedOver()), [], "/out", ".png"))
    sizes = []
    for i in range(1000):
        worker.upscale(rows[i % len(rows)])
        if i in (99, 999):
            sizes.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20)
    assert sizes[1] - sizes[0] < 20  # MiB
