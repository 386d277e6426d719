"""Models of random weights and the full structure, small enough to sample and decode in a moment."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from moesr.checkpoints.model_files import save_model
from moesr.evaluation.nano_models import nano_config
from moesr.networks.adapters import Adapter
from moesr.networks.autoencoder import Autoencoder
from moesr.networks.denoiser import denoiser

#: Processes that `nano_config` knows, for tests that run over either.
PROCESSES = ("ddpm", "residual_shift")


def save_nano(process: str, folder: Path, *, restore: bool = False) -> Path:
    """Writes such a model into a folder; the file's path. restore: its network is told how degraded the input is."""
    config = nano_config(process)
    if restore:
        unet = replace(config.unet, adapter_ranks=(4, 2))
        autoencoder = replace(config.autoencoder, adapter_ranks=(4, 2), estimator=True)
        config = replace(config, name=f"{config.name}_restore", unet=unet, autoencoder=autoencoder)
    torch.manual_seed(0)
    experts = [denoiser(config.unet) for _ in config.stages]
    decoder = Autoencoder(config.autoencoder)
    for network in (*experts, decoder):
        fill_adapters(network)
    path = folder / f"{config.name}.safetensors"
    torch.nn.init.normal_(decoder.quantize.embedding.weight)  # codes as far apart as latents are
    save_model(path, config, [expert.state_dict() for expert in experts], decoder.state_dict(), torch.float32)
    return path


def fill_adapters(network: torch.nn.Module, std: float = 0.3) -> None:
    """Random weights for adapters, whose last layer is zero at first, so that nothing depends on them."""
    for adapter in network.modules():
        if isinstance(adapter, Adapter):
            torch.nn.init.normal_(adapter.up.weight, std=std)
