"""A model's weights as its networks want them, whichever files they come from.

Three kinds: one converted safetensors file (`experts.<i>.*`, `first_stage_model.*`, config in the header); the
release's stage files with a decoder beside them; and a network of ResShift with its first stage. Nothing is read before
a network asks for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..config import AutoencoderConfig, ModelConfig, UNetConfig, averaged, uniform_stages
from ..errors import CheckpointError, SettingError
from ..networks.autoencoder import Autoencoder
from ..networks.denoiser import denoiser
from .detect import FIRST_STAGE, check, compute_shapes, find_role, naming
from .device_upload import copy_to_device
from .header import make_header, read_model_config, read_notes
from .model_parts import (
    ModelFiles,
    describe_autoencoder,
    find_autoencoder,
    find_decoders,
    list_fitting,
    make_view,
    short_name,
)
from .resshift import assemble, holds_swin
from .stage_files import open_stage, sort_stages
from .weight_reading import SUFFIXES, View, Weights
from .weight_writing import Entry, write

M = TypeVar("M", bound=nn.Module)

#: The release's MoESR files are x8 and LDM-SR is x4; neither says so.
SCALE_OF_MOESR, SCALE_OF_LDM = 8, 4


def open_model(source: Path | Sequence[Path], scale: int | None = None, timesteps: int | None = None) -> ModelFiles:
    """The model in a converted file, in a folder of the release's files, or in a list of them; no weight is read yet.

    Every tensor that its networks need is there and has the right shape. scale: for files that do not say it;
    timesteps: for those of ResShift, which do not say them. Raises CheckpointError for a file that is neither, and for
    parts that are missing or do not fit together; SettingError for timesteps that cannot be.
    """
    given = [source] if isinstance(source, Path) else list(source)
    named = {p.absolute(): p for p in given if not p.is_dir()}
    found = {p.absolute(): p for folder in given if folder.is_dir() for p in _list_checkpoints(folder)}
    roles = [(w, find_role(w)) for w in map(Weights, named.values())]
    strange: list[str] = []
    for w in [Weights(p) for place, p in found.items() if place not in named]:
        try:
            roles.append((w, find_role(w)))
        except CheckpointError as error:  # of another network; what cannot be read at all is no reason to go on
            strange.append(str(error))
    if not roles:
        raise CheckpointError(strange[0])
    # Notes go into converted files: they do not say where things are on this machine.
    notes = [f"left out: {line.removeprefix(f'{given[0]}{os.sep}')}" for line in strange]
    bare = [w.path.name for w, _ in roles if w.is_safetensors and not w.metadata]
    notes += [f"no metadata in the header of {', '.join(bare)}: what it is follows from its keys"] if bare else []
    whole = [w for w, kind in roles if kind == "model"]
    if len(whole) > 1 or (whole and len(named) > 1):
        some = ", ".join(w.path.name for w in whole)
        raise CheckpointError(f"{given[0]}: {some} is a whole model already; give one such file alone")
    if not whole:
        return _open_released(given[0], roles, scale, timesteps, notes, set(named.values()))
    others = [w.path.name for w, kind in roles if kind != "model"]
    notes += [f"left out beside the converted model: {', '.join(others)}"] if others else []
    model = _open_converted(whole[0], notes)
    asked = []
    if scale not in (None, model.config.scale):
        asked.append(f"asked for x{scale}, but the file says x{model.config.scale}")
    own = model.config.process.timesteps
    if timesteps not in (None, own):
        asked.append(f"asked for {timesteps} timesteps, but the file says {own}")
    return replace(model, notes=(*model.notes, *asked)) if asked else model


def open_autoencoder(path: Path) -> tuple[AutoencoderConfig, View]:
    """The decoder or first stage in a file of its own (VQ f4, KL f8; with or without fusion and refinement).

    Raises CheckpointError if the file is none, or incomplete.
    """
    weights = Weights(path)
    if find_role(weights) != "autoencoder":
        raise CheckpointError(f"{path}: no decoder by itself; give fa_vae.pth")
    return find_autoencoder(weights, "")


def build(
    kind: Callable[..., M], config: object, state: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device,
    what: str,
) -> M:  # fmt: skip
    """A network in eval mode that holds exactly these weights, in `dtype` on `device`.

    The network never exists with random weights, and tensors that need no conversion stay mapped to their file. Raises
    CheckpointError, naming them, if keys or shapes differ from the network's.
    """
    with torch.device("meta"):
        network = kind(config)
    expected = {k: tuple(v.shape) for k, v in network.state_dict().items()}
    check(expected, state.shapes() if isinstance(state, View) else {k: tuple(v.shape) for k, v in state.items()}, what)
    network.load_state_dict(copy_to_device(state, expected, dtype, device), assign=True)
    return network.eval().requires_grad_(False)


def save_model(
    path: Path, config: ModelConfig, experts: Sequence[Mapping[str, Tensor]], autoencoder: Mapping[str, Tensor], dtype:
    torch.dtype, metadata: Mapping[str, str] | None = None,
) -> None:  # fmt: skip
    """One converted file: averaged experts, decoder, config in the header. It appears whole or not at all."""
    entries = [
        Entry(prefix + k, v.shape, dtype if v.is_floating_point() else v.dtype, lambda v=v: v)
        for prefix, state in ((*((f"experts.{i}.", e) for i, e in enumerate(experts)), (FIRST_STAGE, autoencoder)))
        for k, v in state.items()
    ]
    write(path, entries, {**make_header(config), **(metadata or {})})


def _list_checkpoints(folder: Path) -> list[Path]:
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not found:
        raise CheckpointError(f"{folder}: no checkpoint there; give a file, or a folder with stage files and a decoder")
    return found


def _open_converted(weights: Weights, notes: Sequence[str]) -> ModelFiles:
    config = read_model_config(weights)
    count = len(config.stages)
    if any(k.startswith(f"experts.{count}.") for k in weights):
        raise CheckpointError(f"{weights.path}: more experts than the {count} stages of its config; convert it again")
    with naming(weights.path):
        unet, vae = compute_shapes(denoiser, config.unet), compute_shapes(Autoencoder, config.autoencoder)
    experts = [make_view(weights, unet, f"experts.{i}.", f": expert {i}") for i in range(count)]
    decoder = make_view(weights, vae, FIRST_STAGE, ": decoder")
    return ModelFiles(config, tuple(experts), decoder, (weights.path,), (*read_notes(weights), *notes), weights)


def _open_released(
    where: Path, roles: Sequence[tuple[Weights, str]], scale: int | None, timesteps: int | None, notes: list[str],
    named: set[Path],
) -> ModelFiles:  # fmt: skip
    """The release's files as one model; `named` are the files that the user gave by name, which must all fit."""
    experts = [w for w, kind in roles if kind == "expert"]
    decoders = [w for w, kind in roles if kind == "autoencoder"]
    if not experts:
        what = describe_autoencoder(decoders[0]) if decoders else "no stage files there"
        raise CheckpointError(f"{where}: {what}; give the stage files model_stage0 to 3.ckpt, or ResShift's, too")
    if scale is not None and not 1 <= scale <= 64:
        raise SettingError(f"scale {scale}: no model has it; give that of the files, 4 or 8")
    swin = [holds_swin(w) for w in experts]
    if all(swin):
        return assemble(experts, decoders, named, scale, timesteps, notes)
    if any(swin):
        some = ", ".join(w.path.name for w in experts)
        raise CheckpointError(f"{where}: networks of different methods ({some}); give the files of one model")
    if timesteps not in (None, 1000):
        raise SettingError(f"timesteps {timesteps}: these files have 1000; the choice is for files of ResShift")
    experts, order = sort_stages(experts)
    notes += order
    views, unet = [], None
    for w in experts:
        found, view, more = open_stage(w)
        notes += more
        views.append(view)
        if unet is not None and averaged(found) != averaged(unet):
            raise CheckpointError(
                f"{w.path}: {_describe(found)}, but {experts[0].path.name} has {_describe(unet)}; give one model"
            )
        unet = unet or found
    assert unet is not None
    if not decoders:
        decoders = find_decoders(experts)
        notes += [f"decoder found beside the stage files: {w.path.name}" for w in decoders[:1]]
    config, decoder, more = _choose_decoder(decoders, unet, experts, named)
    notes += more
    if scale is None:
        scale = SCALE_OF_MOESR if unet.space_experts else SCALE_OF_LDM
        notes.append(f"the files do not say their scale: assumed x{scale}; give scale to change it")
    model = ModelConfig(
        unet=averaged(unet),
        autoencoder=config,
        stages=uniform_stages(1000, len(experts)),
        scale=scale,
        name=experts[0].path.stem if len(experts) == 1 else experts[0].path.parent.name,
    )
    paths = [w.path for w in experts] + ([decoder.weights.path] if decoder.weights is not experts[0] else [])
    return ModelFiles(model, tuple(views), decoder, tuple(paths), tuple(notes))


