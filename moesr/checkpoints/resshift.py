"""ResShift's published files: which schedule, scale and first stage belong to a network.

Several networks have the same keys and shapes, and none says how many timesteps it was trained on; two first stages
have the same keys too. So names of files count here, and whatever had to be taken from them is said.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..config import AutoencoderConfig, ModelConfig, ProcessConfig, SwinUNetConfig
from ..errors import CheckpointError, SettingError
from ..library.catalogue import CATALOGUE
from ..networks.swin_unet import SwinUNet
from .detect import compute_shapes, find_prefix, naming, under
from .model_parts import ModelFiles, find_decoders, list_fitting, make_view
from .swin import is_swin, read_swin_config, shift_mask
from .weight_reading import View, Weights

log = logging.getLogger(__name__)

#: Least noise of the published schedules, by their number of timesteps (ResShift, sections 1 and 6).
SCHEDULES = {4: 0.2, 15: 0.04}
_COMMON = 4
_CHOICES = "15 for realsr v1 and v2, 4 for all others"

F4, FACE_F4, FACE_F8 = "autoencoder_vq_f4.pth", "celeba256_vq_f4_dim3_face.pth", "ffhq512_vq_f8_dim8_face.pth"
_FIRST_STAGES = tuple(Path(name).stem for name in (F4, FACE_F4, FACE_F8))

LICENCE = "ResShift's own weights: S-Lab License 1.0, non-commercial use only."


def holds_swin(weights: Weights) -> bool:
    """Whether the network in a file is a Swin UNet."""
    return is_swin(under(weights.shapes(), find_prefix(weights)))


def find_network(weights: Weights) -> tuple[SwinUNetConfig, View]:
    """The Swin UNet in a file, and its weights. Raises CheckpointError if tensors are missing or misshapen."""
    prefix = find_prefix(weights)
    with naming(weights.path):
        config = read_swin_config(under(weights.shapes(), prefix))
        expected = compute_shapes(SwinUNet, config)
    view = make_view(weights, expected, prefix)
    return replace(config, shift_mask=shift_mask(weights, config, prefix)), view


def assemble(
    networks: Sequence[Weights], decoders: Sequence[Weights], named: set[Path], scale: int | None,
    timesteps: int | None, notes: Sequence[str],
) -> ModelFiles:  # fmt: skip
    """One network and its first stage as a model. `named` are the files that the user gave by name.

    scale is only held against what the shapes say. timesteps: 4 or 15; by default what the network's name says. Raises
    CheckpointError for several networks, and for a first stage that is not there, which it names; SettingError for
    timesteps that no published schedule has.
    """
    first = networks[0]
    if len(networks) > 1:
        some = ", ".join(w.path.name for w in networks)
        raise CheckpointError(f"{first.path.parent}: several models ({some}); give one of these files")
    unet, view = find_network(first)
    process, more = schedule(first.path, unet, timesteps)
    notes = [*notes, *more]
    vae, decoder, more = _choose_first_stage(first, unet, decoders or find_decoders([first]), named)
    notes += more
    if vae.factor % unet.detail:
        raise CheckpointError(f"{decoder.weights.path}: first stage of another model than {first.path.name}")
    own = vae.factor // unet.detail
    if scale not in (None, own):
        notes.append(f"asked for x{scale}, but by their shapes the files are x{own}")
    config = ModelConfig(
        unet=unet, autoencoder=vae, process=process, stages=(process.timesteps,), scale=own, steps=process.timesteps,
        lr_resize="torch", name=first.path.stem,
    )  # fmt: skip
    paths = (first.path, decoder.weights.path)
    return ModelFiles(config, (view,), decoder, paths, tuple(notes), licence=LICENCE)


def schedule(path: Path, unet: SwinUNetConfig, timesteps: int | None) -> tuple[ProcessConfig, list[str]]:
    """The process of a published network: `timesteps` if given, else by its name, else 4; and notes that say which.

    The weights do not tell. Raises SettingError for a number that no published schedule has.
    """
    named = read_named_timesteps(path)
    change = f"give timesteps, or a name with s15 or s4, to change it ({_CHOICES})"
    if timesteps is not None and named not in (None, timesteps):
        notes = [f"{timesteps} timesteps as asked for, though the name says {named}"]
    elif timesteps is not None:
        notes = []
    elif named is not None:
        notes = [f"{named} timesteps, by the name of {path.name}; its weights do not say"]
    elif unet.lr_downsamples:
        notes = [f"{_COMMON} timesteps, as every published network of this kind; {change}"]
    else:
        notes = [f"neither weights nor name of {path.name} say how many timesteps it has: assumed {_COMMON}; {change}"]
        log.warning("%s", notes[0])
    count = timesteps or named or _COMMON
    if count not in SCHEDULES:
        raise SettingError(f"timesteps {count}: no published ResShift model has so many; give {_CHOICES}")
    return ProcessConfig("residual_shift", count, "x0", min_noise_level=SCHEDULES[count]), notes


def read_named_timesteps(path: Path) -> int | None:
    """The timesteps that a published file's name stands for, or else its folder's: s15, s4, or the model's name."""
    for name in (path.stem.lower(), path.absolute().parent.name.lower()):
        steps = re.search(r"(?<![a-z0-9])s(\d{1,3})(?![a-z0-9])", name)
        if steps and int(steps[1]) in SCHEDULES:
            return int(steps[1])
        version = re.search(r"realsr.*?v([123])(?![0-9])", name)
        if version:
            return 4 if version[1] == "3" else 15
        if re.search(r"bicsr|bicx4|journal", name):
            return 4
    return None


