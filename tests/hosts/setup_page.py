"""What the tests of the page need: the package as pip installs it, a Python with Gradio, and Chromium.

MOESR_PAGE_PYTHON names another Python, to run the same tests with another Gradio (docs/page.md).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
PARTS = ("moesr", "pyproject.toml", "README.md", "LICENSE", "NOTICE")


def page_python() -> Path:
    """The Python that runs the page: this one, unless another is named."""
    return Path(os.environ.get("MOESR_PAGE_PYTHON", sys.executable))


def gradio_version() -> tuple[int, ...]:
    """The Gradio of that Python, as (6, 31, 0)."""
    code = "from importlib.metadata import version; print(version('gradio'))"
    told = subprocess.run([page_python(), "-c", code], check=True, capture_output=True, text=True).stdout
    return tuple(int(part) for part in told.strip().split("."))


def install_package(folder: Path) -> Path:
    """The wheel of this checkout, unpacked into a folder for PYTHONPATH: what is not in the wheel is missing there."""
    source, site = folder / "source", folder / "site"
    source.mkdir(parents=True)
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, source / part)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*build, "--wheel-dir", str(folder), str(source)], check=True)
    with zipfile.ZipFile(next(folder.glob("moesr-*.whl"))) as wheel:
        wheel.extractall(site)
    return site
