"""The release's files, in small: four stage files with EMA copies and 16 FFN experts, and a decoder beside them."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import moesr
from moesr.checkpoints.detect import EMA, UNET
from moesr.checkpoints.model_files import open_model
from moesr.errors import CheckpointError
from moesr.networks.autoencoder import Autoencoder
from tests.checkpoint_files import FCD, FIRST, random_state, stage_state, unet

STAGES, EXPERTS = 4, 16
TRAINED = unet(EXPERTS, channel_mult=(1, 2), attention_downsamples=(2,))
SOME = "input_blocks.1.0.in_layers.2.weight"

State = dict[str, Tensor]


def ema_key(key: str) -> str:
    return f"{EMA}diffusion_model{key.replace('.', '')}"


def write(folder: Path, files: list[State]) -> Path:
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
    return write(tmp_path_factory.mktemp("release"), files)


def wanted(state: State, ema: bool = True) -> State:
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
                assert_same(network.state_dict(), wanted(files[i]))
        decoder = {k: v for k, v in files[STAGES].items() if not k.startswith("loss.")}
        assert_same(model.autoencoder.state_dict(), decoder)
    finally:
        model.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("expert")]


def test_plain_weights_are_used_if_the_ema_copy_is_incomplete(tmp_path: Path, files: list[State]) -> None:
    broken = [dict(state) for state in files]
    del broken[1][ema_key(SOME)]
    found = open_model(write(tmp_path / "release", broken))
    assert_same(found.experts[1], wanted(files[1], ema=False))
    assert_same(found.experts[0], wanted(files[0]))


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
    folder = write(tmp_path / "release", broken)
    with pytest.raises(CheckpointError) as caught:
        moesr.load(folder, device="cpu", dtype="fp32", residency="all")
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)
