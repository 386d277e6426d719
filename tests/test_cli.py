"""The command line as a user types it; closed, full and narrow streams change neither the work nor the exit code."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

import moesr
from moesr.cli import main
from moesr.images.files import read_image
from moesr.images.resize import resize
from tests.batch_jobs import ROOT, draw, errors


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for seed, name in enumerate(("a.png", "b.jpg", "more/a.webp")):
        draw(tmp_path / "photos" / name, seed, size=(8, 6))
    return tmp_path / "photos"


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_alone_it_shows_help_with_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert "upscale" in shown
    assert "python -m moesr upscale photo.jpg -o large.png" in shown


def test_one_file(shift_model: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "er.jpg"
    command = ["upscale", str(photos / "a.png"), "-o", str(out), "--model", shift_model, "--steps", "1"]
    assert main(command) == 0
    assert size(out) == (32, 24)
    assert list(out.parent.iterdir()) == [out]
    assert "32 x 24" in capsys.readouterr().out
    assert main([*command, "--compare", "--overwrite"]) == 0
    assert size(out.with_name("er_compare.png")) == (3 * 32 + 16, 24 + 24)


def test_folders_clashes_and_bad_files(
    shift_model: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing else")
    out = tmp_path / "out"
    inputs = [str(photos), str(photos / "more" / "a.webp"), str(tmp_path / "none.png")]
    assert main(["upscale", *inputs, "-o", str(out), "--model", shift_model, "--steps", "1", "--scale", "2"]) == 1
    assert sorted(p.name for p in out.iterdir()) == ["a-2.png", "a.png", "b.png"]
    assert size(out / "a.png") == (16, 12)
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    assert "bad.png" in shown
    assert "none.png" in shown
    assert main(["upscale", str(photos), "-o", str(tmp_path / "o.png"), "--model", shift_model]) == 1  # one for many


def test_structure_depth_and_mask(shift_model: str, photos: Path, tmp_path: Path) -> None:
    mask = Image.new("L", (8, 6))
    mask.putpixel((0, 0), 255)
    mask.save(tmp_path / "mask.png")
    arguments = ["-o", str(tmp_path / "out"), "--model", shift_model, "--steps", "1", "--recursive", "--bits", "16"]
    assert main(["upscale", str(photos), *arguments, "--mask", str(tmp_path / "mask.png")]) == 0
    out = tmp_path / "out"
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*.png")) == ["a.png", "b.png", "more/a.png"]
    picture = read_image(out / "a.png")
    assert picture.bits == 16
    expected = resize(torch.tensor(read_image(photos / "a.png").rgb).permute(2, 0, 1)[None], (24, 32)).clamp(0, 1)[0]
    difference = np.abs(picture.rgb - expected.permute(1, 2, 0).numpy())
    assert difference[12:, 12:].max() < 1e-4  # black in the mask: bicubic
    assert difference[:4, :4].max() > 1e-3


def test_protect_and_fidelity_files(shift_model: str, photos: Path, tmp_path: Path) -> None:
    half = Image.new("L", (2, 1), 0)
    half.putpixel((0, 0), 255)
    half.save(tmp_path / "half.png")
    arguments = ["upscale", str(photos / "a.png"), "--model", shift_model, "--steps", "1", "-o"]
    options = {"map": ["--fidelity", str(tmp_path / "half.png")], "zero": ["--fidelity", "0"],
               "protect": ["--fidelity", "0", "--protect", str(tmp_path / "half.png")]}  # fmt: skip
    for name, more in options.items():
        assert main([*arguments, str(tmp_path / f"{name}.png"), *more]) == 0
    found = {name: read_image(tmp_path / f"{name}.png").rgb for name in options}
    assert np.array_equal(found["map"], found["protect"])
    assert not np.array_equal(found["map"], found["zero"])
    again = [*arguments, str(tmp_path / "protect.png"), "--skip-existing", "--fidelity", "0"]
    assert main(again) == 1  # made with another `protect`


def test_steady_takes_files_as_frames(
    shift_model: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng, frames, out = np.random.default_rng(0), tmp_path / "frames", tmp_path / "out"
    frames.mkdir()
    smooth = Image.fromarray(rng.integers(0, 255, (8, 12, 3), np.uint8)).resize((60, 40))
    pictures = [smooth.crop((k, 0, k + 48, 32)) for k in range(3)]
    for k, picture in enumerate(pictures):
        picture.save(frames / f"frame{k + 9}.png")  # 9 is before 10
    arguments = ["--model", shift_model, "--steps", "1", "--steady", "0.5"]
    assert main(["upscale", str(frames), "-o", str(out), *arguments]) == 0
    model = moesr.load(shift_model)
    expected = moesr.upscale_frames(model, pictures, steps=1, batch_seed="same", steady=0.5)
    for k, want in enumerate(expected):
        found = read_image(out / f"frame{k + 9}.png").rgb
        assert np.abs(found * 255 - np.asarray(want)).max() < 2
    assert main(["upscale", str(frames), "-o", str(out), *arguments, "--skip-existing"]) == 1
    assert main(["upscale", str(frames / "frame9.png"), "-o", str(tmp_path / "one.png"), *arguments]) == 1
    assert main(["upscale", str(frames), str(photos), "-o", str(tmp_path / "mixed"), *arguments]) == 1
    assert [re.sub("[^ ]*/", "", line) for line in errors(capsys.readouterr().err)] == [
        "error: --steady: --skip-existing leaves frames out; it needs all frames of a video, in order",
        "error: --steady: one picture; it needs all frames of a video, in order",
        "error: --steady: frame9.png has 48 x 32, a.png has 8 x 6; it needs frames of one size",
    ]
    assert not (tmp_path / "mixed").exists()


def test_invention(
    shift_model: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["invention", str(photos / "a.png"), "--model", shift_model, "--steps", "1", "--seeds", "2", "-o"]
    assert main([*arguments, str(tmp_path / "map.png")]) == 0
    assert "% of the pixels" in capsys.readouterr().out
    assert size(tmp_path / "map.png") == (32, 24 + 28)
    assert main([*arguments, str(tmp_path / "map.png")]) == 1  # it is there already
    assert main([*arguments, str(tmp_path / "map.jpg")]) == 1
    assert not (tmp_path / "map.jpg").exists()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", Mock(side_effect=OSError(28, "No space left on device")))
        assert main([*arguments, str(tmp_path / "full.png")]) == 1
    assert re.search(r"error: .*full.png: No space left on device; .*\n$", capsys.readouterr().err)
    before = (photos / "a.png").read_bytes()
    assert main([*arguments, str(photos / "a.png"), "--overwrite"]) == 1  # an input stays
    assert (photos / "a.png").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--steps", "5000"], "steps 5000"), (["--sampler", "euler"], "euler"), (["--model", "nonesuch"], "nonesuch"),
     (["--protect", "no.png"], "no.png: No such file"), (["--mask", "no.png"], "no.png: No such file")],
)  # fmt: skip
def test_errors_are_one_line(
    shift_model: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    model = [] if "--model" in arguments else ["--model", shift_model]
    assert main(["upscale", str(photos / "a.png"), "-o", str(tmp_path / "o.png"), *model, *arguments]) == 1
    (line,) = errors(capsys.readouterr().err)
    assert said in line
    assert not (tmp_path / "o.png").exists()


def test_info(shift_model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", shift_model]) == 0
    assert "4, timesteps 0 to 249" in capsys.readouterr().out
    assert main(["info", shift_model, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["experts"] == 4
    assert facts["scale"] == 4
    assert facts["parameters"]["all"] == 4 * facts["parameters"]["expert"] + facts["parameters"]["decoder"]


def restore_interrupt() -> None:
    """Shells start jobs in the background with interrupts ignored, and a test's processes inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_interrupt_leaves_no_partial_file(shift_model: str, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    command = ["upscale", str(photos / "a.png"), "-o", str(out), "--model", shift_model, "--steps", "1000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "moesr", *command], cwd=ROOT, stderr=subprocess.PIPE, preexec_fn=restore_interrupt
    )
    assert process.stderr is not None
    os.set_blocking(process.stderr.fileno(), False)
    shown, end = b"", time.monotonic() + 300
    while b"step" not in shown and time.monotonic() < end:
        time.sleep(0.05)
        shown += process.stderr.read() or b""
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 130
    shown += process.stderr.read() or b""
    assert b"Traceback" not in shown
    assert b"interrupted" in shown
    assert sorted(p.name for p in tmp_path.iterdir()) == ["photos"]


