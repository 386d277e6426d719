"""Training configs, the parts of a run that machines can share, and what is kept on disk between stages."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import moesr
from moesr.cli import main
from moesr.config import ModelConfig
from moesr.errors import SettingError
from moesr.training import config as configs
from moesr.training import latent_samples
from moesr.training.stages import export, train
from tests import training_setup as setup


@pytest.mark.parametrize(("name", "scale", "degradation"), [("paper_x4", 4, "blind"), ("paper_x8", 8, "bicubic")])
def test_the_papers_models_are_trained_as_the_paper_says(name: str, scale: int, degradation: str) -> None:
    """Their sizes are test_keys's. Appendix A.1: what is trained."""
    config = configs.load(name)
    assert config.model == ModelConfig(scale=scale, steps=200, name=name.replace("paper_", "moesr-"))
    assert config.degradation == degradation
    experts, decode = config.experts, config.decoder
    assert (experts.loop.steps, experts.loop.batch, experts.loop.lr) == (100_000, 144, 5e-5)
    assert (decode.loop.steps, decode.loop.batch, decode.loop.lr) == (50_000, 32, 1e-4)
    assert (decode.train, decode.frequency_weight, decode.gan_start, decode.cache) == ("fcd", 10.0, 1000, 100_000)
    assert (experts.crop, decode.crop) == (512, 512)
    assert (experts.gamma, experts.ema, experts.trunk, experts.space_experts) == (0.999, 0.9999, None, 16)


def test_every_config_is_whole_and_is_its_own_inverse() -> None:
    names = [path.stem for path in configs.CONFIGS.glob("*.json")]
    assert {"tiny", "ablation", "paper_x4", "paper_x8"} <= set(names)
    for name in names:
        config = configs.load(name)
        assert configs.from_dict(configs.to_dict(config)) == config


def test_overrides_reach_every_depth() -> None:
    overrides = ["decoder.loop.steps=7", "degradation=blind", "model.autoencoder.refine=false"]
    overrides += ["model.stages=[500,1000]"]
    config = configs.load("tiny", [*overrides, "decoder.lpips.vgg=0.5", "experts.trunk=null", "experts.loop.lr=1"])
    assert config.decoder.loop.steps == 7
    assert config.degradation == "blind"
    assert config.model.autoencoder.refine is False
    assert config.model.stages == (500, 1000)
    assert config.decoder.lpips["vgg"] == 0.5
    assert config.experts.trunk is None
    assert config.experts.loop.lr == 1


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("decoder.loop.stepps=7", r"decoder\.loop has no entry stepps; it has accumulate, batch, final_lr"),
        ("model.unet.width=7", r"unet has no entry width; it has adapter_ranks"),
        ("steps", r"'steps': write it as key=value"),
        ("degradation.kind=x", r"degradation has no entries, it is 'bicubic=4"),
        ("decoder.loop=3", r"decoder\.loop is 3, it must be a map"),
        ("decoder.loop.steps=many", r"decoder\.loop\.steps is 'many', it must be a whole number"),
        ("decoder.loop.batch=0", r"decoder\.loop\.batch is 0, it must be at least 1"),
        ("experts.loop.precision=fp8", r"experts\.loop\.precision is 'fp8'; choose fp32, bf16, fp16"),
        ("decoder.train=all", r"decoder\.train is 'all'; choose fcd, decoder"),
        ("first_stage.skip=1", r"first_stage\.skip is 1, it must be true or false"),
        ("model.stages=4", r"model\.stages is 4, it must be a list"),
    ],
)
def test_a_wrong_override_is_one_line(override: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SettingError, match=line):
        configs.load("tiny", [override])
    assert main(["train", "experts", "tiny", "--data", "x", "--out", "nowhere", "--override", override]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not Path("nowhere").exists()


def test_a_wrong_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"nonesuch: no such training config; .* tiny"):
        configs.load("nonesuch")
    (tmp_path / "a.json").write_text("{broken")
    with pytest.raises(SettingError, match=r"a\.json: is not JSON"):
        configs.load(str(tmp_path / "a.json"))
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(SettingError, match=r"a\.json: is no training config"):
        configs.load(str(tmp_path / "a.json"))


def test_the_launchers_precision_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    config = configs.load("tiny")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert configs.apply_launcher(config) == config
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    other = configs.apply_launcher(config)
    assert other.experts.trunk is not None
    loops = (other.first_stage.loop, other.experts.loop, other.experts.trunk, other.decoder.loop)
    assert [loop.precision for loop in loops] == ["fp16"] * 4


