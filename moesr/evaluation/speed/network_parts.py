"""The parts of the full-size model with random weights, each as a run, beside the plain networks that do the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ...config import AutoencoderConfig, ModelConfig, ProcessConfig, SwinUNetConfig, UNetConfig
from ...model import SRModel
from ...networks.autoencoder import Autoencoder
from ...networks.denoiser import denoiser
from ...networks.unet import UNet
from ..nano_models import assemble
from . import plain_networks as plain
from .measure import Run, count_products


@dataclass(frozen=True)
class Part:
    """A piece of work."""

    name: str
    #: By our networks.
    run: Run
    #: By the plain networks.
    plain: Run
    #: By our networks on the meta device, to count its products.
    count: Run


def full_size_model(kind: str, steps: int, dtype: torch.dtype, device: torch.device) -> SRModel:
    """MoESR, or ResShift of `steps` timesteps, in full size. Its experts share one set of random weights."""
    if kind == "MoESR":
        config = ModelConfig(unet=UNetConfig(), autoencoder=AutoencoderConfig(), name=kind)
    else:
        vae = replace(AutoencoderConfig(), lr_fusion=False, refine=False)
        process = ProcessConfig("residual_shift", steps, "x0")
        config = ModelConfig(SwinUNetConfig(), vae, process, (steps,), 4, steps, lr_resize="torch", name=kind)
    experts = [_build(denoiser, config.unet, dtype, device)] * len(config.stages)
    autoencoder = _build(Autoencoder, config.autoencoder, dtype, device)
    return assemble(config, experts, autoencoder, device=device, dtype=dtype)


def plain_run(model: SRModel, steps: int, latent: int) -> Run:
    """What a run of the model computes, by the plain networks: `steps` on a latent of that side, then decoding."""
    factor = model.config.autoencoder.factor
    x, lr = _random((2, 3, latent, latent), model.dtype, model.device).split(1)
    image = _random((1, 3, latent * factor, latent * factor), model.dtype, model.device).clamp(-1, 1)
    t = torch.tensor([500], device=model.device)

    @torch.inference_mode()
    def run() -> None:
        with model.bank.stage(500) as expert:
            for _ in range(steps):
                plain.step(expert, x, t, lr)
        plain.features_and_decode(model.autoencoder, x, image)

    return run


def count_run(config: ModelConfig, steps: int, latent: int) -> float:
    """10^12 products of a run: steps on a latent of that side, decoding, and for ResShift encoding."""
    unet, vae = _build_meta(denoiser, config.unet), _build_meta(Autoencoder, config.autoencoder)
    side, condition = latent * config.autoencoder.factor, latent * config.unet.detail
    z, lr, image = (torch.zeros(1, 3, n, n, device="meta") for n in (latent, condition, side))
    ends = count_products(lambda: vae.decode(z, vae.features(image)))
    if config.process.kind == "residual_shift":
        ends += count_products(lambda: vae.encode(image))
    return steps * count_products(lambda: unet(z, torch.zeros(1, device="meta"), lr)) + ends


def expert_step(latent: int, dtype: torch.dtype, device: torch.device) -> Part:
    """One evaluation of a full-size time expert on a latent of that side."""
    unet, meta = _build(UNet, UNetConfig(), dtype, device), _build_meta(UNet, UNetConfig())
    x, lr = _random((2, 3, latent, latent), dtype, device).split(1)
    t = torch.tensor([500], device=device)
    return Part(
        f"step, latent {latent} x {latent}",
        lambda: unet(x, t, lr),
        lambda: plain.step(unet, x, t, lr),
        lambda: meta(_empty(x), _empty(t), _empty(lr)),
    )


def decoder_parts(side: int, dtype: torch.dtype, device: torch.device) -> list[Part]:
    """The full-size decoder for a square output of `side` pixels: first all that a tile costs, then its main parts."""
    config = AutoencoderConfig()
    net, meta = _build(Autoencoder, config, dtype, device), _build_meta(Autoencoder, config)
    z = _random((1, 3, side // 4, side // 4), torch.float32, device)
    lr = _random((1, 3, side, side), dtype, device).clamp(-1, 1)
    deep, half, full = (_random((1, n * config.ch, side // n, side // n), dtype, device) for n in (4, 2, 1))
    ours, counted = net.decoder, meta.decoder
    return [
        Part(
            f"features + decode, {side} x {side}",
            lambda: net.decode(z, net.features(lr)),
            lambda: plain.features_and_decode(net, z.to(dtype), lr),
            lambda: meta.decode(_empty(z), meta.features(_empty(lr))),
        ),
        Part(
            "  features",
            lambda: net.features(lr), lambda: plain.features(net, lr), lambda: meta.features(_empty(lr)),
        ),
        Part(
            "  mid attention",
            lambda: ours.mid.attn_1(deep),
            lambda: plain.mid_attention(ours.mid.attn_1, deep),
            lambda: counted.mid.attn_1(_empty(deep)),
        ),
        Part(
            "  LR fusion",
            lambda: ours.fusion_layer_1(half, half, 1.0),
            lambda: plain.fusion(ours.fusion_layer_1, half, half, 1.0),
            lambda: counted.fusion_layer_1(_empty(half), _empty(half), 1.0),
        ),
        Part(
            "  AFF U-Net",
            lambda: ours.unet_1(full),
            lambda: plain.frequency_unet(ours.unet_1, full),
            lambda: counted.unet_1(_empty(full)),
        ),
    ]  # fmt: skip


def _build(kind: Callable[..., nn.Module], config: object, dtype: torch.dtype, device: torch.device) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(config).to(device, dtype).eval().requires_grad_(False)


def _build_meta(kind: Callable[..., nn.Module], config: object) -> Any:
    with torch.device("meta"):
        return kind(config).eval().requires_grad_(False)


def _empty(x: Tensor) -> Tensor:
    return torch.zeros(x.shape, device="meta")


def _random(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device, dtype)
