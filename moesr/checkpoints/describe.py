"""What a file is, for `info`: a description that never builds a network with weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..config import ModelConfig, SwinUNetConfig, averaged, unet_values
from ..errors import CheckpointError
from ..networks.autoencoder import Autoencoder
from ..networks.denoiser import denoiser
from ..networks.unet import UNet
from .detect import EMA, find_role
from .header import LICENCE, read_sources
from .model_files import open_autoencoder, open_model
from .resshift import find_network, holds_swin, schedule
from .stage_files import open_stage, read_stage_number
from .unknown_files import one_line
from .weight_reading import Weights

Facts = dict[str, Any]


def describe(path: Path, scale: int | None = None, timesteps: int | None = None) -> Facts:
    """Plain values: kind of file, config, parameter counts, notes. Raises CheckpointError if it is none of ours.

    A stage file, a decoder or a network of ResShift is described by itself, although it is not a whole model. scale,
    timesteps: as for `moesr.load`.
    """
    if path.is_file():
        weights = Weights(path)
        kind = find_role(weights)
        if kind == "autoencoder":
            return _describe_decoder(path)
        if kind == "expert" and holds_swin(weights):
            try:
                open_model(path, scale, timesteps)
            except CheckpointError as error:
                return _describe_swin(path, weights, timesteps, str(error))
        elif kind == "expert" and read_stage_number(path) is not None:
            return _describe_stage(path, weights)
    files = open_model(path, scale, timesteps)
    facts: Facts = {
        "path": str(path),
        "kind": "MoESR model" if files.converted else _name_release(files.config),
        "bytes": sum(p.stat().st_size for p in files.paths),
        "experts": len(files.config.stages),
        "scale": files.config.scale,
        "parameters": _count_parameters(files.config),
        "config": files.config.to_dict(),
        "notes": list(files.notes),
    }
    if files.converted:
        facts["sources"] = [asdict(s) for s in read_sources(files.converted)]
        facts["licence"] = one_line(files.converted.metadata.get(LICENCE, ""), 1000)
    else:
        facts["files"] = [str(p) for p in files.paths]
    return facts


def format_facts(facts: Facts) -> str:
    """The same for people: a few lines."""
    lines = [f"{facts['path']}: {facts['kind']}, {facts['bytes'] / 1e6:.1f} MB"]
    config = facts["config"]
    if "scale" in facts:
        process = config["process"]
        spans = " | ".join(f"{a} to {b - 1}" for a, b in zip((0, *config["stages"]), config["stages"]))
        lines += [
            f"  scale      x{facts['scale']}",
            f"  experts    {facts['experts']}, timesteps {spans}",
            f"  process    {process['kind']}, {process['timesteps']} timesteps, predicts {process['predict']}",
        ]
    if "unet" in config:
        unet = config["unet"]
        own = _describe_attention(unet) if unet["kind"] == SwinUNetConfig.kind else _describe_moe(unet)
        lines.append(
            f"  unet       {unet['model_channels']} channels x {list(unet['channel_mult'])}, "
            f"{_format_numbers(unet['num_res_blocks'])} blocks per level, {own}"
        )
    if "autoencoder" in config:
        vae = config["autoencoder"]
        extras = [name for name, there in (("LR fusion", vae["lr_fusion"]), ("AFF U-Net", vae["refine"])) if there]
        lines.append(f"  decoder    {vae['kind']} f{2 ** (len(vae['ch_mult']) - 1)}, {', '.join(extras) or 'plain'}")
    counts = ", ".join(f"{name} {count / 1e6:.2f} M" for name, count in facts["parameters"].items())
    lines.append(f"  parameters {counts}")
    lines += [f"  file       {name}" for name in facts.get("files", [])]
    lines += [f"  made from  {s['name']}, sha256 {s['sha256']}" for s in facts.get("sources", [])]
    lines += [f"  licence    {facts['licence']}"] if facts.get("licence") else []
    return "\n".join([*lines, *(f"  note       {note}" for note in facts["notes"])])


def _describe_moe(unet: Facts) -> str:
    experts = unet["space_experts"]
    return f"Space MoE: {experts} FFNs" if experts > 1 else f"Space MoE: {'averaged' if experts else 'none'}"


def _describe_attention(unet: Facts) -> str:
    lr = "LR image and mask" if unet["mask"] else "LR image"
    return f"windows of {unet['window']}, {lr} at {2 ** unet['lr_downsamples']} x the latent"


def _format_numbers(numbers: Any) -> str:
    """One number where all levels have the same."""
    different = numbers if isinstance(numbers, (list, tuple)) else [numbers]
    return str(different[0] if len(set(different)) == 1 else list(different))


def _describe_decoder(path: Path) -> Facts:
    config, _ = open_autoencoder(path)
    if config.kind == "kl":
        note = "decodes Stable Diffusion 1.5 latents; it is no super-resolution model by itself"
    elif config.lr_fusion:
        note = "give it together with the stage files"
    else:
        note = "a plain first stage"
    kind = "frequency-compensated decoder" if config.refine else "first stage"
    return _describe_file(path, kind, {"decoder": _count(Autoencoder, config)}, [note], autoencoder=asdict(config))


def _describe_stage(path: Path, weights: Weights) -> Facts:
    config, view, notes = open_stage(weights)
    number = read_stage_number(path)
    counts = {"as trained": _count(UNet, config), "averaged": _count(UNet, averaged(config))}
    notes = [*notes, "one time expert; give the folder with all stages and the decoder"]
    facts = _describe_file(path, f"stage {number} of a released model", counts, notes, unet=unet_values(config))
    return {**facts, "stage": number, "ema": any(key.startswith(EMA) for key in view.sources(next(iter(view))))}


def _describe_swin(path: Path, weights: Weights, timesteps: int | None, missing: str) -> Facts:
    config, _ = find_network(weights)
    process, notes = schedule(path, config, timesteps)
    notes = [*notes, one_line(missing.removeprefix(f"{path}: "), 400)]
    counts = {"network": _count(denoiser, config)}
    facts = _describe_file(path, "ResShift network", counts, notes, unet=unet_values(config))
    return {**facts, "timesteps": process.timesteps}


def _describe_file(path: Path, kind: str, parameters: Facts, notes: list[str], **config: Facts) -> Facts:
    size = path.stat().st_size
    return {"path": str(path), "kind": kind, "bytes": size, "parameters": parameters, "config": config, "notes": notes}


def _name_release(config: ModelConfig) -> str:
    if isinstance(config.unet, SwinUNetConfig):
        return "ResShift checkpoint"
    return "released MoESR checkpoints" if config.unet.space_experts else "LDM-SR checkpoint, one expert"


def _count_parameters(config: ModelConfig) -> dict[str, int]:
    expert, decoder = _count(denoiser, config.unet), _count(Autoencoder, config.autoencoder)
    return {"expert": expert, "decoder": decoder, "all": expert * len(config.stages) + decoder}


def _count(kind: Callable[[Any], nn.Module], config: object) -> int:
    with torch.device("meta"):
        network = kind(config)
    return sum(p.numel() for p in network.parameters())