def list_first_stages(path: Path, unet: SwinUNetConfig) -> tuple[str, ...]:
    """The published first stages that a network may have been trained on; several where its name does not tell."""
    if unet.out_channels != 3:
        return (FACE_F8,)
    name = f"{path.absolute().parent.name}/{path.stem}".lower()
    if not unet.mask or "imagenet" in name:
        return (F4,)
    return (FACE_F4,) if "face" in name else (F4, FACE_F4)


def _choose_first_stage(
    network: Weights, unet: SwinUNetConfig, candidates: Sequence[Weights], named: set[Path]
) -> tuple[AutoencoderConfig, View, list[str]]:
    """The first stage that the user named; else that of the published name; else the only one that is no other's."""
    wanted = list_first_stages(network.path, unet)
    stems = [Path(name).stem for name in wanted]
    fitting = list_fitting(candidates, unet.out_channels, named, wanted=wanted[0])
    chosen = [pair for pair in fitting if pair[1].weights.path in named]
    chosen = chosen or [pair for pair in fitting if pair[1].weights.path.stem in stems]
    beside = [pair for pair in chosen if pair[1].weights.path.parent == network.path.parent]
    chosen = beside if beside and len(chosen) > 1 else chosen
    if not chosen:
        plain = [pair for pair in fitting if not (pair[0].lr_fusion or pair[0].refine)]
        chosen = [pair for pair in plain if pair[1].weights.path.stem not in _FIRST_STAGES]
    if len(chosen) != 1:
        raise CheckpointError(f"{network.path}: {_describe_choice(chosen, wanted)}{_suggest_download(network.path)}")
    config, view = chosen[0]
    name = view.weights.path.name
    if view.weights.path.stem in stems and len(stems) == 1:
        return config, view, []
    return config, view, [f"first stage: {name} is used, by its shapes; published is {' or '.join(wanted)}"]


def _describe_choice(chosen: Sequence[tuple[AutoencoderConfig, View]], wanted: Sequence[str]) -> str:
    if chosen:
        names = ", ".join(view.weights.path.name for _, view in chosen)
        return f"several first stages fit ({names}); give one of them by name, beside the network"
    return f"its first stage is missing; put {' or '.join(wanted)} beside it, or give that file too"


def _suggest_download(path: Path) -> str:
    """Where to get a published model whole, if the file is one."""
    for entry in CATALOGUE.values():
        if path.name in (file.name for file in entry.files):
            return f" (python -m moesr download {entry.name} fetches both)"
    return ""
