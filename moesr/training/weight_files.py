"""Files that training stages hand to one another, written under a temporary name."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


def save(weights: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a state dict; the file appears whole or not at all."""
    partial = path.with_suffix(".partial")
    save_file({k: v.detach().cpu().contiguous().clone() for k, v in weights.items()}, partial, metadata)
    os.replace(partial, path)


def load(path: Path) -> dict[str, Tensor]:
    """Read a state dict as float32 (integer tensors stay what they are)."""
    return {k: v.float() if v.is_floating_point() else v for k, v in load_file(path).items()}


def are_finite(weights: Mapping[str, Tensor]) -> bool:
    """Whether every weight is a number."""
    return all(bool(torch.isfinite(v).all()) for v in weights.values() if v.is_floating_point())


def write_json(path: Path, values: Mapping[str, object]) -> None:
    """Write values as JSON; the file appears whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(values, indent=2) + "\n")
    os.replace(partial, path)
