"""Checkpoint files of every kind: read as torch reads them, or refused in one line that says what they are."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from moesr.checkpoints.describe import describe
from moesr.checkpoints.detect import UNET
from moesr.checkpoints.model_files import open_model
from moesr.checkpoints.weight_reading import Weights
from moesr.config import AutoencoderConfig
from moesr.evaluation.speed.measure import read_anonymous_bytes
from moesr.networks.autoencoder import Autoencoder
from tests.checkpoint_files import Pretended, find_error, legacy, listing, random_state


def tricky() -> dict[str, Any]:
    """Tensors that share, skip, repeat and reorder their numbers."""
    base = torch.arange(60, dtype=torch.float32)
    kinds = (torch.half, torch.bfloat16, torch.double, torch.complex64, torch.bool, torch.uint8, torch.int16)
    return {
        "whole": base, "part": base[7:31], "rows": base.view(6, 10)[1:5, ::3], "empty": torch.zeros(0, 4),
        "transposed": torch.randn(4, 5, 6).permute(2, 0, 1), "repeated": torch.randn(3, 1).expand(3, 7),
        "scalar": torch.tensor(3.5), "count": torch.tensor(7), "parameter": nn.Parameter(torch.randn(3)),
        **{str(kind): torch.arange(5).to(kind) for kind in kinds},
    }  # fmt: skip


@pytest.mark.parametrize("form", ["zip", "zip of protocol 4", "old", "without checksums", "safetensors"])
def test_files_give_the_tensors_that_were_saved(tmp_path: Path, form: str) -> None:
    path, state = tmp_path / "x.pth", tricky()
    if form == "old":
        legacy(path, state)
    elif form == "safetensors":
        save_file({k: v.detach().contiguous().clone() for k, v in state.items()}, path, {"a": "b"})
    elif form == "without checksums":
        options = pytest.importorskip("torch.serialization")
        if not hasattr(options, "set_crc32_options"):
            pytest.skip("this torch always writes checksums")
        options.set_crc32_options(False)
        torch.save(state, path)
        options.set_crc32_options(True)
    else:
        torch.save(state, path, pickle_protocol=4 if "4" in form else 2)
    found = Weights(path)
    found.verify()
    assert found.metadata == ({"a": "b"} if form == "safetensors" else {})
    assert found.shapes() == {k: tuple(v.shape) for k, v in state.items()}
    for key, value in state.items():
        assert found[key].dtype == value.dtype == found.dtype(key)
        assert torch.equal(found[key], value), key


def test_the_suffix_does_not_matter(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "x.safetensors")
    save_file({"a": torch.ones(2)}, tmp_path / "x.ckpt")
    assert torch.equal(Weights(tmp_path / "x.safetensors")["a"], Weights(tmp_path / "x.ckpt")["a"])


@pytest.mark.parametrize("nest", [("state_dict",), ("model", "state_dict"), ("params_ema",), ("params",), ()])
def test_nests_and_prefixes_of_trainers(tmp_path: Path, nest: tuple[str, ...]) -> None:
    value: Any = OrderedDict({"module._orig_mod.a": torch.ones(2), "b._orig_mod.module.c": torch.zeros(3)})
    for name in nest:
        value = {"epoch": 3, name: value, "optimizer": {"state": {0: {"step": torch.ones(1)}}}}
    torch.save(value, tmp_path / "x.ckpt")
    assert Weights(tmp_path / "x.ckpt").shapes() == {"a": (2,), "b.module.c": (3,)}


@pytest.mark.parametrize(("ema", "value"), [({"a": 2.0, "b": 2.0}, 2.0), ({"a": 2.0}, 1.0)])
def test_params_ema_counts_if_it_is_complete(tmp_path: Path, ema: dict[str, float], value: float) -> None:
    plain = {"a": torch.tensor(1.0), "b": torch.tensor(1.0)}
    torch.save({"params": plain, "params_ema": {k: torch.tensor(v) for k, v in ema.items()}}, tmp_path / "x.pth")
    assert Weights(tmp_path / "x.pth")["a"].item() == value


@pytest.mark.skipif(read_anonymous_bytes() is None, reason="the system does not tell")
@pytest.mark.parametrize("name", ["x.ckpt", "x.safetensors"])
def test_weights_are_not_read_into_memory(tmp_path: Path, name: str) -> None:
    state = {f"layer.{i}": torch.randn(2**20) for i in range(8)}
    (torch.save if name.endswith("ckpt") else save_file)(state, tmp_path / name)
    del state
    Weights(tmp_path / name)["layer.0"].sum()
    before = read_anonymous_bytes() or 0
    weights = Weights(tmp_path / name)
    held = [weights[key] for key in weights]
    assert sum(t.sum().item() for t in held) != 0
    assert (read_anonymous_bytes() or 0) - before < 4 * 2**20  # of 32 MiB


def header(entries: object, data: bytes = b"") -> bytes:
    content = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return len(content).to_bytes(8, "little") + content + data


def entry(shape: object = (4,), offsets: object = (0, 16)) -> dict[str, object]:
    return {"dtype": "F32", "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    "content",
    [
        (2**63).to_bytes(8, "little") + b"{}",
        header(b'{"a": '),
        header(b"{" + b'"a":[' * 10**5),
        header({"a": entry()}, bytes(15)),
        header({"a": entry(shape=[2**40], offsets=[0, 2**42])}, bytes(16)),
        header({"a": entry(), "b": entry()}, bytes(16)),
    ],
    ids=range(6),
)
def test_headers_that_lie_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(header({"a": entry()}, bytes(16)))
    assert Weights(path)["a"].tolist() == [0, 0, 0, 0]
    path.write_bytes(content)
    find_error(path, "x.safetensors", Weights)


def test_zip_files_that_lie_are_refused(tmp_path: Path) -> None:
    good = listing({"a": Pretended()})
    bomb = tmp_path / "bomb.ckpt"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", good)
        archive.writestr("archive/data/0", bytes(2**24))
    assert bomb.stat().st_size < 2**16
    find_error(bomb, "compressed", Weights)
    crowded = tmp_path / "crowded.ckpt"
    with zipfile.ZipFile(crowded, "w") as archive:
        archive.writestr("archive/data.pkl", good)
        archive.comment = b"x" * 2**15
    content = crowded.read_bytes()
    at = content.rindex(b"PK\5\6")
    crowded.write_bytes(content[: at + 12] + struct.pack("<I", 2**30) + content[at + 16 :])
    find_error(crowded, "directory", Weights)
    broken = tmp_path / "broken.ckpt"
    torch.save({"a": torch.arange(1000.0)}, broken)
    content = bytearray(broken.read_bytes())
    content[content.index(torch.arange(1000.0).numpy().tobytes()) + 700] ^= 1
    broken.write_bytes(content)
    find_error(broken, "checksum", lambda path: Weights(path).verify())


# what it is not

SD = f"{UNET}input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
NETWORKS = {
    "Load Upscale Model": [
        ["in_to_dim.weight", "blocks.0.blocks.0.gamma", "blocks.0.msg.gated.0.fc1.weight", "upscale.MetaUpsample"],
        ["model.0.weight", "model.1.sub.0.RDB1.conv1.0.weight"],
        ["conv_first.weight", "body.0.rdb1.conv1.weight", "conv_last.weight"],
        ["conv_first.weight", "layers.0.residual_group.blocks.0.norm1.weight"],
        ["conv_first.weight", "before_RG.1.weight", "layers.0.blocks.0.norm1.weight"],
    ],
    "MoESR, a different network": [["in_to_dim.weight", "blocks.0.blocks.0.gamma", "upscale.MetaUpsample"]],
    "SwinIR": [["conv_first.weight", "layers.0.residual_group.blocks.0.norm1.weight"]],
    "Stable Diffusion checkpoint": [["cond_stage_model.transformer.text_model.embeddings.position_ids", SD]],
    "Stable Diffusion XL": [["conditioner.embedders.0.transformer.text_model.x", SD]],
    "Flux": [
        ["double_blocks.0.img_attn.norm.key_norm.scale", "single_blocks.0.linear1.weight"],
        [f"model.diffusion_model.{k}" for k in ("double_blocks.0.img_mod.lin.bias", "single_blocks.0.linear1.bias")],
    ],
    "LoRA": [
        ["lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", "lora_unet_x.alpha"],
        ["unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight"],
    ],
    "ControlNet": [["control_model.input_blocks.0.0.weight", "control_model.input_hint_block.0.weight"]],
    "VAE": [["encoder.down_blocks.0.resnets.0.conv1.weight", "decoder.up_blocks.0.resnets.0.conv1.weight"]],
    "3 tensors such as weird.a": [["weird.a", "weird.b", "weird.c"]],
}


@pytest.mark.parametrize(("said", "keys"), [(said, keys) for said, many in NETWORKS.items() for keys in many])
def test_other_networks_are_named(tmp_path: Path, said: str, keys: list[str]) -> None:
    for name, save in (("x.safetensors", save_file), ("x.pth", torch.save)):
        save({key: torch.ones(1) for key in keys}, tmp_path / name)
        find_error(tmp_path / name, said)
        find_error(tmp_path / name, said, describe)


def test_vae_of_stable_diffusion_is_named(tmp_path: Path) -> None:
    config = AutoencoderConfig(
        kind="kl", ch=32, ch_mult=(1, 1), num_res_blocks=1, z_channels=4, embed_dim=4, lr_fusion=False, refine=False
    )
    torch.save({"state_dict": random_state(Autoencoder, config)}, tmp_path / "vae.ckpt")
    find_error(tmp_path / "vae.ckpt", "a VAE of Stable Diffusion")


FILES: dict[str, tuple[bytes, str]] = {
    "empty.ckpt": (b"", "empty file"),
    "error.safetensors": (b"\n<!DOCTYPE html>\n<html><head><title>404</title>", "web page"),
    "error.ckpt": (b"<html>", "web page"),
    "bucket.pth": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML"),
    "lfs.ckpt": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 3650000000\n", "git lfs pull"),
    "config.safetensors": (b'{"a": 1}', "JSON"),
    "readme.pth": ("notes, and an umlaut: \u00fc".encode() * 99, "text file"),
    "model.gguf": (b"GGUF\3\0\0\0" + bytes(99), "GGUF"),
    "photo.ckpt": (b"\x89PNG\r\n\x1a\n" + bytes(99), "PNG picture"),
    "photo.safetensors": (b"\xff\xd8\xff\xe0\0\x10JFIF", "JPEG picture"),
    "photo.webp": (b"RIFF\x10\0\0\0WEBPVP8 ", "WebP picture"),
    "model.7z": (b"7z\xbc\xaf\x27\x1c", "unpack"),
    "model.tar": (bytes([97]) * 257 + b"ustar\0", "tar archive"),
    "half.ckpt": (bytes(5000), "zeros"),
    "half.safetensors": ((999).to_bytes(8, "little") + b'{"a": {', "cut off"),
    "noise.ckpt": (bytes(range(1, 255)), "damaged"),
    "noise.safetensors": (bytes(range(255, 0, -1)), "damaged"),
    "joblib.pth": (pickle.dumps({"a": 1}), "pickle"),
    "plain.pth": (pickle.dumps({"a": 1}, 2), "pickle"),
}


@pytest.mark.parametrize("name", FILES)
def test_other_files_are_named(tmp_path: Path, name: str) -> None:
    content, said = FILES[name]
    (tmp_path / name).write_bytes(content)
    for read in (open_model, describe, Weights):
        line = find_error(tmp_path / name, said, read)
        assert name in line
        assert ";" in line  # and what to do


def test_archives_folders_and_absent_files_are_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.ckpt", "w") as archive:
        archive.writestr("weights/model.ckpt", "x")
    find_error(tmp_path / "a.ckpt", "weights/model.ckpt")
    find_error(tmp_path, "unpack")
    find_error(tmp_path, "folder", Weights)
    find_error(tmp_path / "absent.ckpt", "no such file")
    (tmp_path / "empty").mkdir()
    find_error(tmp_path / "empty", "no checkpoint there")
    with zipfile.ZipFile(tmp_path / "b.pt", "w") as archive:
        archive.writestr("b/data.pkl", listing({"a": Pretended()}))
        archive.writestr("b/code/__torch__.py", "def forward(self): pass")
    find_error(tmp_path / "b.pt", "TorchScript")
    torch.save(nn.Linear(2, 2), tmp_path / "c.pt")
    find_error(tmp_path / "c.pt", "torch.nn.modules.linear.Linear")


@pytest.mark.parametrize("name", ["x.safetensors", "x.ckpt", "old.ckpt"])
def test_cut_off_anywhere_is_one_line(tmp_path: Path, name: str) -> None:
    state = {"a": torch.randn(500), "b": torch.randn(500)}
    path = tmp_path / name
    {"x.safetensors": save_file, "x.ckpt": torch.save, "old.ckpt": lambda v, p: legacy(p, v)}[name](state, path)
    content = path.read_bytes()
    for end in [*range(1, 40), *range(40, len(content), 97)]:
        path.write_bytes(content[:end])
        line = find_error(path, name, Weights)
        assert end < 40 or "cut off" in line, (end, line)
