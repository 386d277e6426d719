"""What a file is, for `info`: a description that never builds a network with weights."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..config import ModelConfig
from ..networks.autoencoder import Autoencoder
from ..networks.unet import UNet
from .detect import autoencoder_config
from .files import HEADER, open_model
from .reading import Weights


def describe(path: Path, scale: int | None = None) -> dict[str, Any]:
    """Plain values: kind of file, config, parameter counts, notes. Raises CheckpointError if it is none of ours."""
    if path.is_file():
        weights = Weights(path)
        keys = set(weights)
        if HEADER not in weights.metadata and "decoder.conv_out.weight" in keys and "encoder.conv_out.weight" in keys:
            return _decoder(path, weights)
    files = open_model(path, scale)
    kind = "MoESR model" if path.is_file() and HEADER in Weights(path).metadata else "released checkpoints"
    return {
        "path": str(path),
        "kind": kind,
        "bytes": sum(p.stat().st_size for p in files.paths),
        "experts": len(files.config.stages),
        "scale": files.config.scale,
        "parameters": _parameters(files.config),
        "config": files.config.to_dict(),
        "notes": list(files.notes),
    }


def as_text(facts: dict[str, Any]) -> str:
    """The same for people: a few lines."""
    lines = [f"{facts['path']}: {facts['kind']}, {facts['bytes'] / 1e6:.1f} MB"]
    if "experts" in facts:
        config = facts["config"]
        unet, process = config["unet"], config["process"]
        spans = " | ".join(f"{a} to {b - 1}" for a, b in zip((0, *config["stages"]), config["stages"]))
        lines += [
            f"  scale      x{facts['scale']}",
            f"  experts    {facts['experts']}, timesteps {spans}",
            f"  process    {process['kind']}, {process['timesteps']} timesteps, predicts {process['predict']}",
            f"  unet       {unet['model_channels']} channels x {list(unet['channel_mult'])}, "
            f"{unet['num_res_blocks']} blocks a level, Space MoE: {'averaged' if unet['space_experts'] else 'none'}",
        ]
    vae = facts["config"]["autoencoder"]
    extras = [name for name, there in (("LR fusion", vae["lr_fusion"]), ("AFF U-Net", vae["refine"])) if there]
    lines.append(f"  decoder    {vae['kind']} f{2 ** (len(vae['ch_mult']) - 1)}, {', '.join(extras) or 'plain'}")
    counts = ", ".join(f"{name} {count / 1e6:.2f} M" for name, count in facts["parameters"].items())
    lines.append(f"  parameters {counts}")
    return "\n".join([*lines, *(f"  note       {note}" for note in facts["notes"])])


def _decoder(path: Path, weights: Weights) -> dict[str, Any]:
    config = autoencoder_config(weights.shapes())
    notes = []
    if config.kind == "kl":
        notes.append("decodes Stable Diffusion 1.5 latents; it is no super-resolution model by itself")
    elif config.lr_fusion:
        notes.append("give it together with the stage files")
    else:
        notes.append("a plain first stage")
    return {
        "path": str(path),
        "kind": "frequency-compensated decoder" if config.refine else "first stage",
        "bytes": path.stat().st_size,
        "parameters": {"decoder": _count(Autoencoder, config)},
        "config": {"autoencoder": asdict(config)},
        "notes": notes,
    }


def _parameters(config: ModelConfig) -> dict[str, int]:
    expert, decoder = _count(UNet, config.unet), _count(Autoencoder, config.autoencoder)
    return {"expert": expert, "decoder": decoder, "all": expert * len(config.stages) + decoder}


def _count(kind: Any, config: object) -> int:
    with torch.device("meta"):
        network = kind(config)
    return sum(p.numel() for p in network.parameters())
