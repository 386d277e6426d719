"""What a checkpoint is, from its keys, shapes and name; and which files make one model, the release's among them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import moesr
from moesr.checkpoints.describe import describe, format_facts
from moesr.checkpoints.detect import EMA, UNET, find_role
from moesr.checkpoints.model_files import open_autoencoder, open_model, save_model
from moesr.checkpoints.weight_reading import Weights
from moesr.config import AutoencoderConfig, ModelConfig, UNetConfig
from moesr.errors import CheckpointError
from moesr.networks.autoencoder import Autoencoder
from moesr.networks.unet import UNet
from tests.checkpoint_files import FCD, FIRST, SHIFT, find_error, random_state, read_key_table, stage_state, unet


@pytest.mark.parametrize(("experts", "mult"), [(0, (1, 2)), (1, (2, 1)), (4, (1,)), (16, (1, 2))])
def test_widths_multipliers_and_experts_are_read_off(tmp_path: Path, experts: int, mult: tuple[int, ...]) -> None:
    config = unet(experts, channel_mult=mult, model_channels=32, attention_downsamples=(2,) if len(mult) > 1 else ())
    torch.save({"state_dict": stage_state(config)}, tmp_path / "x.ckpt")
    found = open_model(tmp_path / "x.ckpt")
    assert found.config.unet == UNetConfig(**{**vars(config), "space_experts": min(experts, 1)})
    assert found.config.autoencoder == FIRST
    assert found.config.scale == (8 if experts else 4)
    assert found.config.stages == (1000,)


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
    found = open_model(paths, 4)
    assert [p.stem for p in found.paths if p.suffix == ".ckpt"] == [names[i] for i in wanted]
    guessed = names[0] in ("stage4", "high", "0_1", "stage0_a")
    assert any("order" in note for note in found.notes) == guessed


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


#: Configs and what each is refused for: part, name, value.
BEYOND_REASON: list[tuple[ModelConfig, list[tuple[str, str, object]]]] = [
    (ModelConfig(unet=unet(1), autoencoder=FIRST, stages=(1000,), scale=4), [
     ("unet", "model_channels", "32"), ("unet", "model_channels", 2**40), ("unet", "channel_mult", [1] * 1000),
     ("unet", "channel_mult", []), ("unet", "space_experts", 10**6), ("unet", "num_head_channels", 33),
     ("unet", "norm_groups", 7), ("unet", "unheard_of", 1), ("autoencoder", "kind", "gan"),
     ("autoencoder", "lr_fusion", "yes"), ("process", "timesteps", 10**12), ("process", "timesteps", 10),
     ("process", "predict", "love"), ("process", "kappa", float("nan")), ("", "unet", 5), ("", "stages", [1000, 500]),
     ("", "scale", 2.5), ("", "name", None)]),
    (SHIFT, [
     ("unet", "kind", "dit"), ("unet", "window", 2**19), ("unet", "num_res_blocks", [1]),
     ("unet", "num_res_blocks", [1, 10**5]), ("unet", "channel_mult", []), ("unet", "swin_channels", 33),
     ("unet", "norm_groups", 0), ("unet", "lr_downsamples", 20), ("unet", "shift_mask", "none"), ("unet", "mask", 1),
     ("autoencoder", "num_res_blocks", [1, 1]), ("", "lr_resize", "lanczos"), ("", "unet", [])]),
]  # fmt: skip


@pytest.mark.parametrize(("config", "row"), [(config, row) for config, rows in BEYOND_REASON for row in rows])
def test_configs_beyond_reason_are_refused(tmp_path: Path, config: ModelConfig, row: tuple[str, str, object]) -> None:
    path, values, one = tmp_path / "x.safetensors", config.to_dict(), {"x": torch.zeros(1)}
    part, name, value = row
    (values[part] if part else values)[name] = value
    save_model(path, config, [one], one, torch.float16, {"moesr": json.dumps(values)})
    began = time.process_time()
    assert "missing" not in find_error(path, path.name)  # before its weights are looked at
    assert time.process_time() - began < 5
    save_model(path, config, [one], one, torch.float16)
    find_error(path, "missing")


# the release, in small: four stage files with EMA copies and 16 FFN experts, and a decoder beside them

STAGES, EXPERTS = 4, 16
TRAINED = unet(EXPERTS, channel_mult=(1, 2), attention_downsamples=(2,))
SOME = "input_blocks.1.0.in_layers.2.weight"

State = dict[str, Tensor]


def ema_key(key: str) -> str:
    return f"{EMA}diffusion_model{key.replace('.', '')}"


def write_release(folder: Path, files: list[State]) -> Path:
    """As the release is laid out: stages as Lightning checkpoints, the decoder in a folder of its own."""
    (folder / "vq-f4").mkdir(parents=True)
    for i, state in enumerate(files[:STAGES]):
        nested: dict[str, Any] = {"epoch": 3, "global_step": 100, "state_dict": state, "lr_schedulers": []}
        torch.save(nested, folder / f"model_stage{i}.ckpt")
    torch.save({"state_dict": files[STAGES]}, folder / "vq-f4" / "fa_vae.pth")
    return folder


@pytest.fixture(scope="module")
def files() -> list[State]:
    """The state dicts of the four stage files and of the decoder."""
    extra = {"loss.logvar": torch.zeros(()), "loss.discriminator.main.0.weight": torch.zeros(4, 3, 4, 4)}
    stages = [stage_state(TRAINED, FIRST, seed, ema=True) for seed in range(STAGES)]
    return [*stages, {**random_state(Autoencoder, FCD), **extra}]


@pytest.fixture(scope="module")
def release(files: list[State], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("release"), files)


def average_plainly(state: State, ema: bool = True) -> State:
    """The averaged UNet of a stage file, by plain means."""
    found: State = {}
    for key in (k.removeprefix(UNET) for k in state if k.startswith(UNET)):
        head, layer, tail = key.partition("moe_blocks.")
        if not layer:
            found[key] = state[ema_key(key) if ema else UNET + key]
            continue
        number, _, rest = tail.partition(".")
        if number == "0":
            keys = [f"{head}moe_blocks.{i}.{rest}" for i in range(EXPERTS)]
            found[key] = torch.stack([state[ema_key(k) if ema else UNET + k].double() for k in keys]).mean(0).float()
    return found


def assert_same(got: Mapping[str, Tensor], want: State) -> None:
    assert set(got) == set(want)
    for key, value in want.items():
        torch.testing.assert_close(got[key], value, rtol=1e-6, atol=1e-7, msg=key)


def test_folder_is_understood(release: Path) -> None:
    found = open_model(release)
    config = found.config
    assert config.unet == replace(TRAINED, space_experts=1)
    assert config.autoencoder == FCD
    assert config.process.kind == "ddpm"
    assert config.stages == (250, 500, 750, 1000)
    assert config.scale == 8
    assert [p.name for p in found.paths if p.suffix == ".ckpt"] == [f"model_stage{i}.ckpt" for i in range(STAGES)]
    assert len(found.notes) == 1
    assert "scale" in found.notes[0]
    assert "x8" in found.notes[0]


@pytest.mark.parametrize("residency", ["all", "stream"])
def test_experts_are_the_averages_of_the_ema_copies(release: Path, files: list[State], residency: str) -> None:
    model = moesr.load(str(release), device="cpu", dtype="fp32", residency=residency)
    try:
        assert any("x8" in note for note in model.notes)
        for i, t in enumerate((0, 250, 500, 999)):
            with model.bank.stage(t) as network:
                assert_same(network.state_dict(), average_plainly(files[i]))
        decoder = {k: v for k, v in files[STAGES].items() if not k.startswith("loss.")}
        assert_same(model.autoencoder.state_dict(), decoder)
    finally:
        model.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("expert")]


def test_plain_weights_are_used_if_the_ema_copy_is_incomplete(tmp_path: Path, files: list[State]) -> None:
    broken = [dict(state) for state in files]
    del broken[1][ema_key(SOME)]
    found = open_model(write_release(tmp_path / "release", broken))
    assert_same(found.experts[1], average_plainly(files[1], ema=False))
    assert_same(found.experts[0], average_plainly(files[0]))


@pytest.mark.parametrize(
    ("i", "key", "value", "named"),
    [
        (2, UNET + SOME, None, SOME),
        (2, ema_key(SOME), torch.zeros(32, 32, 1, 1), SOME),
        (0, f"{UNET}time_embed.0.weight", None, "time_embed.0.weight"),
        (STAGES, "decoder.unet_1.conv2.mlp.block.exp_1x1.block.norm.running_mean", None, "running_mean"),
        (STAGES, "decoder.fusion_layer_1.encode_enc_3.conv1.weight", torch.zeros(64, 32, 3, 3), "encode_enc_3.conv1"),
        (STAGES, "quant_conv.bias", None, "quant_conv.bias"),
    ],
)
def test_damage_is_one_line_that_names_it(
    tmp_path: Path, files: list[State], i: int, key: str, value: Tensor | None, named: str
) -> None:
    broken = [dict(state) for state in files]
    assert key in broken[i]
    if value is None:
        del broken[i][key]
    else:
        broken[i][key] = value
    folder = write_release(tmp_path / "release", broken)
    with pytest.raises(CheckpointError) as caught:
        moesr.load(folder, device="cpu", dtype="fp32", residency="all")
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)
