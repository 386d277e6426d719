"""ResShift's published files: what they are by keys, shapes and names, and what is said where those do not tell."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import moesr
from moesr.checkpoints.convert import convert
from moesr.checkpoints.describe import describe, format_facts
from moesr.checkpoints.model_files import open_model
from moesr.checkpoints.resshift import F4, FACE_F4, FACE_F8, read_named_timesteps
from moesr.checkpoints.swin import BUFFERS, read_swin_config
from moesr.cli import main
from moesr.config import ModelConfig, ProcessConfig, SwinUNetConfig, UNetConfig
from moesr.errors import SettingError
from moesr.networks.autoencoder import Autoencoder
from moesr.networks.swin_unet import SwinUNet
from tests.checkpoint_files import FCD, SHIFT, SWIN, VQ4, find_error, random_state, resshift_state, stage_state, unet

VQ8 = replace(VQ4, ch_mult=(1, 1, 1, 1), num_res_blocks=(1, 2, 1, 2), z_channels=8, embed_dim=8)
INPAINT = replace(SWIN, lr_downsamples=2, mask=True)
FACE = replace(SWIN, in_channels=8, out_channels=8, lr_downsamples=3)

SR = "resshift_realsrx4_s15_v1"


def put(
    folder: Path, name: str, config: SwinUNetConfig = SWIN, vq: str | None = F4, without: tuple[str, ...] = ("none",)
) -> Path:
    """A network as it is published, and its first stage beside it."""
    folder.mkdir(exist_ok=True, parents=True)
    state = {k: v for k, v in resshift_state(config).items() if not k.endswith(without)}
    torch.save(state, folder / f"{name}.pth")
    if vq is not None:
        torch.save(random_state(Autoencoder, VQ8 if config.out_channels == 8 else VQ4), folder / vq)
    return folder / f"{name}.pth"


@pytest.mark.parametrize(
    ("name", "config", "vq", "scale", "timesteps"),
    [
        ("resshift_realsrx4_s15_v1", SWIN, F4, 4, 15),
        ("resshift_realsrx4_s15_v2", SWIN, F4, 4, 15),
        ("resshift_realsrx4_s4_v3", SWIN, F4, 4, 4),
        ("resshift_bicsrx4_s4", SWIN, F4, 4, 4),
        ("resshift_realsrx2_s4", replace(SWIN, lr_downsamples=1), F4, 2, 4),
        ("resshift_inpainting_imagenet_s4", INPAINT, F4, 1, 4),
        ("resshift_inpainting_face_s4", INPAINT, FACE_F4, 1, 4),
        ("resshift_faceir_s4", FACE, FACE_F8, 1, 4),
    ],
)
def test_every_published_model_is_known(
    tmp_path: Path, name: str, config: SwinUNetConfig, vq: str, scale: int, timesteps: int
) -> None:
    path = put(tmp_path, name, config, vq)
    for source in (path, tmp_path, [path, tmp_path / vq]):
        found = open_model(source)
        assert found.config.unet == config
        assert found.config.autoencoder == (VQ8 if vq == FACE_F8 else VQ4)
        assert (found.config.scale, found.config.steps, found.config.stages) == (scale, timesteps, (timesteps,))
        least = {15: 0.04, 4: 0.2}[timesteps]
        process = ProcessConfig("residual_shift", timesteps, "x0", min_noise_level=least)
        assert found.config.process == process
        assert (process.kappa, process.power, process.etas_end, process.normalize_input) == (2.0, 0.3, 0.99, True)
        assert found.config.lr_resize == "torch"
        assert found.notes == (f"{timesteps} timesteps, by the name of {name}.pth; its weights do not say",)
        assert set(found.experts[0]) == set(random_state(SwinUNet, config))


@pytest.mark.parametrize(
    ("name", "told"),
    [("resshift_realsrx4_s15_v1", 15), ("realsr_v3_ema", 4), ("RealSRx4_V1", 15), ("bicx4_swinunet_lpips", 4),
     ("realsr_swinunet_realesrgan256_journal", 4), ("resshift-realsr-v1/model", 15),
     ("resshift-realsr-v1/resshift_s4", 4), ("model_s150", None), ("classes15_v1", None), ("model", None)],
)  # fmt: skip
def test_timesteps_by_name(name: str, told: int | None) -> None:
    assert read_named_timesteps(Path("/somewhere") / f"{name}.pth") == told


def test_what_the_name_does_not_tell_is_asked_or_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = put(tmp_path, "model")
    with caplog.at_level(logging.WARNING):
        found = open_model(path)
    assert found.config.process.timesteps == 4
    assert "assumed 4" in found.notes[0]
    assert "give timesteps, or a name with s15 or s4, to change it (15 for realsr v1 and v2" in found.notes[0]
    assert "assumed 4" in caplog.text
    model = moesr.load(path, timesteps=15)
    assert (model.process.total, model.config.steps, model.notes) == (15, 15, ())
    named = put(tmp_path / "a", SR)
    assert open_model(named, timesteps=4).notes == ("4 timesteps as asked for, though the name says 15",)
    # where only one schedule was ever published, it is that
    other = put(tmp_path / "b", "model", replace(SWIN, lr_downsamples=1))
    assert "as every published network of this kind" in open_model(other).notes[0]
    find_error(path, "timesteps 7", lambda p: open_model(p, timesteps=7))
    assert "asked for x8, but by their shapes the files are x4" in open_model(named, 8).notes


def test_timesteps_are_for_resshift(tmp_path: Path) -> None:
    torch.save({"state_dict": stage_state(unet())}, tmp_path / "x.ckpt")
    find_error(tmp_path / "x.ckpt", "these files have 1000", lambda p: open_model(p, timesteps=15))


def test_the_first_stage_is_asked_for_by_name(tmp_path: Path) -> None:
    path = put(tmp_path, "resshift_realsrx4_s4_v3", vq=None)
    line = find_error(path, F4)
    assert "python -m moesr download resshift-realsr-v3" in line
    find_error(tmp_path, F4)
    torch.save(random_state(Autoencoder, VQ4), tmp_path / FACE_F4)  # same shapes, other values
    find_error(path, F4)
    torch.save(random_state(Autoencoder, FCD), tmp_path / "fa_vae.pth")  # a decoder for other latents
    find_error(path, F4)
    torch.save(random_state(Autoencoder, VQ8), tmp_path / FACE_F8)
    find_error(path, F4)
    find_error([path, tmp_path / FACE_F8], "other latents")
    found = open_model([path, tmp_path / FACE_F4])  # by name: the user's word
    assert found.notes[-1] == f"first stage: {FACE_F4} is used, by its shapes; published is {F4}"
    (tmp_path / FACE_F4).rename(tmp_path / "my_vq.pth")
    assert open_model(path).notes[-1].startswith("first stage: my_vq.pth is used")
    torch.save(random_state(Autoencoder, VQ4, 3), tmp_path / "vq2.pth")
    find_error(path, "several first stages fit (my_vq.pth, vq2.pth)")
    torch.save(random_state(Autoencoder, VQ4), tmp_path / F4)
    found = open_model(path)
    assert found.decoder.weights.path.name == F4
    assert len(found.notes) == 1  # the schedule


def test_the_first_stage_of_inpainting_goes_by_the_name(tmp_path: Path) -> None:
    face = put(tmp_path, "resshift_inpaint_face_s4", INPAINT, FACE_F4)
    imagenet = put(tmp_path, "resshift_inpaint_imagenet_s4", INPAINT, F4)
    unknown = put(tmp_path, "inpaint_s4", INPAINT, None)
    assert open_model(face).decoder.weights.path.name == FACE_F4
    assert open_model(imagenet).decoder.weights.path.name == F4
    find_error(unknown, f"several first stages fit ({F4}, {FACE_F4})")
    (tmp_path / F4).unlink()
    assert f"published is {F4} or {FACE_F4}" in open_model(unknown).notes[-1]
    find_error(imagenet, f"put {F4} beside it")


def test_networks_of_several_models_do_not_mix(tmp_path: Path) -> None:
    put(tmp_path, SR)
    put(tmp_path, "resshift_realsrx4_s4_v3")
    find_error(tmp_path, "several models (resshift_realsrx4_s15_v1.pth, resshift_realsrx4_s4_v3.pth)")
    (tmp_path / "resshift_realsrx4_s4_v3.pth").unlink()
    torch.save({"state_dict": stage_state(unet())}, tmp_path / "stage0.ckpt")
    find_error(tmp_path, "networks of different methods")
    find_error(tmp_path / F4, "or ResShift's")


@pytest.mark.parametrize("timesteps", [None, 15])
def test_a_converted_file_needs_no_name(tmp_path: Path, timesteps: int | None) -> None:
    source = put(tmp_path / "release", "net")
    path = convert([source], tmp_path / "renamed.safetensors", "fp32", timesteps=timesteps)
    found, wanted = open_model(path), open_model(source, timesteps=timesteps)
    assert found.config == replace(wanted.config, name="renamed")
    assert found.notes == wanted.notes
    assert set(found.experts[0]) == set(wanted.experts[0])
    assert not [k for k in found.experts[0] if k.endswith(BUFFERS)]
    for mine, theirs in ((found.experts[0], wanted.experts[0]), (found.decoder, wanted.decoder)):
        assert all(torch.equal(mine[k], theirs[k]) for k in theirs)
    assert "S-Lab" in describe(path)["licence"]
    own = found.config.process.timesteps
    assert open_model(path, timesteps=19 - own).notes[-1] == f"asked for {19 - own} timesteps, but the file says {own}"


@pytest.mark.parametrize("mask", ["released", "textbook"])
def test_the_mask_that_a_file_keeps_is_the_one_that_is_used(tmp_path: Path, mask: str) -> None:
    config = replace(SWIN, shift_mask=mask)
    assert open_model(put(tmp_path, SR, config)).config.unet == config


def test_without_buffers_the_latent_size_is_that_of_the_published(tmp_path: Path) -> None:
    assert open_model(put(tmp_path, SR, without=BUFFERS)).config.unet == SWIN
    eight = replace(SWIN, latent_size=16, channel_mult=(1, 1, 2), num_res_blocks=(1, 2, 0), attention_downsamples=(2,))
    with_masks = {k: tuple(v.shape) for k, v in resshift_state(eight).items()}
    assert read_swin_config(with_masks) == eight
    smaller = replace(eight, latent_size=8)  # a level smaller than a window tells, too
    assert read_swin_config({k: s for k, s in with_masks.items() if not k.endswith(BUFFERS)}).latent_size == 16
    assert read_swin_config({k: tuple(v.shape) for k, v in resshift_state(smaller).items()}) == smaller


def test_incomplete_files_name_what_is_missing(tmp_path: Path) -> None:
    find_error(put(tmp_path, SR, without=("input_blocks.1.1.blocks.1.mlp.fc2.bias",)), "mlp.fc2.bias missing")
    find_error(put(tmp_path, SR, without=("middle_block.1.patch_embed.proj.weight",)), "not a Swin UNet")


def test_info_says_what_a_network_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = put(tmp_path, "resshift_inpainting_face_s4", INPAINT, None)
    facts = describe(path)
    assert (facts["kind"], facts["timesteps"]) == ("ResShift network", 4)
    assert FACE_F4 in format_facts(facts)
    put(tmp_path, SR)
    assert main(["info", str(tmp_path / f"{SR}.pth")]) == 0
    shown = capsys.readouterr().out
    for part in ("ResShift checkpoint", "x4", "0 to 14", "residual_shift, 15 timesteps, predicts x0", "windows of 4"):
        assert part in shown, shown
    assert main(["info", "--json", "--model-timesteps", "4", str(tmp_path / f"{SR}.pth")]) == 0
    assert json.loads(capsys.readouterr().out)["config"]["process"]["timesteps"] == 4


def test_configs_come_back_as_they_were() -> None:
    for config in (SHIFT, ModelConfig(), replace(SHIFT, unet=INPAINT, autoencoder=VQ8)):
        values = json.loads(json.dumps(config.to_dict()))
        assert ModelConfig.from_dict(values) == config
    values = ModelConfig().to_dict()
    del values["unet"]["kind"], values["lr_resize"]  # as files before this were written
    assert ModelConfig.from_dict(values) == ModelConfig()
    assert isinstance(ModelConfig.from_dict(values).unet, UNetConfig)
    with pytest.raises(SettingError, match="'dit' is unknown"):
        ModelConfig.from_dict({"unet": {"kind": "dit"}})
