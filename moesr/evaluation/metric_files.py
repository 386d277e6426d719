"""The folder of the metrics' weights, and networks filled from the files in it."""

from __future__ import annotations

import os
from pathlib import Path

from torch import Tensor, nn

from ..checkpoints.weight_reading import Weights
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


def fill(network: nn.Module, weights: Weights, what: str) -> None:
    """Load a network's tensors by name as float32; what else is in the file is ignored.

    A `params.` before all names is dropped, as training frameworks put one. Raises CheckpointError, one line, when a
    tensor is missing or of another shape.
    """
    keys, shapes = bare_keys(weights), weights.shapes()
    state: dict[str, Tensor] = {}
    for name, value in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        if name not in keys or shapes[keys[name]] != tuple(value.shape):
            raise CheckpointError(f"{weights.path}: not {what}; {name} is missing or of another shape")
        state[name] = weights[keys[name]].float()
    network.load_state_dict(state, strict=False)


def bare_keys(weights: Weights) -> dict[str, str]:
    """The keys of a file by their names without `params.`."""
    return {key.removeprefix("params."): key for key in weights}
