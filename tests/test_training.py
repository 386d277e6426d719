"""Every stage of training on a very small model: it runs, and ends in a model."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import moesr
from moesr.config import ModelConfig, SwinUNetConfig
from moesr.progress import Event
from moesr.training import config as configs
from moesr.training.config import TrainingConfig
from moesr.training.stages import export, train
from tests.training_setup import values


@pytest.fixture(scope="module")
def config() -> TrainingConfig:
    """As `tiny` has it: KL latents of detail, added to the upsampled LR image."""
    plain = values("kl")
    plain["decoder"] |= {"freeze_norms": 1}
    return configs.from_dict(plain)


@pytest.fixture(scope="module")
def run(config: TrainingConfig, photographs: Path, metrics: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of all stages."""
    out = tmp_path_factory.mktemp("run")
    for stage in ("first-stage", "experts", "decoder"):
        train(stage, config, photographs, out, metrics)
    return out


def losses(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows]


def test_all_stages_end_in_a_model_that_upscales(config: TrainingConfig, run: Path) -> None:
    path = export(config, run, run / "seed.safetensors")
    model = moesr.load(path)
    assert model.scale == 4
    assert model.config.autoencoder.scale_factor != 1.0
    assert moesr.upscale(model, np.zeros((5, 6, 3), np.uint8)).shape == (20, 24, 3)
    for stage in ("first_stage", "trunk", "stage0", "stage1", "decoder"):
        assert [row["step"] for row in losses(run / stage)] == [1, 2]


@pytest.mark.slow
def test_the_loss_falls_in_every_stage(photographs: Path, metrics: Path, tmp_path: Path) -> None:
    plain = values("vq", steps=30, batch=4, lr=2e-3, warmup=3, save_every=30)
    plain["model"]["stages"] = [100]
    plain["first_stage"] |= {"gan_start": 1000}
    plain["experts"] |= {"trunk": None}
    plain["decoder"] |= {"gan_start": 1000, "train": "decoder"}
    config = configs.from_dict(plain)
    for stage in ("first-stage", "experts", "decoder"):
        train(stage, config, photographs, tmp_path, metrics)
    for stage, loss in (("first_stage", "l1"), ("stage0", "l2"), ("decoder", "l1")):
        found = [row[loss] for row in losses(tmp_path / stage)]
        assert np.mean(found[-8:]) < 0.9 * np.mean(found[:8]), stage


def test_time_experts_of_a_swin_unet_train_like_any_other(
    config: TrainingConfig, run: Path, photographs: Path, metrics: Path, tmp_path: Path
) -> None:
    """Residual shifting with windowed attention, routed to experts, under the frequency-compensated decoder."""
    unet = {
        "kind": "swin", "in_channels": 4, "out_channels": 4, "model_channels": 16, "channel_mult": [1, 2],
        "num_res_blocks": [1, 1],
        "attention_downsamples": [1, 2], "num_head_channels": 8, "swin_channels": 16, "mlp_channels": 32, "window": 4,
        "latent_size": 8, "norm_groups": 4,
    }  # fmt: skip
    model = ModelConfig.from_dict({**config.model.to_dict(), "unet": unet})
    config = replace(config, model=model, experts=replace(config.experts, loop=replace(config.experts.loop, steps=4)))
    shutil.copytree(run / "first_stage", tmp_path / "first_stage")
    for stage in ("experts", "decoder"):
        train(stage, config, photographs, tmp_path, metrics)
    trunk, *stages = (load_file(tmp_path / part / f"{part}.safetensors") for part in ("trunk", "stage0", "stage1"))
    table = "input_blocks.1.1.blocks.1.attn.relative_position_bias_table"
    assert not torch.equal(stages[0][table], trunk[table])
    assert not torch.equal(stages[0][table], stages[1][table])
    seen: list[Event] = []
    model = moesr.load(export(config, tmp_path, tmp_path / "swin.safetensors"))
    assert isinstance(model.config.unet, SwinUNetConfig)
    assert model.config.autoencoder.lr_fusion
    assert model.config.autoencoder.refine
    out = moesr.upscale(model, np.zeros((5, 6, 3), np.uint8), steps=4, callback=seen.append)
    assert out.shape == (20, 24, 3)
    assert [e.expert for e in seen if e.phase == "sample"] == [1, 1, 0, 0]
