"""A finished run as one model file."""

from __future__ import annotations

from pathlib import Path

import torch

from ..checkpoints.files import save_model
from ..errors import NumericsError
from . import weights
from .config import TrainingConfig
from .stages import with_facts


def export(config: TrainingConfig, run: Path, path: Path) -> Path:
    """Write the run's averaged experts and its decoder as a fp16 safetensors file that `moesr.load` opens."""
    model = with_facts(config.model, run)
    experts = [weights.load(run / f"stage{i}" / f"stage{i}.safetensors") for i in range(len(model.stages))]
    decoder = weights.load(run / "decoder" / "decoder.safetensors")
    if not all(weights.finite(part) for part in (*experts, decoder)):
        raise NumericsError(f"{run}: weights that are not numbers; train from the last good state again")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_model(path, model, experts, decoder, torch.float16)
    return path
