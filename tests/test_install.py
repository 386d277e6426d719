"""install.py and preload.py: what they do to a host."""

from __future__ import annotations

import runpy
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run(folder: Path, requirements: str) -> subprocess.CompletedProcess[str]:
    """install.py in a folder of its own, with a pip that only tells what it was asked for."""
    (folder / "install.py").write_bytes((ROOT / "install.py").read_bytes())
    (folder / "requirements.txt").write_text(requirements)
    (folder / "pip").mkdir()
    (folder / "pip" / "__init__.py").touch()  # without it the real pip would be found first
    (folder / "pip" / "__main__.py").write_text("import sys; print('PIP', sys.argv[1:]); sys.exit(1)")
    command = [sys.executable, "install.py"]
    return subprocess.run(command, cwd=folder, env={"PYTHONPATH": str(folder)}, capture_output=True, text=True)


def test_nothing_to_do_is_silent(tmp_path: Path) -> None:
    result = run(tmp_path, (ROOT / "requirements.txt").read_text())
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_only_what_is_missing_and_failure_does_not_stop_the_host(tmp_path: Path) -> None:
    result = run(tmp_path, "# why\ntqdm>=4.60\n\nno_such_package>=1.0  # why\n")
    assert result.returncode == 0
    assert "PIP ['install', 'no_such_package>=1.0']" in result.stdout
    assert "By hand:" in result.stdout


def test_requirements_leave_the_hosts_packages_alone() -> None:
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert not [line for line in lines if line.lower().startswith(("torch", "numpy", "pillow", "gradio"))]
    project = (ROOT / "pyproject.toml").read_text()
    assert all(f'"{line}"' in project for line in lines)


def test_the_flag_and_a_second_copy_of_it() -> None:
    parser = ArgumentParser()
    preload = runpy.run_path(str(ROOT / "preload.py"))["preload"]
    preload(parser)
    preload(parser)
    assert parser.parse_args(["--moesr-models-path", "there"]).moesr_models_path == "there"
    assert parser.parse_args([]).moesr_models_path is None
