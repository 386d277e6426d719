"""The parts of the full-size model with random weights, each as a run, with its plain twin where there is one."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ...config import AutoencoderConfig, ModelConfig, ProcessConfig, SwinUNetConfig, UNetConfig
from ...errors import SettingError
from ...model import SRModel
from ...networks.autoencoder import Autoencoder
from ...networks.denoiser import denoiser
from ...networks.unet import UNet
from ..nano_models import assemble
from . import plain_networks as plain_networks
from .measure import Run, tmac


@dataclass(frozen=True)
class Part:
    """A piece of work: `run`, the same done plainly, and the same on `meta`, to count its products."""

    name: str
    run: Run
    plain: Run | None
    count: Run


def read_reference(path: Path | None) -> ModuleType:
    """The plain networks to compare with: those of this package, or a Python file with the same functions.

    Raises SettingError for a file that does not exist.
    """
    if path is None:
        return plain_networks
    spec = importlib.util.spec_from_file_location("moesr_plain_reference", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise SettingError(
            f"{path}: no such Python file; speed/plain_networks.py shows what it must define"
        )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def network(kind: Callable[..., nn.Module], config: object, dtype: torch.dtype, device: torch.device) -> Any:
    """A network with random weights, ready to run."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(config).to(device, dtype).eval().requires_grad_(False)


def full_size_model(kind: str, steps: int, dtype: torch.dtype, device: torch.device) -> SRModel:
    """A full-size model, MoESR or ResShift of so many timesteps, with random weights, which its experts share."""
    if kind == "MoESR":
        config = ModelConfig(unet=UNetConfig(), autoencoder=AutoencoderConfig(), name=kind)
    else:
        vae = replace(AutoencoderConfig(), lr_fusion=False, refine=False)
        process = ProcessConfig("residual_shift", steps, "x0")
        config = ModelConfig(SwinUNetConfig(), vae, process, (steps,), 4, steps, lr_resize="torch", name=kind)
    experts = [network(denoiser, config.unet, dtype, device)] * len(config.stages)
    autoencoder = network(Autoencoder, config.autoencoder, dtype, device)
    return assemble(config, experts, autoencoder, device=device, dtype=dtype)


def plain_run(plain: ModuleType, model: SRModel, steps: int, latent: int) -> Run:
    """What a run of the model computes, by the plain networks: steps on a latent of that side, then decoding."""
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
    """10^12 products of a run: of its steps on a latent of that side and of decoding (and encoding, for ResShift)."""
    unet, vae = _on_meta(denoiser, config.unet), _on_meta(Autoencoder, config.autoencoder)
    side = latent * config.autoencoder.factor
    z, detail = torch.zeros(1, 3, latent, latent, device="meta"), latent * config.unet.detail
    lr, image = torch.zeros(1, 3, detail, detail, device="meta"), torch.zeros(1, 3, side, side, device="meta")
    time = torch.zeros(1, device="meta")
    ends = tmac(lambda: vae.decode(z, vae.features(image)))
    if config.process.kind == "residual_shift":
        ends += tmac(lambda: vae.encode(image))
    return steps * tmac(lambda: unet(z, time, lr)) + ends


def step(latent: int, dtype: torch.dtype, device: torch.device, plain: ModuleType | None) -> Part:
    """One evaluation of a full-size time expert on a latent of that side."""
    config = UNetConfig()
    unet = network(UNet, config, dtype, device)
    x, lr = _random((2, 3, latent, latent), dtype, device).split(1)
    t = torch.tensor([500], device=device)
    meta = _on_meta(UNet, config)
    counted = torch.zeros(1, 6, latent, latent, device="meta"), torch.zeros(1, device="meta")
    return Part(
        f"step, latent {latent} x {latent}",
        lambda: unet(x, t, lr),
        None if plain is None else lambda: plain.step(unet, x, t, lr),
        lambda: meta(*counted),
    )


class Decoder:
    """The full-size decoder's parts for a square output of that side."""

    def __init__(self, side: int, dtype: torch.dtype, device: torch.device, plain: ModuleType | None) -> None:
        self.side, self.plain = side, plain
        config = AutoencoderConfig()
        self.net = network(Autoencoder, config, dtype, device)
        self.meta = _on_meta(Autoencoder, config)
        self.z = _random((1, 3, side // 4, side // 4), torch.float32, device)
        self.lr = _random((1, 3, side, side), dtype, device).clamp(-1, 1)

    def all(self) -> Part:
        """Features and decode: what a tile costs."""
        net, plain, z, lr = self.net, self.plain, self.z, self.lr
        zeros, image = self._meta(z), self._meta(lr)
        return Part(
            f"features + decode, {self.side} x {self.side}",
            lambda: net.decode(z, net.features(lr)),
            None if plain is None else lambda: plain.features_and_decode(net, z.to(lr.dtype), lr),
            lambda: self.meta.decode(zeros, self.meta.features(image)),
        )

    def parts(self) -> list[Part]:
        """Features of the LR image, and of the decoder: attention, fusion, AFF U-Net, and what is left of it."""
        net, meta, plain, lr, side = self.net, self.meta, self.plain, self.lr, self.side
        image, ch = self._meta(lr), net.config.ch
        deep = self._features(4 * ch, side // 4)
        half = self._features(2 * ch, side // 2)
        full = self._features(ch, side)
        attention, fusion, refine = net.decoder.mid.attn_1, net.decoder.fusion_layer_1, net.decoder.unet_1
        m = meta.decoder
        parts = [
            Part("  features", lambda: net.features(lr), None, lambda: meta.features(image)),
            Part("  mid attention", lambda: attention(deep), None, lambda: m.mid.attn_1(self._meta(deep))),
            Part(
                "  LR fusion", lambda: fusion(half, half, 1.0), None,
                lambda: m.fusion_layer_1(self._meta(half), self._meta(half), 1.0),
            ),
            Part("  AFF U-Net", lambda: refine(full), None, lambda: m.unet_1(self._meta(full))),
        ]  # fmt: skip
        if plain is None:
            return parts
        twins: list[Run] = [
            lambda: plain.features(net, lr),
            lambda: plain.mid_attention(attention, deep),
            lambda: plain.fusion(fusion, half, half, 1.0),
            lambda: plain.frequency_unet(refine, full),
        ]
        return [Part(p.name, p.run, twin, p.count) for p, twin in zip(parts, twins)]

    def _features(self, channels: int, side: int) -> Tensor:
        return _random((1, channels, side, side), self.lr.dtype, self.lr.device)

    @staticmethod
    def _meta(x: Tensor) -> Tensor:
        return torch.zeros(x.shape, device="meta")


def _on_meta(kind: Callable[..., nn.Module], config: object) -> Any:
    with torch.device("meta"):
        return kind(config).eval().requires_grad_(False)


def _random(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device, dtype)
