"""Closed, full and narrow output streams change neither the work nor the exit code; pipes carry pictures."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
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
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line, "-", *arguments],
        cwd=folder,
        env=surroundings,
        capture_output=True,
        check=False,
    )


@pytest.mark.skipif(os.name == "nt", reason="redirections of a POSIX shell")
@pytest.mark.parametrize(
    "redirections",
    ["", ">/dev/full", "2>/dev/full", ">/dev/full 2>&1", ">&-", "2>&-", "<&- >&- 2>&-", "| head -c 1 >/dev/null"],
)
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


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_other_commands_neither(tmp_path: Path) -> None:
    for arguments in (["info", "tiny"], ["models"], ["--help"]):
        done = shell(tmp_path, ">/dev/full", *arguments)
        assert (done.returncode, b"Traceback" in done.stderr) == (0, False), done.stderr


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
