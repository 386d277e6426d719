"""Every stage of training on a very small model: it runs, resumes exactly, trains what it must, and ends in a model."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import moesr
from moesr.config import ModelConfig, SwinUNetConfig
from moesr.errors import CheckpointError, ImageError, NumericsError, SettingError
from moesr.evaluation.lpips import LPIPS
from moesr.pipeline import Event
from moesr.training import config as configs
from moesr.training.config import TrainingConfig
from moesr.training.data import PhotoCrops
from moesr.training.decoder import FCD
from moesr.training.degradation import degradation
from moesr.training.experts import Expert
from moesr.training.export import export
from moesr.training.first_stage import FirstStage
from moesr.training.loop import run
from moesr.training.stages import train

LOOP = {"steps": 2, "batch": 2, "warmup": 1, "save_every": 1, "log_every": 1}


@pytest.fixture(scope="module")
def config() -> TrainingConfig:
    unet = {"model_channels": 32, "channel_mult": [1, 1], "num_res_blocks": 1, "attention_downsamples": [2]}
    autoencoder = {"ch": 32, "num_res_blocks": 1, "n_embed": 32, "fusion_growth": 8, "fusion_blocks": 1}
    autoencoder["lr_skip"] = True
    process = {"kind": "residual_shift", "timesteps": 100, "predict": "residual"}
    return configs.from_dict(
        {
            "model": {
                "name": "seed", "scale": 4, "steps": 2, "stages": [50, 100],
                "unet": unet, "autoencoder": autoencoder, "process": process,
            },
            "first_stage": {"loop": LOOP, "crop": 32, "lpips": "alex", "quantise_start": 1, "refine": True},
            "experts": {"loop": LOOP, "trunk": LOOP, "crop": 64, "cache": 3},
            "decoder": {
                "loop": LOOP, "crop": 64, "cache": 3, "sample_steps": 2, "train": "decoder",
                "lpips": {"alex": 1.0}, "consistency": 1.0, "gan_start": 1, "freeze_norms": 1,
            },
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def metrics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the shape of LPIPS's files."""
    folder = tmp_path_factory.mktemp("metrics")
    torch.manual_seed(0)
    shapes = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
    features = {f"features.{i}.weight": torch.randn(o, c, k, k) / (c * k * k) ** 0.5 for i, (o, c, k) in shapes.items()}
    features |= {f"features.{i}.bias": torch.zeros(o) for i, (o, _, _) in shapes.items()}
    save_file(features, folder / "alexnet_features.safetensors")
    widths = enumerate((64, 192, 384, 256, 256))
    save_file(
        {f"alex.lin{i}.model.1.weight": torch.rand(1, w, 1, 1) for i, w in widths}, folder / "lpips_heads.safetensors"
    )
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    y, x = np.mgrid[:80, :90]
    for i in range(3):
        pixels = np.stack([(x * (i + 1)) % 256, (y * 3) % 256, (x + y) % 256], axis=-1).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def trained(config: TrainingConfig, photos: Path, metrics: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of all stages."""
    out = tmp_path_factory.mktemp("run")
    for stage in ("first-stage", "experts", "decoder"):
        train(stage, config, photos, out, metrics)
    return out


def losses(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def test_all_stages_end_in_a_model_that_upscales(config: TrainingConfig, trained: Path) -> None:
    path = export(config, trained, trained / "seed.safetensors")
    model = moesr.load(path)
    assert model.scale == 4
    assert model.config.autoencoder.scale_factor != 1.0
    assert moesr.upscale(model, np.zeros((5, 6, 3), np.uint8)).shape == (20, 24, 3)
    for stage in ("first_stage", "trunk", "stage0", "stage1", "decoder"):
        assert [row["step"] for row in losses(trained / stage)] == [1, 2]


def test_a_kl_first_stage_that_skips_and_joint_training_end_in_a_model(
    config: TrainingConfig, photos: Path, metrics: Path, tmp_path: Path
) -> None:
    kl = replace(config.model.autoencoder, kind="kl", z_channels=4, embed_dim=4, mid_attention=False)
    unet = replace(config.model.unet, in_channels=7, out_channels=4)
    config = replace(
        config,
        model=replace(config.model, autoencoder=kl, unet=unet),
        first_stage=replace(config.first_stage, skip=True),
        decoder=replace(config.decoder, train="joint", alternate=True, loop=replace(config.decoder.loop, steps=4)),
    )
    for stage in ("first-stage", "experts", "decoder"):
        train(stage, config, photos, tmp_path, metrics)
    before, after = (load_file(tmp_path / part / "stage0.safetensors") for part in ("stage0", "decoder"))
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    # the last expert was trained, all of it; a bias before a norm of one channel a group has no gradient
    assert moved >= {k for k, v in before.items() if v.ndim > 1}
    model = moesr.load(export(config, tmp_path, tmp_path / "out.safetensors"))
    with model.bank.stage(0) as expert:
        kept = expert.state_dict()
    assert all(torch.allclose(kept[k].float(), after[k], atol=2e-3) for k in after)
    assert moesr.upscale(model, Image.new("RGB", (20, 12), "teal")).size == (80, 48)


def test_time_experts_of_a_swin_unet_train_like_any_other(
    config: TrainingConfig, trained: Path, photos: Path, metrics: Path, tmp_path: Path
) -> None:
    """Residual shifting with windowed attention, routed to experts, under the frequency-compensated decoder."""
    unet = {
        "kind": "swin", "model_channels": 16, "channel_mult": [1, 2], "num_res_blocks": [1, 1],
        "attention_downsamples": [1, 2], "num_head_channels": 8, "swin_channels": 16, "mlp_channels": 32, "window": 4,
        "latent_size": 8, "norm_groups": 4,
    }  # fmt: skip
    model = ModelConfig.from_dict({**config.model.to_dict(), "unet": unet})
    config = replace(config, model=model, experts=replace(config.experts, loop=replace(config.experts.loop, steps=4)))
    shutil.copytree(trained / "first_stage", tmp_path / "first_stage")
    for stage in ("experts", "decoder"):
        train(stage, config, photos, tmp_path, metrics)
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


def test_resume_is_exact(config: TrainingConfig, photos: Path, metrics: Path, tmp_path: Path) -> None:
    stage = replace(config.first_stage, loop=replace(config.first_stage.loop, steps=4))
    degrade = degradation("bicubic", 4)

    def go(folder: Path, steps: int) -> None:
        task = FirstStage(config.model.autoencoder, stage, metrics)
        # the schedule of the learning rate is the long run's; only where it stops differs
        loop = replace(stage.loop, steps=steps)
        run(task, PhotoCrops(photos, 32, 4, degrade, 100), loop, folder)

    go(tmp_path / "whole", 4)
    go(tmp_path / "halves", 2)
    go(tmp_path / "halves", 4)
    assert losses(tmp_path / "whole")[2:] == losses(tmp_path / "halves")[2:]


def test_the_loss_falls(config: TrainingConfig, photos: Path, metrics: Path, tmp_path: Path) -> None:
    loop = replace(config.first_stage.loop, steps=24, lr=2e-3, warmup=2)
    task = FirstStage(config.model.autoencoder, replace(config.first_stage, loop=loop), metrics)
    run(task, PhotoCrops(photos, 32, 4, degradation("bicubic", 4), 100), loop, tmp_path)
    l1 = [row["l1"] for row in losses(tmp_path)]
    assert np.mean(l1[-6:]) < 0.8 * np.mean(l1[:6])


def test_stage_2_trains_what_it_says_and_nothing_else(config: TrainingConfig, trained: Path, metrics: Path) -> None:
    from moesr.training import weights

    first = weights.load(trained / "first_stage" / "first_stage.safetensors")
    batch = {"z": torch.randn(2, 3, 8, 8), "lr": torch.rand(2, 3, 8, 8), "hr": torch.rand(2, 3, 32, 32)}
    for mode, prefixes in (
        ("fcd", ("decoder.fusion_layer_1.", "decoder.unet_1.", "decoder.conv_out.")),
        ("decoder", ("decoder.", "post_quant_conv.")),
    ):
        task = FCD(config.model.autoencoder, replace(config.decoder, train=mode), first, metrics)
        before = {k: v.clone() for k, v in task.network.state_dict().items()}
        for index in (1, 2):  # the last layer starts at zero, so the others learn from the second step on
            task.step(batch, index)
        changed = {k for k, v in task.network.named_parameters() if not torch.equal(v, before[k])}
        assert changed
        assert all(k.startswith(prefixes) for k in changed)
        assert any("filter.w1" in k for k in changed)
        assert any("fusion_layer_1" in k for k in changed)


def test_space_experts_train_and_stay_in_the_optimiser(config: TrainingConfig) -> None:
    task = Expert(config.model, config.experts, config.experts.loop, (0, 50), "stage0")
    batch = {name: torch.randn(2, 3, 8, 8) for name in ("x0", "y", "lr")}
    before = {k: v.clone() for k, v in task.network.named_parameters()}
    for index in range(3):
        task.step(batch, index)
    held = {id(p) for group in task.optimiser.param_groups for p in group["params"]}
    assert {id(p) for p in task.network.parameters()} == held
    unchanged = [k for k, v in task.network.named_parameters() if torch.equal(v, before[k])]
    assert not unchanged


def test_training_data_is_a_function_of_seed_and_index(photos: Path) -> None:
    degrade = degradation("bicubic", 4)
    a, b = (PhotoCrops(photos, 32, 4, degrade, 10, seed=1) for _ in range(2))
    assert torch.equal(a[7]["hr"], b[7]["hr"])
    assert not torch.equal(a[7]["hr"], PhotoCrops(photos, 32, 4, degrade, 10, seed=2)[7]["hr"])
    assert a[0]["lr"].shape == (3, 8, 8)
    levels = (a[0]["lr"] + 1) * 127.5
    assert torch.allclose(levels, levels.round(), atol=1e-4)


def test_bad_data_is_one_line(tmp_path: Path, metrics: Path) -> None:
    degrade = degradation("bicubic", 4)
    with pytest.raises(ImageError, match="no images"):
        PhotoCrops(tmp_path, 32, 4, degrade, 10)
    with pytest.raises(SettingError, match="multiple"):
        PhotoCrops(tmp_path, 30, 4, degrade, 10)
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"bad\.png"):
        PhotoCrops(tmp_path, 32, 4, degrade, 10)[0]
    Image.new("RGB", (8, 8)).save(tmp_path / "bad.png")
    with pytest.raises(ImageError, match="smaller"):
        PhotoCrops(tmp_path, 32, 4, degrade, 10)[0]
    with pytest.raises(CheckpointError, match="LPIPS"):
        LPIPS("vgg", metrics)
    with pytest.raises(SettingError, match="fog"):
        degradation("fog", 4)


def test_nan_stops_and_keeps_the_last_good_state(
    config: TrainingConfig, photos: Path, metrics: Path, tmp_path: Path
) -> None:
    loop = replace(config.first_stage.loop, steps=3)
    data = PhotoCrops(photos, 32, 4, degradation("bicubic", 4), 100)
    task = FirstStage(config.model.autoencoder, replace(config.first_stage, loop=loop), metrics)
    step = task.step
    task.step = lambda batch, index: {"l1": float("nan")} if index == 2 else step(batch, index)  # type: ignore[method-assign]
    with pytest.raises(NumericsError, match=r"state\.pt"):
        run(task, data, loop, tmp_path)
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 2


def test_configs_know_their_entries(tmp_path: Path) -> None:
    assert configs.load("tiny", ["decoder.loop.steps=7"]).decoder.loop.steps == 7
    with pytest.raises(SettingError, match="stepps"):
        configs.load("tiny", ["decoder.loop.stepps=7"])
    with pytest.raises(SettingError, match="nonesuch"):
        configs.load("nonesuch")
    with pytest.raises(SettingError, match="key=value"):
        configs.load("tiny", ["steps"])
