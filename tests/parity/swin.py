"""Swin blocks with their masks, and the Swin UNet: plain, with a feature extractor, with a mask channel."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from moesr.checkpoints.swin import BUFFERS, read_swin_config, shift_mask
from moesr.config import SwinUNetConfig
from moesr.networks.swin_layers import SwinBlock, WindowAttention, compute_position_index
from moesr.networks.swin_unet import SwinUNet
from tests.checkpoint_files import window_masks

from .case import Case, recorded

SWIN = 1.5e-5  # absolute
OWN = Path(__file__).parents[1] / "golden" / "resshift"
CPU = torch.device("cpu")

State = dict[str, Tensor]


def beside(case: Case, file: str) -> Path:
    """A file that a case names: in its own folder, else among the project's own cases."""
    name = file.split()[0]
    return next((path for path in (case.folder / name, OWN / name) if path.exists()), case.folder / name)


def stored(path: Path) -> State:
    """The weights in a file, fp16 upcast (it is exact)."""
    tensors = {k.removeprefix("w."): v for k, v in load_file(path).items() if k.startswith("w.")}
    return {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}


def config_of(values: dict[str, Any], state: State) -> SwinUNetConfig:
    """Our config of a recorded one. What the recording says is held against what the keys say."""
    assert values["conv_resample"], "networks that resize without a convolution cannot be told by their keys"
    assert values["dims"] == 2
    found = read_swin_config({k: tuple(v.shape) for k, v in state.items()})
    size, mult, dim = values["image_size"], values["channel_mult"], values["swin_embed_dim"]
    blocks = values["num_res_blocks"]
    rates = [2**i for i in range(len(mult))]
    same = ("in_channels", "out_channels", "model_channels", "num_head_channels", "swin_depth")
    told = SwinUNetConfig(
        **{name: values[name] for name in same},
        channel_mult=tuple(mult),
        num_res_blocks=tuple(blocks) if isinstance(blocks, list) else (blocks,) * len(mult),
        attention_downsamples=tuple(r for r in rates if size // r in values["attention_resolutions"]),
        swin_channels=dim,
        mlp_channels=int(dim * values["mlp_ratio"]),
        window=values["window_size"],
        latent_size=size,
        lr_downsamples=(values["lq_size"] // size).bit_length() - 1,
        mask=found.mask,
        scale_shift=values["use_scale_shift_norm"],
        resblock_resample=values["resblock_updown"],
    )
    # A level all of whose windows are as small as the map hides the size of larger ones.
    found = replace(found, window=told.window) if found.window < told.window else found
    assert found == told, f"by the keys {found}, by the recording {told}"
    return told


def load(case: Case, values: dict[str, Any] | None, file: str | None = None) -> SwinUNet:
    """The network of a recorded config, with every weight used; the buffers among them are held against ours.

    The weights are the case's own, or those of `file`; the config of that file where the case has none.
    """
    state = case.weights() if file is None else stored(beside(case, file))
    if values is None:
        assert file is not None, f"{case.name}: no config"
        values = json.loads(beside(case, file).with_suffix(".json").read_text())["config"]
    assert values is not None
    network = SwinUNet(config_of(values, state))
    used = network.load_state_dict(state, strict=False)
    assert not used.missing_keys, used.missing_keys
    left = [k for k in used.unexpected_keys if not k.endswith(BUFFERS)]
    assert not left, left
    assert shift_mask(state, network.config) == "released"
    for key in used.unexpected_keys:
        layer = network.get_submodule(key.rpartition(".")[0])
        if isinstance(layer, WindowAttention):
            assert torch.equal(state[key], compute_position_index(layer.window, CPU)), key
        elif isinstance(layer, SwinBlock):
            side = int(len(state[key]) ** 0.5)
            assert torch.equal(state[key], window_masks(layer.attn, side, side)), key
    return network.eval()


@torch.no_grad()
def block(case: Case) -> None:
    """A block on maps of several sizes; masks and position indices named by size, window and shift."""
    c = case.config
    state = case.weights()
    own = {k: v for k, v in state.items() if not k.startswith("attn_mask") and not k.endswith(BUFFERS)}
    layer = SwinBlock(c["dim"], c["num_heads"], c["window_size"], c["shift_size"], int(c["dim"] * c["mlp_ratio"]))
    layer.load_state_dict(own)
    for size in case.tags(r"x(|_.+)"):
        case.compare(f"y{size}", layer(case.inputs[f"x{size}"]), atol=SWIN)
    for key, want in case.outputs.items():
        found = re.fullmatch(r"attn_mask_(\d+)x(\d+)_w(\d+)_s(\d+)", key)
        if found:
            height, width, window, shift = map(int, found.groups())
            made = window_masks(WindowAttention(32, 1, window, shift, "released"), height // window, width // window)
            case.compare(key, made.to(want.dtype))
        found = re.fullmatch(r"relative_position_index_w(\d+)", key)
        if found:
            case.compare(key, compute_position_index(int(found[1]), CPU))


@torch.no_grad()
def unet(case: Case) -> None:
    """The network at every recorded size, and its inner states (of the first image) at the plain one."""
    network = load(case, case.meta.get("config"), case.meta.get("weights_file"))
    for size in case.tags(r"x(|_.+)"):
        z, t, lr = (case.inputs[f"{name}{size}"] for name in ("x", "t", "lq"))
        if f"mask{size}" in case.inputs:
            lr = torch.cat([lr, case.inputs[f"mask{size}"]], dim=1)
        inner = case.named("mid.") if not size else {}
        names = {key: _module(network, key) for key in inner}
        with recorded(network, list(names.values())) as seen:
            case.compare(f"y{size}", network(z, t, lr), atol=SWIN)
        for key, name in names.items():
            case.compare(f"mid.{key}", seen[name][: len(inner[key])])  # values up to 1e5: relative to the largest


def _module(network: SwinUNet, name: str) -> str:
    """`output_blocks.last` is the last element of output_blocks."""
    head, _, tail = name.rpartition(".")
    return f"{head}.{len(network.get_submodule(head)) - 1}" if tail == "last" else name  # type: ignore[arg-type]
