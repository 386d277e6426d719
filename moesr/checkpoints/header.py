"""What a converted file says of itself in its safetensors header: config, sources, licence, notes."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from ..config import ModelConfig, SwinUNetConfig, UNetConfig
from ..diffusion.process import PREDICTIONS
from ..errors import CheckpointError, MoESRError
from ..images.condition import RESIZES
from ..networks.swin import MASKS
from .detect import HEADER
from .reading import Weights
from .wrong import one_line

SOURCES = "moesr.sources"
LICENCE = "moesr.licence"
NOTES = "moesr.notes"

LICENCE_NOTE = (
    "These weights were converted, not trained, by this program: the licence of the source files goes on to apply to "
    "them. Ask for it where they came from before any use that is not private or academic."
)

#: No number in a config is larger: above it, building the network would be the attack.
LARGEST = 2**20
MOST_BLOCKS = 32
LARGEST_WINDOW, LARGEST_MULTIPLE = 64, 1024


@dataclass(frozen=True)
class Source:
    """A file that a model was converted from."""

    name: str
    size: int
    sha256: str


def to_header(
    config: ModelConfig, sources: Sequence[Source] = (), licence: str = "", notes: Sequence[str] = ()
) -> dict[str, str]:
    """Entries of a safetensors header; `model_config`, `sources_of` and `notes_of` read them."""
    entries = {"format": "pt", HEADER: json.dumps(config.to_dict())}
    if sources:
        entries[SOURCES] = json.dumps([vars(s) for s in sources])
    if licence:
        entries[LICENCE] = licence
    if notes:
        entries[NOTES] = json.dumps(list(notes))
    return entries


def model_config(weights: Weights) -> ModelConfig:
    """The config of a converted file. Raises CheckpointError for values of a wrong type or outside of all reason."""
    try:
        values = weights.header(HEADER)
        if values is None:
            raise CheckpointError("its header has no config; convert the model again")
        config = ModelConfig.from_dict(values)
        _check_types(config, ModelConfig(), "model")
        _check_values(config)
    except MoESRError as error:
        raise CheckpointError(f"{weights.path}: {str(error).removeprefix(f'{weights.path}: ')}") from error
    except (TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{weights.path}: its config is damaged ({one_line(error)}); convert it again") from error
    return config


def sources_of(weights: Weights) -> list[Source]:
    """The files that the model was converted from, as far as its header says it."""
    found = _json(weights, SOURCES)
    names = {f.name for f in fields(Source)}
    return [Source(**entry) for entry in found if isinstance(entry, dict) and set(entry) == names]


def notes_of(weights: Weights) -> list[str]:
    """What had to be assumed when the file was converted."""
    return [one_line(note, 400) for note in _json(weights, NOTES) if isinstance(note, str)]


def _json(weights: Weights, name: str) -> list[Any]:
    try:
        found = json.loads(weights.metadata.get(name, "[]"))
    except (ValueError, RecursionError):
        return []  # of no use for upscaling, so no reason to refuse the model
    return found if isinstance(found, list) else []


def _check_types(value: Any, like: Any, where: str) -> None:
    """Every value has the type of its default. Raises ValueError naming the first that has not."""
    for field in fields(like):
        found, default = getattr(value, field.name), getattr(like, field.name)
        if is_dataclass(default):
            # There is more than one kind of network: each is held against its own defaults.
            _check_types(found, type(found)() if is_dataclass(found) else default, field.name)
            continue
        default = (1,) if isinstance(found, tuple) and "tuple" in str(field.type) else default
        if not _of_kind(found, default):
            raise ValueError(f"{field.name} of {where} is {one_line(repr(found), 40)}")


def _of_kind(found: Any, default: Any) -> bool:
    if isinstance(default, tuple):
        return isinstance(found, tuple) and len(found) < MOST_BLOCKS and all(_of_kind(v, 1) for v in found)
    if isinstance(default, float):
        return type(found) in (int, float) and math.isfinite(found)
    if isinstance(default, (bool, str)):
        return type(found) is type(default)
    return type(found) is int and 0 <= found <= LARGEST


def _check_values(config: ModelConfig) -> None:
    unet, vae, process = config.unet, config.autoencoder, config.process
    if not all((unet.channel_mult, vae.ch_mult, config.stages)) or len(vae.blocks) != len(vae.ch_mult):
        raise ValueError("levels or stages")
    if max(*vae.blocks, vae.fusion_blocks, vae.filter_expansion) > MOST_BLOCKS:
        raise ValueError("more blocks than any network has")
    if min(unet.num_head_channels, unet.norm_groups, vae.norm_groups) < 1:
        raise ValueError("widths of heads or groups")
    if isinstance(unet, SwinUNetConfig):
        _check_swin(unet)
    else:
        _check_unet(unet)
    if config.lr_resize not in RESIZES:
        raise ValueError("the way LR images are resized")
    if vae.kind not in ("vq", "kl") or not vae.scale_factor > 0:
        raise ValueError("kind or factor of the autoencoder")
    if process.kind not in ("ddpm", "residual_shift") or process.predict not in PREDICTIONS:
        raise ValueError("kind of the process")
    positive = (process.linear_start, process.kappa, process.power, process.min_noise_level, process.etas_end)
    if min(positive) <= 0 or max(process.linear_start, process.linear_end, process.etas_end) > 1:
        raise ValueError("schedule of the process")
    if not 0 < process.timesteps <= 100_000 or list(config.stages) != sorted({0, *config.stages})[1:]:
        raise ValueError("timesteps or stages")
    if config.stages[-1] > process.timesteps or not 1 <= config.scale <= 64 or config.steps < 1:
        raise ValueError("stages, scale or steps")


def _check_unet(unet: UNetConfig) -> None:
    if unet.num_res_blocks > MOST_BLOCKS or unet.space_experts > 256:
        raise ValueError("more blocks than any network has")
    attends = [m for i, m in enumerate(unet.channel_mult) if 2**i in unet.attention_downsamples]
    if any(m * unet.model_channels % unet.num_head_channels for m in (*attends, unet.channel_mult[-1])):
        raise ValueError(f"heads of {unet.num_head_channels} channels do not fit into the network")


def _check_swin(unet: SwinUNetConfig) -> None:
    if len(unet.num_res_blocks) != len(unet.channel_mult):
        raise ValueError("blocks of its levels")
    if max(*unet.num_res_blocks, unet.swin_depth) > MOST_BLOCKS or unet.lr_downsamples > 6:
        raise ValueError("more blocks than any network has")
    if unet.swin_channels % unet.num_head_channels or not unet.swin_channels:
        raise ValueError(f"heads of {unet.num_head_channels} channels do not fit into the network")
    sizes = min(unet.window, unet.latent_size)
    if sizes < 1 or unet.window > LARGEST_WINDOW or unet.multiple > LARGEST_MULTIPLE:
        raise ValueError("sizes of its windows")
    if unet.shift_mask not in MASKS:
        raise ValueError("mask of its shifted windows")
