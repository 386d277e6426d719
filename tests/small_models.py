"""Models of random weights and the full structure, small enough to sample and decode in a moment."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from moesr.checkpoints.model_files import save_model
from moesr.evaluation.nano_models import nano_config
from moesr.networks.autoencoder import Autoencoder
from moesr.networks.denoiser import denoiser

#: Processes that `nano_config` knows, for tests that run over either.
PROCESSES = ("ddpm", "residual_shift")


def save_nano(process: str, folder: Path, *, restore: bool = False) -> Path:
    """Writes such a model into a folder; the file's path. restore: its network is told how degraded the input is."""
    config = nano_config(process)
    if restore:
        config = replace(config, name=f"{config.name}_restore", unet=replace(config.unet, adapter_ranks=(4, 2)))
    torch.manual_seed(0)
    experts = [denoiser(config.unet).state_dict() for _ in config.stages]
    for weights in experts:
        for name in weights:
            if name.endswith("_adapter.up.weight"):  # zero at first, so that nothing depends on it
                torch.nn.init.normal_(weights[name], std=0.3)
    path = folder / f"{config.name}.safetensors"
    autoencoder = Autoencoder(config.autoencoder)
    torch.nn.init.normal_(autoencoder.quantize.embedding.weight)  # codes as far apart as latents are
    save_model(path, config, experts, autoencoder.state_dict(), torch.float32)
    return path
