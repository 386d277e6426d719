"""Very small models, photographs and metrics to train with, in seconds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from moesr.config import AutoencoderConfig
from moesr.evaluation.lpips import _vgg16
from moesr.networks.autoencoder import Autoencoder
from moesr.training.config import TrainingConfig, from_dict
from moesr.training.decoder import FCD
from moesr.training.engine import Engine, LaunchedEngine
from moesr.training.experts import Expert
from moesr.training.first_stage import FirstStage
from moesr.training.loader import Loader
from moesr.training.loop import Batch, LoopConfig, run

LOOP = {"steps": 2, "batch": 2, "warmup": 1, "save_every": 1, "log_every": 1}


def values(kind: str = "vq", **loop: Any) -> dict[str, Any]:
    """A training config: "vq" as the paper has it, "kl" as `tiny` has it (skip, KL)."""
    steps = {**LOOP, **loop}
    unet = {"model_channels": 16, "channel_mult": [1, 1], "num_res_blocks": 1, "attention_downsamples": [2]}
    unet |= {"num_head_channels": 8, "norm_groups": 8}
    autoencoder = {"ch": 16, "num_res_blocks": 1, "n_embed": 32, "fusion_growth": 8, "fusion_blocks": 1}
    autoencoder |= {"norm_groups": 8, "mid_attention": False}
    process = {"kind": "residual_shift", "timesteps": 100, "predict": "residual"}
    first: dict[str, Any] = {"loop": steps, "crop": 32, "lpips": "alex", "gan_start": 1}
    decoder: dict[str, Any] = {"loop": steps, "crop": 32, "cache": 5, "sample_steps": 2, "train": "fcd"}
    decoder |= {"lpips": {"alex": 1.0}, "gan_start": 1}
    if kind == "kl":
        unet |= {"in_channels": 7, "out_channels": 4}
        autoencoder |= {"kind": "kl", "z_channels": 4, "embed_dim": 4, "lr_skip": True}
        first |= {"skip": True, "guide_weight": 1.0}
        decoder |= {"train": "decoder"}
    model = {"name": "seed", "scale": 4, "steps": 2, "stages": [50, 100]}
    return {
        "model": {**model, "unet": unet, "autoencoder": autoencoder, "process": process},
        "first_stage": first,
        "experts": {"loop": steps, "trunk": steps, "crop": 32},
        "decoder": decoder,
    }


def config(kind: str = "vq", **loop: Any) -> TrainingConfig:
    return from_dict(values(kind, **loop))


def write_config(path: Path, kind: str = "vq", **loop: Any) -> Path:
    path.write_text(json.dumps(values(kind, **loop)))
    return path


def write_photos(folder: Path) -> Path:
    folder.mkdir()
    y, x = np.mgrid[:80, :90]
    rng = np.random.default_rng(0)
    for i in range(3):
        pixels = np.stack([(x * (i + 1)) % 256, (y * 3) % 256, (x + y) % 256], axis=-1)
        pixels = pixels * 0.7 + rng.integers(0, 70, pixels.shape)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    return folder


def write_metrics(folder: Path, vgg: bool = False) -> Path:
    """Random weights in the shape of LPIPS's files, with or without those of VGG."""
    folder.mkdir()
    torch.manual_seed(0)
    shapes = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
    features = {f"features.{i}.weight": torch.randn(o, c, k, k) / (c * k * k) ** 0.5 for i, (o, c, k) in shapes.items()}
    features |= {f"features.{i}.bias": torch.zeros(o) for i, (o, _, _) in shapes.items()}
    save_file(features, folder / "alexnet_features.safetensors")
    widths = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}
    heads = {
        f"{net}.lin{i}.model.1.weight": torch.rand(1, w, 1, 1) for net in widths for i, w in enumerate(widths[net])
    }
    save_file(heads, folder / "lpips_heads.safetensors")
    if vgg:
        convolutions = {f"features.{k}": v for k, v in _vgg16().state_dict().items()}
        save_file({k: v.half() for k, v in convolutions.items()}, folder / "vgg16_features.safetensors")
    return folder


def write_niqe(folder: Path) -> Path:
    """Parameters in the shape of those that NIQE publishes."""
    rng = np.random.default_rng(0)
    factor = rng.normal(0, 0.3, (36, 36))
    window = np.exp(-((np.arange(7) - 3) ** 2) / (2 * (7 / 6) ** 2))
    np.savez(
        folder / "niqe_pris_params.npz",
        mu_pris_param=rng.uniform(0.1, 2.5, (1, 36)),
        cov_pris_param=factor @ factor.T + 0.05 * np.eye(36),
        gaussian_window=np.outer(window, window) / window.sum() ** 2,
    )
    return folder


def read_log(folder: Path) -> list[dict[str, float]]:
    """The rows of a run's log, without what depends on the machine."""
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows]


def task(name: str, metrics: Path, settings: TrainingConfig, engine: Engine | None = None) -> FirstStage | Expert | FCD:
    """A stage by name (first, expert, fcd, decoder) with networks of random weights before it."""
    model, engine = settings.model, engine or Engine(torch.device("cpu"))
    if name == "first":
        return FirstStage(model.autoencoder, settings.first_stage, engine, metrics=metrics)
    if name == "expert":
        return Expert(model, settings.experts, settings.experts.loop, engine, span=(0, 50), name="stage0")
    torch.manual_seed(5)
    first = Autoencoder(AutoencoderConfig(**{**vars(model.autoencoder), "lr_fusion": False, "refine": False}))
    skipped = settings.first_stage.skip
    return FCD(
        model.autoencoder, settings.decoder, engine, first_stage=first.state_dict(), metrics=metrics, skipped=skipped
    )


def item(index: int, channels: int = 3) -> Batch:
    """A random item with everything that any stage wants; a function of the index."""
    generator = torch.Generator().manual_seed(index)
    found: Batch = {k: torch.randn(channels, 8, 8, generator=generator) for k in ("x0", "y", "z")}
    found |= {"lr": torch.rand(3, 8, 8, generator=generator) * 2 - 1}
    return found | {"hr": torch.rand(3, 32, 32, generator=generator) * 2 - 1}


def every_stage(metrics: Path, out: Path) -> None:
    """One step of the stages into out/1, and two more from there into out/3, from the same random start each time."""
    for steps in (1, 3):
        for name in ("first", "expert"):
            plain = values("vq", steps=3, batch=4, lr=1e-4, save_every=1)
            plain["first_stage"] |= {"gan_start": 0}
            loop, engine = LoopConfig(**{**plain["experts"]["loop"], "steps": steps}), LaunchedEngine()
            stage = task(name, metrics, from_dict(plain), engine)
            run(stage, Loader(item, loop, engine), loop, out / name)
            if engine.main:
                shutil.copytree(out / name, out / str(steps) / name)
            engine.wait()
