"""Models of random weights and the full structure, small enough to sample and decode in a moment."""

from __future__ import annotations

from pathlib import Path

import torch

from moesr.checkpoints.files import save_model
from moesr.config import AutoencoderConfig, ModelConfig, ProcessConfig, UNetConfig
from moesr.networks.autoencoder import Autoencoder
from moesr.networks.denoiser import denoiser

PROCESSES = {
    "ddpm": ProcessConfig(),
    "residual_shift": ProcessConfig(kind="residual_shift", predict="residual", kappa=1.0),
}


def nano_config(process: str) -> ModelConfig:
    return ModelConfig(
        name=f"nano_{process}",
        scale=4,
        steps=4,
        unet=UNetConfig(
            model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_downsamples=(2,), norm_groups=8
        ),
        autoencoder=AutoencoderConfig(
            ch=32,
            num_res_blocks=1,
            n_embed=64,
            norm_groups=8,
            fusion_growth=8,
            fusion_blocks=1,
            lr_skip=process == "residual_shift",
        ),
        process=PROCESSES[process],
    )


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
