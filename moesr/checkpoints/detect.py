"""What a checkpoint is, from its keys and shapes alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..config import AutoencoderConfig, UNetConfig
from ..errors import CheckpointError
from .unknown_files import describe_keys, find_other_network, one_line
from .weight_reading import Shapes, Weights

#: Where a Lightning checkpoint of the release keeps its UNet, its EMA copy and its first stage.
UNET = "model.diffusion_model."
EMA = "model_ema."
FIRST_STAGE = "first_stage_model."
#: Where a converted file keeps its config, in JSON.
HEADER = "moesr"
#: More levels and blocks than a network can have that somebody trained; a hostile file may list millions.
MOST_BLOCKS = 100


def under(shapes: Shapes, prefix: str) -> Shapes:
    """The entries whose keys begin with the prefix, without it."""
    return {k[len(prefix) :]: v for k, v in shapes.items() if k.startswith(prefix)}


def find_prefix(weights: Weights) -> str:
    """What stands before the keys of the network in a file."""
    return UNET if any(k.startswith(UNET) for k in weights) else ""


def find_role(weights: Weights) -> str:
    """What a file can be in a model: "model" (converted, whole), "expert" or "autoencoder".

    Raises CheckpointError for any other network, saying which it is.
    """
    if HEADER in weights.metadata:
        return "model"
    shapes = weights.shapes()
    other = find_other_network(shapes)
    if other is not None:
        raise CheckpointError(f"{weights.path}: {other}")
    if any(k.startswith((f"{UNET}input_blocks.", "input_blocks.")) for k in shapes):
        return "expert"
    if any(k.startswith(("decoder.mid.block_1.", "decoder.conv_out.")) for k in shapes):
        return "autoencoder"
    raise CheckpointError(f"{weights.path}: {describe_keys(shapes)}")


def read_unet_config(shapes: Shapes) -> UNetConfig:
    """The UNet that has exactly these keys: widths, levels, attention and Space MoE read off the shapes.

    shapes: without prefix. The head width cannot be read; it is 32 in every released file. Raises CheckpointError if
    the keys are not an LDM UNet's.
    """
    try:
        base, in_channels = shapes["input_blocks.0.0.weight"][:2]
        out_channels = shapes["out.2.weight"][0]
        widths: list[int] = [0]  # output channels of each level
        blocks, attention, rate = 0, set(), 1
        for i in range(1, count(shapes, "input_blocks")):
            if f"input_blocks.{i}.0.op.weight" in shapes:
                rate *= 2
                widths.append(0)
                continue
            widths[-1] = shapes[f"input_blocks.{i}.0.in_layers.2.weight"][0]
            blocks += len(widths) == 1
            if f"input_blocks.{i}.1.qkv.weight" in shapes:
                attention.add(rate)
        check_bound(blocks * len(widths), "residual blocks")
        mult = tuple(w // base for w in widths)
        copies = {k.split(".")[3] for k in shapes if re.match(r"middle_block\.2\.moe_blocks\.\d+\.", k)}
        experts = check_bound(len(copies), "FFN experts")
        hidden, dim = shapes["middle_block.2.moe_blocks.0.0.weight"] if copies else (4, 1)
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(f"not a UNet of LDM: {reason(error)}; give a MoESR or LDM-SR checkpoint") from error
    return UNetConfig(
        in_channels=in_channels, out_channels=out_channels, model_channels=base, channel_mult=mult,
        num_res_blocks=blocks, attention_downsamples=tuple(sorted(attention)), space_experts=experts,
        ffn_mult=hidden / dim,
    )  # fmt: skip


def read_autoencoder_config(shapes: Shapes) -> AutoencoderConfig:
    """The autoencoder that has exactly these keys. Raises CheckpointError if they are not LDM's."""
    try:
        levels = count(shapes, "encoder.down")
        ch = shapes["encoder.conv_in.weight"][0]
        widths = [shapes[f"encoder.down.{i}.block.0.conv1.weight"][0] for i in range(levels)]
        blocks = [count(shapes, f"encoder.down.{i}.block") for i in range(levels)]
        check_bound(sum(blocks), "residual blocks")
        kind = "vq" if "quantize.embedding.weight" in shapes else "kl"
        z = shapes["decoder.conv_in.weight"][1]
        fusion = "decoder.fusion_layer_1.encode_enc_1.conv1.weight" in shapes
        refine = "decoder.unet_1.conv1.norm1.weight" in shapes
        rdb = "decoder.fusion_layer_1.encode_enc_2"
        unet = "decoder.unet_1"
        filters = shapes[f"{unet}.conv1.filter.w1"] if refine else (2, 8, 1, 1)
        return AutoencoderConfig(
            kind=kind,
            in_channels=shapes["encoder.conv_in.weight"][1],
            out_channels=shapes["decoder.conv_out.weight"][0],
            ch=ch,
            ch_mult=tuple(w // ch for w in widths),
            num_res_blocks=blocks[0] if len(set(blocks)) == 1 else tuple(blocks),
            z_channels=z,
            embed_dim=shapes["post_quant_conv.weight"][1],
            n_embed=shapes["quantize.embedding.weight"][0] if kind == "vq" else 8192,
            attention_levels=tuple(i for i in range(levels) if f"encoder.down.{i}.attn.0.q.weight" in shapes),
            lr_fusion=fusion,
            refine=refine,
            refine_mult=_read_refine_mult(shapes, unet, ch) if refine else (1, 1, 2, 2),
            filter_expansion=filters[3] // filters[2],
            fusion_growth=shapes[f"{rdb}.0.rdb1.conv1.weight"][0] if fusion else 32,
            fusion_blocks=count(shapes, rdb) if fusion else 2,
            scale_factor=1.0 if kind == "vq" else 0.18215,
        )
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(f"not an autoencoder of LDM: {reason(error)}; give a VQ f4 or KL f8 file") from error


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of the block say which file they are about."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def compute_shapes(kind: Callable[[Any], nn.Module], config: object) -> Shapes:
    """Keys and shapes of the network of a config; it is never given memory. CheckpointError if there is none."""
    try:
        with torch.device("meta"):
            network = kind(config)
    except (RuntimeError, ValueError, TypeError, ArithmeticError) as error:
        raise CheckpointError(f"no network has such widths ({one_line(error)}); the file is damaged") from error
    return {k: tuple(v.shape) for k, v in network.state_dict().items()}


def check(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], what: str) -> None:
    """Raise CheckpointError, naming the first few, if a tensor is missing or has another shape than the network's."""
    missing = [k for k in expected if k not in found]
    if missing:
        raise CheckpointError(f"{what}: {_name_some(missing)} missing; the file is incomplete or of another model")
    wrong = [f"{k} {list(found[k])} instead of {list(s)}" for k, s in expected.items() if tuple(found[k]) != tuple(s)]
    if wrong:
        raise CheckpointError(f"{what}: shape of {_name_some(wrong)}; the file is of another model")


def _read_refine_mult(shapes: Shapes, unet: str, ch: int) -> tuple[int, ...]:
    outs = [shapes[f"{unet}.conv{i}.up_dim.weight"][0] // ch for i in (1, 2, 3)]
    return (shapes[f"{unet}.conv1.up_dim.weight"][1] // ch, *outs)


def count(shapes: Shapes, prefix: str) -> int:
    """How many numbered children a prefix has. Raises ValueError if it is too many for a network."""
    n = len(prefix) + 1
    return check_bound(len({k[n:].split(".", 1)[0] for k in shapes if k.startswith(prefix + ".")}), prefix)


def check_bound(number: int, what: str = "blocks") -> int:
    """The number itself. Raises ValueError if no network has so many."""
    if number > MOST_BLOCKS:
        raise ValueError(f"{number} {what}")
    return number


def reason(error: Exception) -> str:
    """What was wrong with a file's keys, as the middle of an error line."""
    return f"{error} is missing" if isinstance(error, KeyError) else one_line(error) or "its shapes"


def _name_some(items: Collection[str]) -> str:
    names = list(items)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
