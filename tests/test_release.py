"""The release's files, in small: four stage files with EMA copies and 16 FFN experts, and a decoder beside them."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import moesr
from moesr.checkpoints.detect import EMA, FIRST_STAGE, UNET
from moesr.checkpoints.model_files import open_model
from moesr.config import AutoencoderConfig, UNetConfig
from moesr.errors import CheckpointError
from moesr.networks.autoencoder import Autoencoder
from moesr.networks.unet import UNet

STAGES = 4
EXPERTS = 16
TRAINED = UNetConfig(
    model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_downsamples=(2,), space_experts=EXPERTS
)
DECODER = AutoencoderConfig(ch=32, num_res_blocks=1, n_embed=64, fusion_growth=8, fusion_blocks=1)
FIRST = AutoencoderConfig(ch=32, num_res_blocks=1, n_embed=64, lr_fusion=False, refine=False)
SOME = "input_blocks.1.0.in_layers.2.weight"

State = dict[str, Tensor]


def ema_key(key: str) -> str:
    return f"{EMA}diffusion_model{key.replace('.', '')}"


def filled(shapes: State, generator: torch.Generator) -> State:
    """The same keys with other numbers; integers stay."""
    return {
        k: torch.randn(v.shape, generator=generator) if v.is_floating_point() else v.clone() for k, v in shapes.items()
    }


def random_release() -> list[State]:
    """The state dicts of four stage files and of the decoder."""
    generator = torch.Generator().manual_seed(5)
    with torch.device("meta"):
        unet, first, decoder = (m.state_dict() for m in (UNet(TRAINED), Autoencoder(FIRST), Autoencoder(DECODER)))
    decoder = {k: torch.zeros((), dtype=v.dtype) if "num_batches" in k else v for k, v in decoder.items()}
    files = []
    for _ in range(STAGES):
        state: State = {name: torch.zeros(1000) for name in ("betas", "alphas_cumprod")}
        state |= {UNET + k: v for k, v in filled(unet, generator).items()}
        state |= {ema_key(k): v for k, v in filled(unet, generator).items()}
        state |= {f"{EMA}decay": torch.tensor(0.9999), f"{EMA}num_updates": torch.tensor(7, dtype=torch.int32)}
        state |= {FIRST_STAGE + k: v for k, v in filled(first, generator).items()}
        files.append(state)
    extra = {"loss.logvar": torch.zeros(()), "loss.discriminator.main.0.weight": torch.zeros(4, 3, 4, 4)}
    return [*files, {**filled(decoder, generator), **extra}]


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
    return random_release()


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


def load(source: Any, **options: Any) -> moesr.SRModel:
    return moesr.load(source, device="cpu", dtype="fp32", **options)


def test_folder_is_understood(release: Path) -> None:
    found = open_model(release)
    config = found.config
    assert config.unet == UNetConfig(**{**vars(TRAINED), "space_experts": 1})
    assert config.autoencoder == DECODER
    assert config.process.kind == "ddpm"
    assert config.stages == (250, 500, 750, 1000)
    assert config.scale == 8
    assert [p.name for p in found.paths if p.suffix == ".ckpt"] == [f"model_stage{i}.ckpt" for i in range(STAGES)]
    assert len(found.notes) == 1
    assert "scale" in found.notes[0]
    assert "x8" in found.notes[0]


def test_scale_that_is_told_is_not_noted(release: Path) -> None:
    found = open_model(release, scale=4)
    assert found.config.scale == 4
    assert not found.notes


@pytest.mark.parametrize("residency", ["all", "stream"])
def test_experts_are_the_averages_of_the_ema_copies(release: Path, files: list[State], residency: str) -> None:
    model = load(str(release), residency=residency)
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


def test_order_is_that_of_the_numbers_in_the_names(release: Path, files: list[State]) -> None:
    names = [release / f"model_stage{i}.ckpt" for i in (2, 0, 3, 1)]
    found = open_model([release / "vq-f4" / "fa_vae.pth", *names])
    for i in range(STAGES):
        assert_same(found.experts[i], wanted(files[i]))


def test_unnumbered_files_keep_their_order_and_say_so(tmp_path: Path, files: list[State]) -> None:
    for name, i in (("high", 1), ("low", 0)):
        torch.save({"state_dict": files[i]}, tmp_path / f"{name}.ckpt")
    found = open_model([tmp_path / "high.ckpt", tmp_path / "low.ckpt"])
    assert_same(found.experts[0], wanted(files[1]))
    assert any("order" in note for note in found.notes)
    assert any("plain first stage" in note for note in found.notes)
    assert found.config.autoencoder == FIRST
    assert found.config.stages == (500, 1000)


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
        load(folder, residency="all")
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["model_stage1.ckpt", "vq-f4/fa_vae.pth"])
def test_file_that_is_cut_off_is_named(tmp_path: Path, files: list[State], name: str) -> None:
    folder = write(tmp_path / "release", files)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError) as caught:
        open_model(folder)
    assert Path(name).name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_decoder_alone_is_no_model(release: Path) -> None:
    with pytest.raises(CheckpointError, match="stage files"):
        open_model([release / "vq-f4" / "fa_vae.pth"])


class Foreign:
    """Stands for what a trainer leaves in its checkpoints; running its code would be a hole."""

    ran = False

    def __setstate__(self, state: object) -> None:
        Foreign.ran = True


def test_foreign_objects_in_a_checkpoint_are_neither_run_nor_in_the_way(tmp_path: Path, files: list[State]) -> None:
    folder = write(tmp_path / "release", files)
    thing = Foreign()
    thing.__dict__["a"] = 1
    torch.save({"callbacks": {"x": thing}, "state_dict": files[1]}, folder / "model_stage1.ckpt")
    assert_same(open_model(folder).experts[1], wanted(files[1]))
    assert not Foreign.ran