#: Runs the command line in a process that has the networks replaced by a plain enlargement: it is about streams.
QUICK = """
import sys, moesr.pipeline, numpy
from dataclasses import replace
def enlarge(model, picture, **_):
    return replace(picture, rgb=numpy.repeat(numpy.repeat(picture.rgb, 4, 0), 4, 1))
moesr.pipeline.upscale = enlarge
from moesr.cli import main
sys.exit(main(sys.argv[1:]))
"""


def shell(folder: Path, redirections: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    (folder / "quick.py").write_text(QUICK)
    line = f'"{sys.executable}" quick.py "$@" {redirections}'
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    command = ["bash", "-o", "pipefail", "-c", line, "-", *arguments]
    return subprocess.run(command, cwd=folder, env=surroundings, capture_output=True, check=False)


@pytest.mark.skipif(os.name == "nt", reason="redirections of a POSIX shell")
@pytest.mark.parametrize("redirections", [">/dev/full 2>&1", "<&- >&- 2>&-", "| head -c 1 >/dev/null"])
def test_streams_do_not_decide(tmp_path: Path, redirections: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    names = [b"plain.png", "\u5199\u771f.png".encode(), b"\xff\xfe.png"]  # the last is no UTF-8
    for name in names:
        Image.new("RGB", (4, 3), "teal").save(os.path.join(os.fsencode(folder), name))
    done = shell(tmp_path, redirections, "upscale", "in", "-o", "out", PYTHONIOENCODING="cp1252")
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert sorted(os.listdir(os.fsencode(tmp_path / "out"))) == sorted(names)


def test_standard_input_and_output_carry_pictures(tmp_path: Path) -> None:
    Image.new("RGB", (4, 3), "teal").save(tmp_path / "a.png")
    done = shell(tmp_path, "< a.png", "upscale", "-", "-o", "-", "--format", "webp")
    assert done.returncode == 0, done.stderr
    with Image.open(io.BytesIO(done.stdout)) as image:
        assert (image.format, image.size) == ("WEBP", (16, 12))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "quick.py"]
    done = shell(tmp_path, "< /dev/null", "upscale", "-", "-o", "b.png")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(b"error: -: ")
    # Where the stream is the result, it counts.
    for where in (">/dev/full", ">&-"):
        done = shell(tmp_path, f"< a.png {where}", "upscale", "-", "-o", "-")
        assert (done.returncode, b"error: -" in done.stderr) == (1, True), where


def test_without_torch_it_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text('raise ModuleNotFoundError("No module named torch", name="torch")')
    surroundings = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-m", "moesr", "info", "tiny"]
    done = subprocess.run(command, env=surroundings, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: torch: ")
    assert "pip install torch" in line
