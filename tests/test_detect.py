"""What a checkpoint is, from its keys, shapes and name; and which files make one model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from moesr.checkpoints.describe import describe, format_facts
from moesr.checkpoints.detect import UNET, find_role
from moesr.checkpoints.model_files import open_autoencoder, open_model, save_model
from moesr.checkpoints.weight_reading import Weights
from moesr.config import AutoencoderConfig, ModelConfig, UNetConfig
from moesr.networks.autoencoder import Autoencoder
from moesr.networks.unet import UNet
from tests.checkpoint_files import (
    FCD,
    FIRST,
    check_refused_config,
    find_error,
    random_state,
    read_key_table,
    stage_state,
    unet,
)


@pytest.mark.parametrize("experts", [0, 1, 4, 16])
@pytest.mark.parametrize("mult", [(1,), (1, 2), (2, 1)])
def test_widths_multipliers_and_experts_are_read_off(tmp_path: Path, experts: int, mult: tuple[int, ...]) -> None:
    config = unet(experts, channel_mult=mult, model_channels=32, attention_downsamples=(2,) if len(mult) > 1 else ())
    torch.save({"state_dict": stage_state(config)}, tmp_path / "x.ckpt")
    found = open_model(tmp_path / "x.ckpt")
    assert found.config.unet == UNetConfig(**{**vars(config), "space_experts": min(experts, 1)})
    assert found.config.autoencoder == FIRST
    assert found.config.scale == (8 if experts else 4)
    assert found.config.stages == (1000,)
    state = torch.load(tmp_path / "x.ckpt", weights_only=True)["state_dict"]
    for name, value in found.experts[0].items():
        copies = [UNET + name.replace(".moe_blocks.0.", f".moe_blocks.{i}.") for i in range(experts)]
        copies = copies if ".moe_blocks." in name else []
        wanted = torch.stack([state[c].double() for c in copies]).mean(0).float() if copies else state[UNET + name]
        assert torch.equal(value, wanted)


def test_every_released_layout_has_its_role(tmp_path: Path) -> None:
    roles = {}
    for name in ("stage_checkpoint", "ldm_bsr_sr_checkpoint", "vqmodel_resiunet_fa_vae", "autoencoder_klaff_fa_vae"):
        # the keys are what matters here: the tensors are empty
        save_file({key: torch.zeros(0) for key in read_key_table(name)}, tmp_path / "x.safetensors")
        roles[name] = find_role(Weights(tmp_path / "x.safetensors"))
    assert list(roles.values()) == ["expert", "expert", "autoencoder", "autoencoder"]


def test_kl_decoder_is_known_and_kept_apart(tmp_path: Path) -> None:
    config = AutoencoderConfig(
        kind="kl", ch=32, ch_mult=(1, 1), num_res_blocks=1, z_channels=4, embed_dim=4, lr_fusion=False,
        scale_factor=0.18215, fusion_blocks=2,
    )  # fmt: skip
    state = {**random_state(Autoencoder, config), "loss.logvar": torch.zeros(())}
    path = tmp_path / "kl" / "fa_vae.pth"
    path.parent.mkdir()
    torch.save(state, path)
    found, weights = open_autoencoder(path)
    assert found == config
    assert set(weights) == set(state) - {"loss.logvar"}
    assert "Stable Diffusion 1.5" in format_facts(describe(path))
    find_error(path, "Stable Diffusion 1.5 latents")
    torch.save({"state_dict": stage_state(unet())}, tmp_path / "x.ckpt")
    find_error([tmp_path / "x.ckpt", path], "give vq-f4/fa_vae.pth")
    assert open_model(tmp_path).config.autoencoder == FIRST  # in a folder it may lie about


def write_stages(folder: Path, names: list[str], **widths: Any) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{name}.ckpt" for name in names]
    for i, path in enumerate(paths):
        torch.save({"state_dict": stage_state(unet(1, **widths), seed=i, first=None)}, path)
    torch.save(random_state(Autoencoder, FCD), folder / "fa_vae.pth")
    return paths


def order_of(paths: list[Path]) -> list[str]:
    return [p.stem for p in open_model(paths, 4).paths if p.suffix == ".ckpt"]


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["model_stage2", "model_stage0", "model_stage3", "model_stage1"], [1, 3, 0, 2]),
        (["x4_stage_3_epoch=12", "x4_stage_2_epoch=1", "x4_stage_1_epoch=9", "x4_stage_0_last"], [3, 2, 1, 0]),
        (["x8-Stage0-v2", "x8-Stage1-v1", "x8-Stage2-v0", "x8-Stage3-v3"], [0, 1, 2, 3]),
        (["stage4", "stage3", "stage2", "stage1"], [3, 2, 1, 0]),
        (["x4_1_epoch=12", "x4_0_epoch=15"], [1, 0]),
        (["expert2", "expert1", "expert0"], [2, 1, 0]),
        (["high", "low"], [0, 1]),
        (["0_1", "1_0"], [0, 1]),
        (["stage0_a", "other"], [0, 1]),
    ],
    ids=lambda value: str(value[0]),
)
def test_order_of_stages(tmp_path: Path, names: list[str], wanted: list[int]) -> None:
    paths = write_stages(tmp_path, names)
    assert order_of(paths) == [names[i] for i in wanted]
    guessed = names[0] in ("stage4", "high", "0_1", "stage0_a")
    assert any("order" in note for note in open_model(paths, 4).notes) == guessed


@pytest.mark.parametrize(
    ("names", "said"),
    [(["stage0", "stage1", "stage2"], "stage 3 missing"), (["stage2"], "stage 0, 1, 3 missing"),
     (["stage0", "stage1", "stage2", "stage3", "stage5"], "stage 4 missing"),
     (["a_stage0", "b_stage0", "stage1", "stage2"], "both are stage 0")],
    ids=str,
)  # fmt: skip
def test_gaps_and_repeats_are_one_line(tmp_path: Path, names: list[str], said: str) -> None:
    find_error(write_stages(tmp_path, names), said)
    find_error(tmp_path, said)


def test_a_stage_file_alone_is_described(tmp_path: Path) -> None:
    paths = write_stages(tmp_path, ["model_stage2"])
    facts = describe(paths[0])
    assert facts["stage"] == 2
    assert facts["ema"] is False
    assert "stage 2" in format_facts(facts)


def test_stages_of_different_models_do_not_mix(tmp_path: Path) -> None:
    paths = write_stages(tmp_path, ["expert0"]) + write_stages(tmp_path, ["expert1"], model_channels=64)
    find_error(paths, "64 channels x [1] with Space MoE, but expert0.ckpt has 32")


def test_decoder_beside_the_stage_files_is_found_and_said(tmp_path: Path) -> None:
    paths = write_stages(tmp_path, ["expert0", "expert1"])
    (tmp_path / "vq-f4").mkdir()
    (tmp_path / "fa_vae.pth").rename(tmp_path / "vq-f4" / "fa_vae.pth")
    (tmp_path / "vae_notes.pth").write_text("not a checkpoint")
    found = open_model(paths, 4)
    assert found.config.autoencoder == FCD
    assert found.notes == ("decoder found beside the stage files: fa_vae.pth",)
    (tmp_path / "vq-f4" / "fa_vae.pth").unlink()
    find_error(paths, "no decoder")


def test_the_fuller_of_two_decoders_is_used_and_said(tmp_path: Path) -> None:
    paths = write_stages(tmp_path, ["expert0", "expert1"])
    torch.save(random_state(Autoencoder, FIRST), tmp_path / "autoencoder_vq_f4.pth")
    found = open_model(tmp_path, 4)
    assert found.config.autoencoder == FCD
    assert any("several decoders" in note for note in found.notes)
    found = open_model([*paths, tmp_path / "autoencoder_vq_f4.pth"], 4)
    assert found.config.autoencoder == FIRST
    assert any("plain first stage" in note for note in found.notes)


def test_other_files_in_a_folder_are_left_out_and_said(tmp_path: Path) -> None:
    write_stages(tmp_path, ["expert0", "expert1"])
    torch.save({"conv_first.weight": torch.ones(1), "upsample.0.weight": torch.ones(1)}, tmp_path / "upscaler.pth")
    notes = open_model(tmp_path, 4).notes
    assert len(notes) == 1
    assert notes[0].startswith("left out: upscaler.pth: an upscaler")


def test_converted_model_is_complete_alone(tmp_path: Path) -> None:
    config = ModelConfig(unet=unet(1), autoencoder=FIRST, stages=(500, 1000), scale=4)
    state, vae = random_state(UNet, config.unet), random_state(Autoencoder, FIRST)
    path = tmp_path / "a.safetensors"
    save_model(path, config, [state, state], vae, torch.float16)
    assert open_model(path).config == config
    assert open_model(tmp_path).config == config
    assert "x8" in open_model(path, 8).notes[-1]
    assert open_model([path, tmp_path]).config == config  # one file, named twice
    save_model(tmp_path / "b.safetensors", config, [state, state], vae, torch.float16)
    find_error([path, tmp_path / "b.safetensors"], "alone")
    find_error(tmp_path, "a.safetensors, b.safetensors")
    save_model(path, config, [state, state, state], vae, torch.float16)
    find_error(path, "more experts")
    save_model(path, config, [state], vae, torch.float16)
    find_error(path, "expert 1: ")
    save_model(path, config, [state, {**state, "out.2.bias": torch.zeros(3, dtype=torch.int8)}], vae, torch.float16)
    find_error(path, "int8")


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [("unet", "model_channels", "32"), ("unet", "model_channels", 2**40), ("unet", "channel_mult", [1] * 1000),
     ("unet", "channel_mult", []), ("unet", "space_experts", 10**6), ("unet", "num_head_channels", 33),
     ("unet", "norm_groups", 7), ("unet", "unheard_of", 1), ("autoencoder", "kind", "gan"),
     ("autoencoder", "lr_fusion", "yes"), ("process", "timesteps", 10**12), ("process", "timesteps", 10),
     ("process", "predict", "love"), ("process", "kappa", float("nan")), ("", "unet", 5), ("", "stages", [1000, 500]),
     ("", "scale", 2.5), ("", "name", None)],
)  # fmt: skip
def test_configs_beyond_reason_are_refused(tmp_path: Path, part: str, name: str, value: object) -> None:
    config = ModelConfig(unet=unet(1), autoencoder=FIRST, stages=(1000,), scale=4)
    check_refused_config(tmp_path / "x.safetensors", config, part, name, value)
