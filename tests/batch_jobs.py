"""Pictures in folders, batch jobs in other processes, and what both leave behind."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent


def draw(path: Path, seed: int = 0, size: tuple[int, int] = (16, 12)) -> Path:
    """A picture of noise, (width, height) pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)).save(path)
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
