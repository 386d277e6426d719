"""Jobs of many pictures: every kind of input, and equal bytes however the work is cut."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import moesr
from moesr.batch.journal import Journal
from moesr.batch.manifest import plan_rows
from moesr.batch.sources import Address, list_addresses
from moesr.cli import main
from moesr.errors import SettingError
from moesr.input_files import PassedOver
from tests.batch_jobs import ROOT, command, draw, hashes

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


def test_a_table_of_paths_and_a_report_as_parquet(shift_model: str, photos: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow cannot be imported")
    import pyarrow

    paths = sorted(str(path) for path in photos.rglob("*.png"))[:2]
    parquet.write_table(pyarrow.table({"file": [*paths, str(tmp_path / "gone.png")]}), tmp_path / "set.parquet")
    with pytest.raises(SettingError, match="no column path"):
        moesr.batch(tmp_path / "set.parquet", tmp_path / "out", model=shift_model, workers=1)
    report = moesr.batch(
        tmp_path / "set.parquet", tmp_path / "out", model=shift_model, workers=1, steps=1, column="file", resume=True,
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
    shift_model: str, photos: Path, expected: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(command(photos, tmp_path / "two", shift_model, "--workers", "2")) == 0
    assert hashes(tmp_path / "two") == expected
    for shard in ("1/2", "0/2"):
        assert main(command(photos, tmp_path / "cut", shift_model, "--shard", shard)) == 0
    assert hashes(tmp_path / "cut") == expected
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        archive.add(photos / "b", "b")
    pytest.importorskip("fsspec", reason="fsspec cannot be imported")
    options: dict[str, Any] = {"model": shift_model, "steps": 1, "workers": 1, "job_folder": str(tmp_path / "job")}
    report = moesr.batch(photos.as_uri(), (tmp_path / "by_address").as_uri(), **options)
    assert report.failed == []
    assert hashes(tmp_path / "by_address") == expected
    assert moesr.batch(photos.as_uri(), (tmp_path / "by_address").as_uri(), **options, resume=True).skipped == 8
    options["job_folder"] = None
    moesr.batch(tmp_path / "set.tar", tmp_path / "tar", **options)
    assert set(hashes(tmp_path / "tar")) == {"set/" + name for name in expected if name.startswith("b")}
    assert "Traceback" not in capfd.readouterr().err


def test_ray_gives_the_same_bytes_and_survives_a_killed_worker(
    shift_model: str, photos: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="Ray cannot be installed here")
    pytest.importorskip("pyarrow", reason="pyarrow cannot be installed here")
    killed: list[int] = []

    def kill_once(report: Any, line: Mapping[str, Any]) -> None:
        if not killed and line["status"] == "done":
            killed.append(int(line["worker"].rpartition(":")[2]))
            os.kill(killed[0], signal.SIGKILL)

    report = moesr.batch(
        photos, tmp_path / "out", engine="ray", workers=1, model=shift_model, steps=1, callback=kill_once
    )
    assert killed
    assert report.failed == []
    assert hashes(tmp_path / "out") == expected
    report = moesr.batch(photos, tmp_path / "out", engine="local", workers=1, model=shift_model, steps=1, resume=True)
    assert (report.done, report.skipped) == (0, 8)
