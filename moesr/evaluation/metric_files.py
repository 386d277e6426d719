"""The files of the metrics' weights."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import CheckpointError

_KINDS = (".pth", ".pt", ".safetensors", ".npz")


def find_weights(folder: str | Path | None, word: str, prefer: str = "") -> Path:
    """The weight file with `word` in its name; of several one with `prefer`, then the first by name.

    folder: None is the one that MOESR_METRICS names, or `metrics`. Raises CheckpointError where there is none.
    """
    folder = Path(folder or os.environ.get("MOESR_METRICS", "metrics"))
    there = sorted(folder.iterdir()) if folder.is_dir() else []
    files = [p for p in there if word in p.name.lower() and p.suffix in _KINDS]
    if not files:
        way_out = "set MOESR_METRICS or give the folder; docs/metrics.md says which file it is"
        raise CheckpointError(f"{folder}/*{word}*: not found ({way_out})")
    return next((p for p in files if prefer in p.name.lower()), files[0])
