"""What a converted file says of itself in its safetensors header: config, sources, licence, notes."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from ..config import ModelConfig, SwinUNetConfig
from ..diffusion.process import PREDICTIONS
from ..errors import CheckpointError, MoESRError
from ..images.condition import RESIZES
from ..networks.swin_layers import MASKS
from .detect import HEADER
from .unknown_files import one_line
from .weight_reading import Weights

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


def make_header(
    config: ModelConfig, sources: Sequence[Source] = (), licence: str = "", notes: Sequence[str] = ()
) -> dict[str, str]:
    """Entries of a safetensors header; `read_model_config`, `read_sources` and `read_notes` read them."""
    entries = {"format": "pt", HEADER: json.dumps(config.to_dict())}
    if sources:
        entries[SOURCES] = json.dumps([vars(s) for s in sources])
    if licence:
        entries[LICENCE] = licence
    if notes:
        entries[NOTES] = json.dumps(list(notes))
    return entries


def read_model_config(weights: Weights) -> ModelConfig:
    """The config of a converted file. Raises CheckpointError for values of a wrong type or outside of all reason."""
    try:
        config = ModelConfig.from_dict(json.loads(weights.metadata[HEADER]))
        _check_types(config, ModelConfig(), "model")
        _check_values(config)
    except MoESRError as error:
        raise CheckpointError(f"{weights.path}: {str(error).removeprefix(f'{weights.path}: ')}") from error
    except (TypeError, AttributeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{weights.path}: its config is damaged ({one_line(error)}); convert it again") from error
    return config


def read_sources(weights: Weights) -> list[Source]:
    """The files that the model was converted from, as far as its header says it."""
    found = _read_list(weights, SOURCES)
    names = {f.name for f in fields(Source)}
    return [Source(**entry) for entry in found if isinstance(entry, dict) and set(entry) == names]


def read_notes(weights: Weights) -> list[str]:
    """What had to be assumed when the file was converted."""
    return [one_line(note, 400) for note in _read_list(weights, NOTES) if isinstance(note, str)]


def _read_list(weights: Weights, name: str) -> list[Any]:
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
        if not _is_of_kind(found, default):
            raise ValueError(f"{field.name} of {where} is {one_line(repr(found), 40)}")


def _is_of_kind(found: Any, default: Any) -> bool:
    if isinstance(default, tuple):
        return isinstance(found, tuple) and len(found) < MOST_BLOCKS and all(_is_of_kind(v, 1) for v in found)
    if isinstance(default, float):
        return type(found) in (int, float) and math.isfinite(found)
    if isinstance(default, (bool, str)):
        return type(found) is type(default)
    return type(found) is int and 0 <= found <= LARGEST


def _check_values(config: ModelConfig) -> None:
    """Raises ValueError for what no network and no process can be, or would take all memory to build."""
    unet, vae, process = config.unet, config.autoencoder, config.process
    swin = isinstance(unet, SwinUNetConfig)
    each = unet.num_res_blocks if isinstance(unet.num_res_blocks, tuple) else (unet.num_res_blocks,)
    blocks = (*each, *vae.blocks, vae.fusion_blocks, vae.filter_expansion, unet.swin_depth if swin else 0)
    attends = [m for i, m in enumerate(unet.channel_mult) if 2**i in unet.attention_downsamples]
    widths = [unet.swin_channels] if swin else [m * unet.model_channels for m in (*attends, *unet.channel_mult[-1:])]
    ranks = (() if isinstance(unet, SwinUNetConfig) else unet.adapter_ranks, vae.adapter_ranks)
    positive = (process.linear_start, process.kappa, process.power, process.min_noise_level, process.etas_end)
    rules = {
        "levels or stages": unet.channel_mult and vae.ch_mult and config.stages and len(vae.blocks) == len(vae.ch_mult)
        and (len(each) == len(unet.channel_mult) or not swin),
        "more blocks than any network has": max(blocks) <= MOST_BLOCKS,
        "widths of heads or groups": min(unet.num_head_channels, unet.norm_groups, vae.norm_groups) >= 1,
        "ranks of adapters": all(len(r) in (0, 2) and all(0 < n <= 1024 for n in r) for r in ranks)
        and 0 <= config.restored_fidelity <= 1,
        "channels of the cleaner": vae.cleaner_channels <= 1024,
        "the way LR images are resized": config.lr_resize in RESIZES,
        "kind or factor of the autoencoder": vae.kind in ("vq", "kl") and vae.scale_factor > 0,
        "kind of the process": process.kind in ("ddpm", "residual_shift") and process.predict in PREDICTIONS,
        "schedule of the process": min(positive) > 0
        and max(process.linear_start, process.linear_end, process.etas_end) <= 1,
        "timesteps": 0 < process.timesteps <= 100_000,
        "stages, scale or steps": 1 <= config.scale <= 64 and config.steps >= 1 and all(config.stages)
        and list(config.stages) == sorted(set(config.stages)) and max(config.stages, default=0) <= process.timesteps,
    }  # fmt: skip
    wrong = [what for what, right in rules.items() if not right]
    if wrong:
        raise ValueError(wrong[0])
    if any(width % unet.num_head_channels or not width for width in widths):
        raise ValueError(f"heads of {unet.num_head_channels} channels do not fit into the network")
    if isinstance(unet, SwinUNetConfig):
        if not 1 <= unet.window <= LARGEST_WINDOW or unet.latent_size < 1 or unet.multiple > LARGEST_MULTIPLE:
            raise ValueError("sizes of its windows")
        if unet.lr_downsamples > 6 or unet.shift_mask not in MASKS:
            raise ValueError("features or masks of its windows")
    elif unet.space_experts > 256:
        raise ValueError("more experts than any network has")
