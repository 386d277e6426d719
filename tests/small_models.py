"""Models of random weights and the full structure, small enough to sample and decode in a moment."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from moesr.checkpoints.model_files import save_model
from moesr.config import AutoencoderConfig, UNetConfig
from moesr.evaluation.nano_models import nano_config
from moesr.networks.adapters import Adapter
from moesr.networks.autoencoder import Autoencoder
from moesr.networks.denoiser import denoiser
from moesr.networks.lr_cleaner import LRCleaner
from moesr.runtime import Runtime

M = TypeVar("M", bound=nn.Module)

#: A UNet and an autoencoder with all of their parts, for tests of networks alone.
UNET = UNetConfig(model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_downsamples=(2,))
AUTOENCODER = AutoencoderConfig(ch=32, num_res_blocks=1, n_embed=64, fusion_growth=8, fusion_blocks=1)

#: Processes that `nano_config` knows, for tests that run over either.
PROCESSES = ("ddpm", "residual_shift")


def save_nano(process: str, folder: Path, *, restore: bool = False) -> Path:
    """Writes such a model into a folder; the file's path. restore: its network is told how degraded the input is."""
    config = nano_config(process)
    if restore:
        unet = replace(config.unet, adapter_ranks=(4, 2))
        autoencoder = replace(config.autoencoder, adapter_ranks=(4, 2), estimator=True, cleaner_channels=4)
        config = replace(config, name=f"{config.name}_restore", unet=unet, autoencoder=autoencoder)
    torch.manual_seed(0)
    experts = [denoiser(config.unet) for _ in config.stages]
    decoder = Autoencoder(config.autoencoder)
    for network in (*experts, decoder):
        fill_adapters(network)
    path = folder / f"{config.name}.safetensors"
    nn.init.normal_(decoder.quantize.embedding.weight)  # codes as far apart as latents are
    save_model(path, config, [expert.state_dict() for expert in experts], decoder.state_dict(), torch.float32)
    return path


def wear_in(module: M) -> M:
    """The module in eval mode, with every parameter and statistic away from its initial value, as after training."""
    for parameter in module.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.02)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.normal_(0, 0.2)
            layer.running_var.uniform_(0.5, 2.0)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, 0, 0.2)
    return module.eval()


def fill_adapters(network: nn.Module, std: float = 0.3) -> None:
    """Random weights for adapters and cleaners, whose last layer is zero at first, so that nothing depends on them."""
    for part in network.modules():
        if isinstance(part, (Adapter, LRCleaner)):
            nn.init.normal_((part.up if isinstance(part, Adapter) else part.end).weight, std=std)


class Largest(TorchDispatchMode):
    """Records how many numbers the largest tensor has that is made in the block. pictures: of those with RGB planes."""

    entries = 0

    def __init__(self, *, pictures: bool = False) -> None:
        super().__init__()
        self.pictures = pictures

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            is_picture = isinstance(x, torch.Tensor) and x.is_floating_point() and x.shape[-3:-2] == (3,)
            if is_picture or (isinstance(x, torch.Tensor) and not self.pictures):
                self.entries = max(self.entries, x.numel())
        return out


class Room(Runtime):
    """A runtime with that many bytes free."""

    def __init__(self, free: int) -> None:
        self.free = free

    def free_memory(self, device: torch.device) -> int:
        return self.free
