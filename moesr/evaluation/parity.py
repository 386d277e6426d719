"""Numbers to compare a device by: networks with random weights, their expected outputs, and measures of difference."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from .nano_models import NANO_KL, build_autoencoder, build_denoiser, nano_config
from .speed import plain_networks


def parity_cases() -> Iterator[tuple[str, Tensor, Callable[[torch.device, torch.dtype], Tensor]]]:
    """Name, expected output (float32 on the CPU), and a function that computes it on a device in a number format."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def as_written(run: Callable[[], Tensor]) -> Tensor:
        with torch.enable_grad():  # nothing is folded, fused or cut into bands while gradients could be recorded
            return run().detach()

    config = nano_config("ddpm")
    x, lr, picture = normal(1, 3, 8, 8), normal(1, 3, 8, 8), normal(1, 3, 32, 32).clamp(-1, 1)
    t = torch.tensor([500])
    unet, swin_config = build_denoiser(config.unet), nano_config("swin").unet
    swin = build_denoiser(swin_config)
    vq, kl = build_autoencoder(config.autoencoder), build_autoencoder(NANO_KL)
    codes = vq.quantize.embedding.weight[torch.randint(64, (1, 8, 8), generator=generator)].movedim(-1, 1)
    latent = normal(1, 4, 4, 4)

    def expert(build: Callable[[], nn.Module], t: Tensor) -> Callable[[torch.device, torch.dtype], Tensor]:
        return lambda device, dtype: build().to(device, dtype)(x.to(device, dtype), t.to(device), lr.to(device, dtype))

    def decode_vq(device: torch.device, dtype: torch.dtype) -> Tensor:
        network = build_autoencoder(config.autoencoder).to(device, dtype)
        return network.decode(codes.to(device), network.features(picture.to(device, dtype)))

    def decode_kl(device: torch.device, dtype: torch.dtype) -> Tensor:
        return build_autoencoder(NANO_KL).to(device, dtype).decode(latent.to(device, dtype))

    early = torch.tensor([2])
    yield "expert", plain_networks.step(unet, x, t, lr), expert(lambda: build_denoiser(config.unet), t)
    yield "swin", as_written(lambda: swin(x, early, lr)), expert(lambda: build_denoiser(swin_config), early)
    yield "decoder", plain_networks.features_and_decode(vq, codes, picture), decode_vq
    yield "kl decoder", as_written(lambda: kl.decode(latent)), decode_kl


def largest_difference(values: Tensor, expected: Tensor) -> float:
    """The largest absolute difference as a part of the largest expected value; NaN if a value is NaN."""
    return float((values.float().cpu() - expected).abs().max() / expected.abs().max())


def share_within_a_level(pixels: np.ndarray, expected: np.ndarray) -> float:
    """Part of the samples of two uint8 pictures that differ by at most 1."""
    return float((np.abs(pixels.astype(int) - expected) <= 1).mean())


def psnr(pixels: np.ndarray, expected: np.ndarray) -> float:
    """PSNR in dB of two uint8 pictures; 99 where they are equal."""
    error = float(np.square(pixels.astype(float) - expected).mean())
    return 99.0 if error == 0 else 10 * math.log10(255**2 / error)


def synthetic_picture(side: int) -> np.ndarray:
    """Smooth colours with some noise, uint8 [side, side, 3], the same on every machine but for rounding."""
    y, x = np.mgrid[:side, :side] / 16
    waves = np.stack([np.sin(y + k) * np.cos(x * (k + 1) / 2) for k in range(3)], axis=-1)
    noise = np.random.default_rng(0).normal(0, 0.03, waves.shape)
    return ((waves * 0.35 + 0.5 + noise) * 255).clip(0, 255).astype(np.uint8)
