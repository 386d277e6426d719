"""Models of random weights and the full structure, small enough to sample and decode in a moment."""

from __future__ import annotations

from pathlib import Path

import torch

from moesr.checkpoints.model_files import save_model
from moesr.evaluation.nano_models import nano_config
from moesr.networks.autoencoder import Autoencoder
from moesr.networks.denoiser import denoiser

#: Processes that `nano_config` knows, for tests that run over either.
PROCESSES = ("ddpm", "residual_shift")


def save_nano(process: str, folder: Path) -> Path:
    """Writes such a model into a folder; the file's path."""
    config = nano_config(process)
    torch.manual_seed(0)
    experts = [denoiser(config.unet).state_dict() for _ in config.stages]
    path = folder / f"{config.name}.safetensors"
    autoencoder = Autoencoder(config.autoencoder)
    torch.nn.init.normal_(autoencoder.quantize.embedding.weight)  # codes as far apart as latents are
    save_model(path, config, experts, autoencoder.state_dict(), torch.float32)
    return path
