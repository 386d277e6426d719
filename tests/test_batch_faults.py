"""Jobs of many pictures lose nothing: bad files, killed processes, full disks and buckets that refuse."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

import moesr
from moesr.batch.job import estimate
from moesr.cli import main
from moesr.errors import SettingError
from tests.batch_jobs import ROOT, command, errors, hashes, read_lines, start, wait_until_done


def test_a_bad_picture_is_a_line_and_is_tried_again_when_told(
    shift_model: str, photos: Path, expected: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    for path in sorted(photos.rglob("*.png"))[:3]:
        (folder / path.relative_to(photos)).parent.mkdir(parents=True, exist_ok=True)
        (folder / path.relative_to(photos)).write_bytes(path.read_bytes())
    bad = folder / "a" / "0.png"
    whole, _ = bad.read_bytes(), bad.write_bytes(b"nonsense")
    assert main(command(folder, out, shift_model)) == 1
    (line,) = errors(capfd.readouterr().err)
    assert str(bad) in line
    assert main(command(folder, out, shift_model)) == 1  # a job of before is not begun again
    assert "--resume" in errors(capfd.readouterr().err)[0]
    assert main(command(folder, out, shift_model, "--resume", "--steps", "2")) == 1
    assert "settings" in errors(capfd.readouterr().err)[0]
    bad.write_bytes(whole)
    assert main(command(folder, out, shift_model, "--resume")) == 1
    assert len(errors(capfd.readouterr().err)) == 1
    (out / "a" / "2.png").unlink()  # a result that is gone is made again
    assert main(command(folder, out, shift_model, "--resume", "--retry-failed")) == 0
    assert hashes(out) == {name: expected[name] for name in ("a/0.png", "a/2.png", "a/4.png")}


def test_files_that_were_there_stay(shift_model: str, photos: Path, tmp_path: Path) -> None:
    there = tmp_path / "out" / "a" / "0.png"
    there.parent.mkdir(parents=True)
    there.write_bytes(b"somebody's")
    report = moesr.batch(photos / "a" / "0.png", there.parent, workers=1, model=shift_model, steps=1)
    assert there.read_bytes() == b"somebody's"
    assert len(report.failed) == 1
    assert "is there already" in report.failed[0]
    job = str(tmp_path / "job")
    report = moesr.batch(photos / "a", photos / "a", workers=1, model=shift_model, on_error="fail", job_folder=job)
    assert report.stopped


def test_a_killed_worker_is_replaced(shift_model: str, photos: Path, expected: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    driver = start(command(photos, out, shift_model))
    lines = wait_until_done(out, 2)
    os.kill(int(lines[-1]["worker"].rpartition(":")[2]), signal.SIGKILL)
    _, said = driver.communicate(timeout=300)
    assert (driver.returncode, errors(said)) == (0, [])
    assert hashes(out) == expected
    assert max(line.get("attempt", 0) for line in read_lines(out)) == 2


@pytest.mark.slow
def test_a_picture_that_kills_every_worker_fails_by_name(
    shift_model: str, photos: Path, expected: dict[str, str], tmp_path: Path
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
    driver = start(command(photos, out, shift_model, "--attempts", "2"), env=env)
    _, said = driver.communicate(timeout=300)
    (line,) = errors(said)
    assert driver.returncode == 1
    assert "3.png: its worker died 2 times (signal SIGKILL)" in line
    assert hashes(out) == {name: value for name, value in expected.items() if name != "b/3.png"}


def test_a_killed_driver_loses_nothing(
    shift_model: str, photos: Path, expected: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    driver = start(command(photos, out, shift_model))
    lines = wait_until_done(out, 2)
    assert main(command(photos, out, shift_model, "--resume")) == 1  # two jobs into one OUT
    (line,) = errors(capfd.readouterr().err)
    assert f"process {driver.pid} on" in line
    assert main(command(photos, out, shift_model, "--resume", "--shard", "1/2")) == 1  # would overlap
    driver.kill()
    driver.communicate()
    kept = {name: value for name, value in hashes(out).items() if name.endswith(".png")}
    assert len(kept) >= 2
    assert kept.items() <= expected.items()
    assert main(command(photos, out, shift_model, "--resume")) == 0
    assert {name: value for name, value in hashes(out).items() if name.endswith(".png")} == expected
    done = [line["id"] for line in read_lines(out) if line.get("status") == "done"]
    assert len(done) == len(set(done)) == 8
    assert len(lines) <= len(done) * 2


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_ends_the_job_with_one_line(
    shift_model: str, photos: Path, expected: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        with pytest.raises(OSError, match="No space left"):
            (disk / "filler").write_bytes(bytes(2**17))
        assert main(command(photos, disk / "out", shift_model)) == 1  # not even the journal can be written
        assert len(errors(capfd.readouterr().err)) == 1
        (disk / "filler").unlink()
        shutil.rmtree(disk / "out")
        job = ["--job-folder", str(tmp_path / "job")]
        assert main(command(photos, disk / "out", shift_model, "--workers", "2", *job)) == 1
        (line,) = errors(capfd.readouterr().err)
        assert "No space left" in line
        kept = hashes(disk / "out")
        assert 2 <= len(kept) < 8
        assert kept.items() <= expected.items()
        subprocess.run(["mount", "-o", "remount,size=1m", str(disk)], check=True)
        assert main(command(photos, disk / "out", shift_model, "--resume", *job)) == 0
        assert hashes(disk / "out") == expected
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_model_that_cannot_load_is_one_line(photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "no.safetensors").write_bytes(b"no model")
    assert main(command(photos, tmp_path / "out", str(tmp_path / "no.safetensors"), "--workers", "2")) == 1
    assert len(errors(capfd.readouterr().err)) == 1
    assert hashes(tmp_path / "out") == {}


def test_a_dry_run_writes_nothing(
    shift_model: str, photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found = estimate(photos, tmp_path / "out", model=shift_model, steps=1)
    assert found.pictures == 8
    assert found.megapixels == pytest.approx(8 * 12 * 16 / 1e6)
    assert found.seconds == pytest.approx(found.seconds_per_megapixel * found.megapixels)
    assert main(command(photos, tmp_path / "out", shift_model, "--dry-run")) == 0
    assert capfd.readouterr().out.startswith("8 pictures, 0.0 megapixels")
    assert not (tmp_path / "out").exists()


def test_a_bucket_that_refuses_and_one_that_takes(
    shift_model: str, photos: Path, expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
        options: dict[str, Any] = {"model": shift_model, "steps": 1, "workers": 2}
        report = moesr.batch("s3://pictures/in", "s3://pictures/out", job_folder=str(tmp_path / "job"), **options)
        assert (report.done, report.failed) == (8, [])
        bucket.get("s3://pictures/out/", str(tmp_path / "copy") + "/", recursive=True)
        assert hashes(tmp_path / "copy") == expected
        with pytest.raises(SettingError, match="s3://nobody/out"):
            moesr.batch("s3://pictures/in", "s3://nobody/out", job_folder=str(tmp_path / "refused"), **options)
    finally:
        server.stop()
