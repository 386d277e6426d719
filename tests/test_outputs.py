"""No file that was there is changed, results are found again, and output streams never decide."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from moesr import pipeline
from moesr.atomic_files import TemporaryFolder, open_new, remove_abandoned_parts
from moesr.cli import main
from moesr.images.files import Picture
from moesr.input_files import Source
from moesr.model import load
from moesr.result_files import plan_targets, save_new
from moesr.settings_record import digest_file, read_record
from tests.batch_jobs import ROOT, draw, errors, hashes
from tests.image_files import phone_photo


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels repeated twice in place of the networks: these tests are about files."""

    def repeat(_: Any, picture: Picture, **settings: Any) -> Picture:
        return replace(picture, rgb=picture.rgb.repeat(2, axis=0).repeat(2, axis=1) * 0.9)

    monkeypatch.setattr(pipeline, "upscale", repeat)
    monkeypatch.setattr("moesr.commands.upscale.open_model", lambda options: _load(options.model))


_load = lru_cache(load)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("extra", [[], ["--overwrite"], ["--skip-existing"], ["--overwrite", "--skip-existing"]])
def test_an_input_is_never_replaced(
    shift_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: list[str]
) -> None:
    for seed, name in enumerate(("shot.jpg", "shot.png", "logo.jpg", "logo.png")):
        draw(tmp_path / name, seed)
    before = hashes(tmp_path)
    assert main(["upscale", str(tmp_path), "-o", str(tmp_path), "--model", shift_model, *extra]) == 1
    assert len(errors(capsys.readouterr().err)) == 1
    assert hashes(tmp_path) == before
    # A link of either kind to an input is no other file.
    out = tmp_path / "out"
    out.mkdir()
    (out / "shot.png").symlink_to(tmp_path / "shot.jpg")
    os.link(tmp_path / "logo.jpg", out / "logo.png")
    inputs = [str(tmp_path / "shot.jpg"), str(tmp_path / "logo.jpg")]
    assert main(["upscale", *inputs, "-o", str(out), "--model", shift_model, *extra]) == 1
    assert len(errors(capsys.readouterr().err)) == 1
    assert {name: digest for name, digest in hashes(tmp_path).items() if "out" not in name} == before


