"""Files that training stages hand to one another. They appear whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from ..atomic_files import open_new
from ..checkpoints.weight_writing import Entry, write


def save(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write a state dict."""
    write(path, [Entry(name, value.shape, value.dtype, lambda v=value: v) for name, value in weights.items()], {})


def load(path: Path) -> dict[str, Tensor]:
    """Read a state dict as float32; integer tensors stay as they are."""
    return {k: v.float() if v.is_floating_point() else v for k, v in load_file(path).items()}


def write_json(path: Path, values: Mapping[str, object]) -> None:
    """Write values as JSON."""
    with open_new(path, replaces=True) as file:
        file.write((json.dumps(values, indent=2) + "\n").encode())
