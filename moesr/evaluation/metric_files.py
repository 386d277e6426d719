"""The folder of the metrics' weights, and the files in it."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import CheckpointError

_KINDS = (".pth", ".pt", ".safetensors")


def metrics_folder(weights: str | Path | None = None) -> Path:
    """The folder that is given, or the one that MOESR_METRICS names, or `metrics`. It need not exist."""
    return Path(weights or os.environ.get("MOESR_METRICS", "metrics"))


def find_weights(folder: Path, word: str, prefer: str = "") -> Path:
    """The weight file with `word` in its name; of several one with `prefer`, then the first by name.

    Raises CheckpointError where there is none.
    """
    there = sorted(folder.iterdir()) if folder.is_dir() else []
    files = [p for p in there if word in p.name.lower() and p.suffix in _KINDS]
    if not files:
        raise CheckpointError(f"{folder}/*{word}*.pth: not found (docs/metrics.md says which file it is)")
    return next((p for p in files if prefer in p.name.lower()), files[0])