def _choose_decoder(
    candidates: Sequence[Weights], unet: UNetConfig, experts: Sequence[Weights], named: set[Path]
) -> tuple[AutoencoderConfig, View, list[str]]:
    """The decoder that fits the experts' latents: the fullest of the candidates, else the first stage inside."""
    fitting = list_fitting(candidates, unet.out_channels, named, wanted="vq-f4/fa_vae.pth")
    if fitting:
        fitting.sort(key=lambda pair: pair[0].lr_fusion + pair[0].refine, reverse=True)
        config, view = fitting[0]
        others = ", ".join(short_name(v.weights.path) for _, v in fitting[1:])
        notes = [f"several decoders: {short_name(view.weights.path)} is used, not {others}"] if others else []
        if not (config.lr_fusion or config.refine):
            notes.append(f"{view.weights.path.name} is a plain first stage, not a frequency-compensated decoder")
        return config, view, notes
    first = experts[0]
    if not any(k.startswith(FIRST_STAGE) for k in first):
        raise CheckpointError(f"{first.path}: no decoder in it nor beside it; give vq-f4/fa_vae.pth too")
    config, view = find_autoencoder(first, FIRST_STAGE)
    return config, view, ["no frequency-compensated decoder among the files: the plain first stage decodes"]


def _describe(config: UNetConfig) -> str:
    moe = "Space MoE" if config.space_experts else "no Space MoE"
    return f"{config.model_channels} channels x {list(config.channel_mult)} with {moe}"
