"""Every stage of training on a very small model, one by one and by `train CONFIG`: it runs, and ends in a model."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

import moesr
from moesr.cli import main
from moesr.config import ModelConfig, SwinUNetConfig
from moesr.progress import Event
from moesr.training import config as configs
from moesr.training import file_parts
from moesr.training.config import TrainingConfig
from moesr.training.stages import export, train
from tests.training_setup import read_log, values, write_metrics, write_photos


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


def test_all_stages_end_in_a_model_that_upscales(config: TrainingConfig, run: Path) -> None:
    path = export(config, run, run / "seed.safetensors")
    model = moesr.load(path)
    assert model.scale == 4
    assert model.config.autoencoder.scale_factor != 1.0
    assert moesr.upscale(model, np.zeros((5, 6, 3), np.uint8)).shape == (20, 24, 3)
    for stage in ("first_stage", "trunk", "stage0", "stage1", "decoder"):
        assert [row["step"] for row in read_log(run / stage)] == [1, 2]


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
        found = [row[loss] for row in read_log(tmp_path / stage)]
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


def write_plan(path: Path, steps: int) -> Path:
    """A config like that of `tiny`, of very small networks."""
    plain = values("kl")
    loop = {"steps": steps, "batch": 1, "lr": 5e-3, "warmup": 2, "log_every": 1}
    estimator, first, trunk = ({**loop, "steps": count} for count in (4, 2, 8))
    plain["model"]["unet"]["adapter_ranks"] = plain["model"]["autoencoder"]["adapter_ranks"] = [4, 2]
    plain["model"]["autoencoder"]["estimator"] = True
    plain["model"]["fidelity"] = 0.25
    plain["degradation"] = "bicubic=1,web=1"
    plain["first_stage"] |= {"loop": first, "crop": 32, "gan_start": 100}
    plain["experts"] |= {"trunk": trunk}
    plain["unrolled"] = {"loop": loop, "estimator": estimator, "crop": 32, "adversary_start": 1, "space_experts": 2}
    plain["unrolled"]["lpips"] = {"vgg": 1.0}
    del plain["decoder"]
    path.write_text(json.dumps(plain))
    return path


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of 20 steps on two photographs, 6 of them of the last stage."""
    folder = tmp_path_factory.mktemp("train")
    photos = write_photos(folder / "photos")
    (photos / "2.png").unlink()
    metrics = write_metrics(folder / "metrics", vgg=True)
    sets = folder / "val"
    for name, size in (("hr", (64, 64)), ("clean", (16, 16))):
        (sets / name).mkdir(parents=True)
        Image.open(photos / "0.png").crop((0, 0, 64, 64)).resize(size).save(sets / name / "0.png")
    out = folder / "run"
    config = write_plan(folder / "nano.json", 6)
    command = ["train", str(config), "--pack", str(photos), "--out", str(out), "--metrics", str(metrics)]
    assert main([*command, "--device", "cpu", "--seed", "3", "--evaluate", str(sets)]) == 0
    return out


def test_a_run_ends_in_a_model_with_its_facts_log_sheets_and_figures(run_folder: Path) -> None:
    path = run_folder / "seed.safetensors"
    with safe_open(str(path), "pt") as file:
        facts = json.loads(file.metadata()["moesr.training"])
    assert (facts["seed"], facts["steps"], facts["device"]) == (3, 6, "cpu")
    for stage, steps in {"estimator": 4, "first_stage": 2, "trunk": 8, "unrolled": 6}.items():
        rows = [json.loads(line) for line in (run_folder / stage / "log.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == list(range(1, steps + 1)), stage
    assert any("adversary" in row for row in rows)
    assert all(np.isfinite(value) for row in rows for value in row.values())
    assert Image.open(run_folder / "unrolled" / "sheets" / "000006.png").size == (4 * 32, 32)
    assert (run_folder / "val_clean.html").is_file()


def test_at_fidelity_1_seeds_do_not_matter_and_restore_does(run_folder: Path) -> None:
    model = moesr.load(run_folder / "seed.safetensors", dtype="fp32")
    image = np.random.default_rng(0).integers(0, 256, (16, 20, 3), dtype=np.uint8)

    def run(**settings: Any) -> np.ndarray:
        return moesr.upscale(model, image, color_fix="none", **settings)

    assert np.array_equal(run(fidelity=1, seed=1), run(fidelity=1, seed=2))
    assert not np.array_equal(run(fidelity=0, seed=1), run(fidelity=0, seed=2))
    assert np.array_equal(run(), run(fidelity=0.25))
    assert not np.array_equal(run(restore=0.0), run(restore=1.0))


def test_the_same_command_goes_on_and_parts_are_a_start(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_parts, "LARGEST", 2**18 + 2**17)
    pieces = file_parts.split_file(run_folder / "seed.safetensors", tmp_path / "parts")
    assert len(pieces) > 1
    config, folder = write_plan(tmp_path / "nano.json", 1), run_folder.parent
    command = ["train", str(config), "--pack", str(folder / "photos"), "--metrics", str(folder / "metrics")]
    command += ["--out", str(tmp_path / "run"), "--device", "cpu", "--start", str(tmp_path / "parts")]
    assert main(command) == 0
    before, after = (load_file(run / "seed.safetensors") for run in (run_folder, tmp_path / "run"))
    assert before.keys() == after.keys()
    changes = [(before[k].float() - after[k].float()).abs().max().item() for k in before if k.startswith("experts.3")]
    assert all(change < 0.05 for change in changes)
    kept = [k for k in before if ".estimator." in k]
    assert kept
    assert all(torch.equal(before[k], after[k]) for k in kept)
    log = tmp_path / "run" / "unrolled" / "log.jsonl"
    write_plan(config, 2)
    assert main(command) == 0
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [1, 2]
    pieces[0].unlink()
    assert main(command) == 1