def test_experts_one_by_one_are_the_experts_of_one_run(photographs: Path, metrics: Path, tmp_path: Path) -> None:
    """Trunk here, expert 1 on another machine from copies of first stage and trunk, expert 0 here: the same weights."""
    config = setup.config()
    here, there, whole = (tmp_path / name for name in ("here", "there", "whole"))
    train("first-stage", config, photographs, here, metrics)
    shutil.copytree(here, whole)
    with pytest.raises(SettingError, match=r"train the trunk first, with --expert trunk, or copy it here"):
        train("experts", config, photographs, here, metrics, ["0"])
    train("experts", config, photographs, here, metrics, ["trunk"])
    assert not (here / "stage0").exists()
    for part in ("first_stage", "trunk"):
        shutil.copytree(here / part, there / part)
    train("experts", config, photographs, there, metrics, ["1"])
    assert not (there / "stage0").exists()
    with pytest.raises(SettingError, match=r"stage0\.safetensors: not found; train expert 0 first, or copy it here"):
        train("decoder", config, photographs, there, metrics)
    train("experts", config, photographs, here, metrics, ["0"])
    train("experts", config, photographs, whole, metrics)
    for root, stage in ((here, "stage0"), (there, "stage1")):
        a, b = load_file(root / stage / f"{stage}.safetensors"), load_file(whole / stage / f"{stage}.safetensors")
        assert all(torch.equal(a[k], b[k]) for k in b)
    with pytest.raises(SettingError, match="expert 2: there is no such expert; choose from trunk, 0, 1"):
        train("experts", config, photographs, here, metrics, ["2"])
    with pytest.raises(SettingError, match="only the stage experts has experts"):
        train("decoder", config, photographs, here, metrics, ["0"])


def test_the_papers_recipe_runs_at_a_small_size(
    photographs: Path, metrics: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DDPM, codes, blind degradation, the paper's decoder stage: paper_x4 with everything made small.

    Latents are sampled once, those that are lost are made again, and those of another config are refused.
    """
    monkeypatch.setattr(latent_samples, "FILE", 2)
    overrides = [f"model.unet.{k}" for k in ("model_channels=32", "channel_mult=[1,1]", "attention_downsamples=[2]")]
    overrides += ["model.autoencoder.ch=32", "model.autoencoder.num_res_blocks=1", "model.autoencoder.n_embed=32"]
    overrides += ["first_stage.lpips=alex", 'decoder.lpips={"alex":1.0}', "decoder.sample_steps=2"]
    overrides += ["experts.space_experts=4", "model.unet.num_res_blocks=1", "first_stage.crop=64"]
    for stage in ("first_stage", "experts", "decoder"):
        overrides += [f"{stage}.loop.{k}" for k in ("steps=1", "batch=2", "workers=0")]
    overrides += ["experts.crop=64", "decoder.crop=64", "decoder.cache=5"]
    config = configs.load("paper_x4", overrides)
    for stage in ("first-stage", "experts", "decoder"):
        train(stage, config, photographs, tmp_path, metrics)
    model = moesr.load(export(config, tmp_path, tmp_path / "model.safetensors"))
    assert (model.process.kind, model.config.name, len(model.config.stages)) == ("ddpm", "moesr-x4", 4)
    assert moesr.upscale(model, np.zeros((8, 10, 3), np.uint8), steps=4).shape == (32, 40, 3)
    files = sorted((tmp_path / "samples").glob("*.safetensors"))
    assert [len(load_file(path)["z"]) for path in files] == [2, 2, 1]
    before = files[0].stat().st_mtime_ns, load_file(files[2])["z"]
    files[2].unlink()
    train("decoder", config, photographs, tmp_path, metrics)
    assert files[0].stat().st_mtime_ns == before[0]
    assert torch.equal(load_file(files[2])["z"], before[1])
    with pytest.raises(SettingError, match="made with degradation blind, now it is mild; remove the folder"):
        train("decoder", replace(config, degradation="mild"), photographs, tmp_path, metrics)


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_a_folder_that_cannot_be_is_one_line(
    out: str, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    config = setup.write_config(tmp_path / "config.json")
    assert main(["train", "first-stage", str(config), "--data", str(photographs), "--out", str(tmp_path / out)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "file" in line
    assert line.endswith("check the path and its permissions")