@pytest.mark.usefixtures("quick")
def test_a_file_that_was_no_input_is_replaced_only_when_told(
    shift_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, other = draw(tmp_path / "in" / "a.jpg"), draw(tmp_path / "out" / "A_compare.png".lower(), 1)
    command = ["upscale", str(source), "-o", str(other.parent), "--model", shift_model]
    before = hashes(tmp_path)
    assert main([*command, "--compare"]) == 1
    assert "a_compare.png" in errors(capsys.readouterr().err)[0]
    assert hashes(tmp_path) == before
    assert main(command) == 0
    assert main(command) == 1  # also a result of our own
    assert main([*command, "--compare", "--overwrite"]) == 0
    assert hashes(tmp_path)["out/a_compare.png"] != before["out/a_compare.png"]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("out", ["in/out", "in", "."])
def test_results_are_not_upscaled_again(shift_model: str, tmp_path: Path, out: str) -> None:
    draw(tmp_path / "in" / "a.jpg")
    draw(tmp_path / "in" / "deep" / "b.jpg")
    command = ["upscale", str(tmp_path / "in"), "-o", str(tmp_path / out), "--model", shift_model, "--recursive"]
    assert main(command) == 0
    before = hashes(tmp_path)
    assert len(before) == 4
    assert main([*command, "--skip-existing"]) == 0
    assert hashes(tmp_path) == before


@pytest.mark.usefixtures("quick")
def test_results_are_found_again(shift_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, name in enumerate(("a.png", "b.png", "c.png")):
        draw(tmp_path / "in" / name, seed)
    out = tmp_path / "out"
    command = ["upscale", str(tmp_path / "in"), "-o", str(out), "--model", shift_model, "--scale", "2"]
    command += ["--skip-existing"]
    assert main(command) == 0
    (out / "b.png").unlink()
    kept = (out / "a.png").stat().st_mtime_ns
    assert main(command) == 0
    assert "2 of 3 results were there already" in capsys.readouterr().err
    assert (out / "a.png").stat().st_mtime_ns == kept
    assert main([*command, "--seed", "1"]) == 1
    assert "seed 0, not 1" in errors(capsys.readouterr().err)[0]
    draw(tmp_path / "in" / "a.png", 7)
    assert main(command) == 1
    assert "another picture" in errors(capsys.readouterr().err)[0]
    assert main([*command, "--overwrite"]) == 0
    assert (out / "a.png").stat().st_mtime_ns > kept
    assert main([*command, "--overwrite", "--strip-metadata", "--seed", "1"]) == 0
    assert main([*command, "--strip-metadata", "--seed", "2"]) == 0
    assert main(command) == 1


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("kind", ["jpg", "webp", "tiff", "png"])
def test_results_of_every_format_say_what_they_are(shift_model: str, tmp_path: Path, kind: str) -> None:
    source = tmp_path / "in.jpg"
    source.write_bytes(phone_photo())
    command = ["upscale", str(source), "-o", str(tmp_path / "out"), "--model", shift_model, "--format", kind]
    assert main(command) == 0
    assert main([*command, "--skip-existing"]) == 0
    assert main([*command, "--skip-existing", "--scale", "3"]) == 1
    (first,) = (tmp_path / "out").iterdir()
    assert main(["upscale", str(first), "-o", str(tmp_path / "more"), "--model", shift_model, "--format", kind]) == 0
    (result,) = (tmp_path / "more").iterdir()
    data = first.read_bytes()
    first.write_bytes(data[:-40])
    assert main([*command, "--skip-existing"]) == 1
    assert main([*command, "--skip-existing", "--overwrite"]) == 0
    assert first.read_bytes() == data
    record = read_record(result)  # not that of its input
    assert record is not None
    assert record["input_hash"] == digest_file(first)


@pytest.mark.usefixtures("quick")
def test_what_cannot_be_is_said_before_the_first_picture(
    shift_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = draw(tmp_path / "a.png")
    monkeypatch.setattr(pipeline, "upscale", None)  # no picture is begun
    for suffix in (".gif", ".BMP", ".jxl", ".mp4"):
        assert main(["upscale", str(source), "-o", str(tmp_path / f"big{suffix}")]) == 1
        assert f"cannot write {suffix.lower()}" in errors(capsys.readouterr().err)[0]
    out = tmp_path / "deep" / "out"
    for extra in (["--scale", "1e9"], ["--scale", "nan"], ["--format", "png", "--quality", "80"], ["--quality", "0"]):
        assert main(["upscale", str(source), "-o", str(out), "--model", shift_model, *extra]) == 1
        assert len(errors(capsys.readouterr().err)) == 1
    assert main(["upscale", str(source), "-o", "/proc/nope", "--model", shift_model]) == 1
    assert "/proc/nope" in errors(capsys.readouterr().err)[0]
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=100))
    assert main(["upscale", str(source), "-o", str(out), "--model", shift_model]) == 1
    assert "free" in errors(capsys.readouterr().err)[0]
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.usefixtures("quick")
def test_formats_patterns_long_names_and_what_is_passed_over(
    shift_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "in"
    for name in ("a.JPG", "b.webp", "*.png", "x" * 251 + ".png", ".hidden.png", "deep/c.png"):
        draw(folder / name)
    (folder / "._a.JPG").write_bytes(b"\0\5\x16\7")
    (folder / "film.mp4").touch()
    command = ["upscale", "--model", shift_model, "-o"]
    assert main([*command, str(tmp_path / "same"), str(folder), "--format", "same", "--compare"]) == 0
    names = sorted(path.name for path in (tmp_path / "same").iterdir())
    assert [name for name in names if "compare" not in name] == ["*.png", "a.JPG", "b.webp", "x" * 251 + ".png"]
    assert len(names) == 8
    shown = capsys.readouterr().err
    assert "passed over: 1 .mp4, 1 folder (--recursive" in shown
    monkeypatch.chdir(folder)
    assert main([*command, str(tmp_path / "literal"), "*.png"]) == 0
    assert [path.name for path in (tmp_path / "literal").iterdir()] == ["*.png"]
    assert main([*command, str(tmp_path / "jpg"), "*.[Jw]*", "--format", "jpg", "--quality", "40"]) == 0
    assert sorted(path.name for path in (tmp_path / "jpg").iterdir()) == ["a.jpg", "b.jpg"]


def test_planned_names(tmp_path: Path) -> None:
    sources = [Source(Path(name), Path(folder)) for name, folder in
               (("a.jpg", "."), ("A.png", "."), ("a-2.png", "."), ("a.webp", "."), ("x.jpg", "a.png"), ("é.jpg", "."),
                ("e\u0301.png", "."), ("y" * 252, "."), ("y" * 253, "."))]  # fmt: skip
    folders = {source.folder for source in sources}
    targets = [t.path.relative_to(tmp_path).as_posix() for t in plan_targets(sources, tmp_path, folders=folders)]
    assert targets == ["a-2.png", "A-3.png", "a-2-2.png", "a-4.png", "a.png/x.png", "é.png", "e\u0301-2.png",
                       "y" * 251 + ".png", "y" * 249 + "-2.png"]  # fmt: skip
    many = (Source(Path(f"{number}/same.jpg")) for number in range(2000))
    assert len({target.path for target in plan_targets(many, tmp_path)}) == 2000


def test_a_file_that_appears_meanwhile_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with pytest.raises(FileExistsError), open_new(path):
        path.write_bytes(b"theirs")
    assert path.read_bytes() == b"theirs"
    assert save_new(path, lambda file: file.write(b"ours")).name == "a-2.png"
    with pytest.raises(ZeroDivisionError), open_new(path, replaces=True) as file:
        file.write(bytes(1 // 0))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a-2.png", "a.png"]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("seed", range(12))
def test_no_original_changes_whatever_the_tree(
    shift_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], seed: int
) -> None:
    """Names that clash by stem, case or suffix, links of both kinds, OUT inside IN and IN inside OUT."""
    dice = random.Random(seed)
    places = ["in", "in/out", "in/deep", "other", "."]
    stems = ("a", "A", "a_compare", "a-2", "b.png", "in", "out")
    for number in range(dice.randint(3, 10)):
        name = dice.choice(stems) + dice.choice((".png", ".jpg", ".PNG", ".webp", ".bmp"))
        path = tmp_path / dice.choice(places) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        there = [p for p in tmp_path.rglob("*") if p.is_file()]
        if path.exists() or path.is_symlink():
            continue
        kind = dice.random()
        if kind < 0.15 and there:
            path.symlink_to(dice.choice(there))
        elif kind < 0.3 and there:
            os.link(dice.choice(there), path)
        else:
            draw(path, number)
    for place in places:
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
    if dice.random() < 0.3:
        (tmp_path / "in" / "link").symlink_to(tmp_path / "other", target_is_directory=True)
    originals = hashes(tmp_path)
    for _ in range(6):
        source, out = (tmp_path / dice.choice([*places, "new", "in/link"]) for _ in range(2))
        options = ("--recursive", "--compare", "--skip-existing", "--overwrite", "--strip-metadata")
        extra = [option for option in options if dice.random() < 0.4]
        extra += ["--format", dice.choice(("png", "jpg", "same"))]
        state = hashes(tmp_path)
        assert main(["upscale", str(source), "-o", str(out), "--model", shift_model, *extra]) in (0, 1)
        errors(capsys.readouterr().err)
        after = hashes(tmp_path)
        assert not [name for name in after if ".part" in name]
        if "--overwrite" not in extra:
            assert after.items() >= state.items()
        read = source.rglob("*") if "--recursive" in extra else source.glob("*")
        for path in read:
            name = str(path.relative_to(tmp_path))
            excluded = source in out.parents and out in path.parents  # those are results
            if name in originals and not excluded:
                assert after[name] == state[name], (name, extra)


HOLDER = """
import time
from moesr.atomic_files import Path, TemporaryFolder, create_part
folder = TemporaryFolder('moesr-t-', Path({0!r}))
part = create_part(Path({0!r}))
print(flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("kind", ["folder", "part"])
def test_what_a_killed_process_left_is_removed(tmp_path: Path, kind: str) -> None:
    strange = [tmp_path / "moesr-t-other", tmp_path / ".moesr-0.partial"]
    strange[0].mkdir()
    strange[1].touch()
    code = HOLDER.format(str(tmp_path))
    command = [sys.executable, "-c", code]
    holders = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for holder in holders:
        assert holder.stdout is not None
        holder.stdout.readline()
    holders[0].kill()
    holders[0].wait()
    if kind == "folder":
        TemporaryFolder("moesr-t-", tmp_path).close()
        left = [path for path in tmp_path.glob("moesr-t-*") if path not in strange]
    else:
        remove_abandoned_parts(tmp_path)
        left = list(tmp_path.glob(".moesr-*.part"))
    holders[1].kill()
    holders[1].wait()
    assert len(left) == 1
    assert all(path.exists() for path in strange)
