"""Which network a config describes."""

from __future__ import annotations

from ..config import NetworkConfig, SwinUNetConfig
from .swin_unet import SwinUNet
from .unet import UNet


def denoiser(config: NetworkConfig) -> UNet | SwinUNet:
    """The network of a config; both kinds are called with a latent, timesteps and the condition."""
    return SwinUNet(config) if isinstance(config, SwinUNetConfig) else UNet(config)
