"""A model's weights as its networks want them, whichever files they come from.

Two kinds: one converted safetensors file (`experts.<i>.*`, `first_stage_model.*`, config in the header), and the
release's stage files with a decoder beside them. Nothing is read before a network asks for it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..config import AutoencoderConfig, ModelConfig, UNetConfig, averaged, uniform_stages
from ..errors import CheckpointError, SettingError
from ..networks.autoencoder import Autoencoder
from ..networks.unet import UNet
from .detect import FIRST_STAGE, autoencoder_config, check, network_shapes, role, under
from .header import model_config, notes_of, to_header
from .reading import View, Weights
from .stages import in_order, stage_view
from .writing import Entry, write

log = logging.getLogger(__name__)

M = TypeVar("M", bound=nn.Module)

SUFFIXES = (".ckpt", ".pth", ".pt", ".safetensors")
#: What a decoder beside stage files is called, in part.
DECODER_NAMES = ("vae", "decoder", "fcd", "vq")
#: The release's MoESR files are x8 and LDM-SR is x4; neither says so.
SCALE_OF_MOESR, SCALE_OF_LDM = 8, 4


@dataclass(frozen=True, eq=False)
class ModelFiles:
    """A model on disk: what it is, and its weights on demand. `notes` say what had to be assumed.

    Views read one tensor at a time. `converted` is the file itself if the model is one converted file.
    """

    config: ModelConfig
    experts: tuple[View, ...]
    decoder: View
    paths: tuple[Path, ...]
    notes: tuple[str, ...] = ()
    converted: Weights | None = field(default=None, repr=False)

    def expert(self, i: int) -> View:
        """Weights of expert i, by the keys of `UNet`."""
        return self.experts[i]

    def autoencoder(self) -> View:
        """Weights of the decoder and its first stage, by the keys of `Autoencoder`."""
        return self.decoder


def open_model(source: Path | Sequence[Path], scale: int | None = None) -> ModelFiles:
    """The model in a converted file, in a folder of the release's files, or in a list of them; no weight is read yet.

    Every tensor that its networks need is there and has the right shape. scale: for files that do not say it. Raises
    CheckpointError for a file that is neither, and for parts that are missing or do not fit together.
    """
    given = [source] if isinstance(source, Path) else list(source)
    named = {p.absolute(): p for p in given if not p.is_dir()}
    found = {p.absolute(): p for folder in given if folder.is_dir() for p in _inside(folder)}
    roles = [(w, role(w)) for w in map(Weights, named.values())]
    strange: list[str] = []
    for w in [Weights(p) for place, p in found.items() if place not in named]:
        try:
            roles.append((w, role(w)))
        except CheckpointError as error:  # of another network; what cannot be read at all is no reason to go on
            strange.append(str(error))
    if not roles:
        raise CheckpointError(strange[0])
    # Notes go into converted files: they do not say where things are on this machine.
    notes = [f"left out: {line.removeprefix(f'{given[0]}{os.sep}')}" for line in strange]
    whole = [w for w, kind in roles if kind == "model"]
    if len(whole) > 1 or (whole and len(named) > 1):
        some = ", ".join(w.path.name for w in whole)
        raise CheckpointError(f"{given[0]}: {some} is a whole model already; give one such file alone")
    if not whole:
        return _released(given[0], roles, scale, notes, set(named.values()))
    others = [w.path.name for w, kind in roles if kind != "model"]
    notes += [f"left out beside the converted model: {', '.join(others)}"] if others else []
    model = _converted(whole[0], notes)
    if scale in (None, model.config.scale):
        return model
    return replace(model, notes=(*model.notes, f"asked for x{scale}, but the file says x{model.config.scale}"))


def open_autoencoder(path: Path) -> tuple[AutoencoderConfig, View]:
    """The decoder or first stage in a file of its own (VQ f4, KL f8; with or without fusion and refinement).

    Raises CheckpointError if the file is none, or incomplete.
    """
    weights = Weights(path)
    if role(weights) != "autoencoder":
        raise CheckpointError(f"{path}: no decoder by itself; give fa_vae.pth")
    return _autoencoder(weights, "")


def build(
    kind: Callable[..., M],
    config: object,
    state: Mapping[str, Tensor],
    dtype: torch.dtype,
    device: torch.device,
    what: str,
) -> M:
    """A network in eval mode that holds exactly these weights, in `dtype` on `device`.

    The network never exists with random weights, and tensors that need no conversion stay mapped to their file. Raises
    CheckpointError, naming them, if keys or shapes differ from the network's.
    """
    with torch.device("meta"):
        network = kind(config)
    expected = {k: tuple(v.shape) for k, v in network.state_dict().items()}
    check(expected, state.shapes() if isinstance(state, View) else {k: tuple(v.shape) for k, v in state.items()}, what)
    ready = {k: _cast(state[k], dtype).to(device) for k in expected}
    network.load_state_dict(ready, assign=True)
    return network.eval().requires_grad_(False)


def save_model(
    path: Path, config: ModelConfig, experts: Sequence[Mapping[str, Tensor]], autoencoder: Mapping[str, Tensor], dtype:
    torch.dtype, metadata: dict[str, str] | None = None,
) -> None:  # fmt: skip
    """One converted file: averaged experts, decoder, config in the header. It appears whole or not at all."""
    entries = [
        Entry(prefix + k, v.shape, dtype if v.is_floating_point() else v.dtype, lambda v=v: v)
        for prefix, state in ((*((f"experts.{i}.", e) for i, e in enumerate(experts)), (FIRST_STAGE, autoencoder)))
        for k, v in state.items()
    ]
    write(path, entries, {**to_header(config), **(metadata or {})})


def _inside(folder: Path) -> list[Path]:
    """The checkpoints in a folder and below, in order of name."""
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not found:
        raise CheckpointError(f"{folder}: no checkpoint there; give a file, or a folder with stage files and a decoder")
    return found


def _converted(weights: Weights, notes: Sequence[str]) -> ModelFiles:
    config = model_config(weights)
    count = len(config.stages)
    if any(k.startswith(f"experts.{count}.") for k in weights):
        raise CheckpointError(f"{weights.path}: more experts than the {count} stages of its config; convert it again")
    unet, vae = _expected(UNet, config.unet, weights), _expected(Autoencoder, config.autoencoder, weights)
    experts = [_view(weights, unet, f"experts.{i}.", f": expert {i}") for i in range(count)]
    decoder = _view(weights, vae, FIRST_STAGE, ": decoder")
    return ModelFiles(config, tuple(experts), decoder, (weights.path,), (*notes_of(weights), *notes), weights)


def _released(
    where: Path, roles: Sequence[tuple[Weights, str]], scale: int | None, notes: list[str], named: set[Path]
) -> ModelFiles:
    """The release's files as one model; `named` are the files that the user gave by name, which must all fit."""
    experts = [w for w, kind in roles if kind == "expert"]
    decoders = [w for w, kind in roles if kind == "autoencoder"]
    if not experts:
        what = _decoder_alone(decoders[0]) if decoders else "no stage files there"
        raise CheckpointError(f"{where}: {what}; give the stage files model_stage0 to 3.ckpt too")
    experts, order = in_order(experts)
    notes += order
    views, unet = [], None
    for w in experts:
        found, view, more = stage_view(w)
        notes += more
        views.append(view)
        if unet is not None and averaged(found) != averaged(unet):
            raise CheckpointError(
                f"{w.path}: {_widths(found)}, but {experts[0].path.name} has {_widths(unet)}; give files of one model"
            )
        unet = unet or found
    assert unet is not None
    if not decoders:
        decoders = _beside(experts)
        notes += [f"decoder found beside the stage files: {w.path.name}" for w in decoders[:1]]
    config, decoder, more = _choose_decoder(decoders, unet, experts, named)
    notes += more
    if scale is None:
        scale = SCALE_OF_MOESR if unet.space_experts else SCALE_OF_LDM
        notes.append(f"the files do not say their scale: assumed x{scale}; give scale to change it")
    elif not 1 <= scale <= 64:
        raise SettingError(f"scale {scale}: no model has it; give that of the files, 4 or 8")
    model = ModelConfig(
        unet=averaged(unet),
        autoencoder=config,
        stages=uniform_stages(1000, len(experts)),
        scale=scale,
        name=experts[0].path.stem if len(experts) == 1 else experts[0].path.parent.name,
    )
    for note in notes:
        log.info("%s: %s", where, note)
    paths = [w.path for w in experts] + ([decoder.weights.path] if decoder.weights is not experts[0] else [])
    return ModelFiles(model, tuple(views), decoder, tuple(paths), tuple(notes))


def _choose_decoder(
    candidates: Sequence[Weights], unet: UNetConfig, experts: Sequence[Weights], named: set[Path]
) -> tuple[AutoencoderConfig, View, list[str]]:
    """The decoder that fits the experts' latents: the fullest of the candidates, else the first stage inside."""
    fitting = []
    for w in candidates:
        config, view = _autoencoder(w, "")
        if config.kind == "vq" and config.embed_dim == unet.out_channels:
            fitting.append((config, view))
        elif w.path in named:
            raise CheckpointError(f"{w.path}: {_decoder_alone(w)}, for other latents than these; give vq-f4/fa_vae.pth")
    if fitting:
        fitting.sort(key=lambda pair: pair[0].lr_fusion + pair[0].refine, reverse=True)
        config, view = fitting[0]
        others = ", ".join(_short(v.weights.path) for _, v in fitting[1:])
        notes = [f"several decoders: {_short(view.weights.path)} is used, not {others}"] if others else []
        if not (config.lr_fusion or config.refine):
            notes.append(f"{view.weights.path.name} is a plain first stage, not a frequency-compensated decoder")
        return config, view, notes
    first = experts[0]
    if not any(k.startswith(FIRST_STAGE) for k in first):
        raise CheckpointError(f"{first.path}: no decoder in it nor beside it; give vq-f4/fa_vae.pth too")
    config, view = _autoencoder(first, FIRST_STAGE)
    return config, view, ["no frequency-compensated decoder among the files: the plain first stage decodes"]


def _autoencoder(weights: Weights, prefix: str) -> tuple[AutoencoderConfig, View]:
    try:
        config = autoencoder_config(under(weights.shapes(), prefix))
    except CheckpointError as error:
        raise CheckpointError(f"{weights.path}: {error}") from error
    return config, _view(weights, _expected(Autoencoder, config, weights), prefix)


def _decoder_alone(weights: Weights) -> str:
    config, _ = _autoencoder(weights, "")
    if config.kind == "vq":
        return "a decoder alone" if config.refine else "a first stage alone"
    if config.refine:
        return "a decoder of Stable Diffusion 1.5 latents (KL f8)"
    return "a VAE of Stable Diffusion (KL f8)"


def _beside(experts: Sequence[Weights]) -> list[Weights]:
    """Decoders in the folder of the stage files or one below; files that cannot be read are none of them."""
    folder = experts[0].path.parent
    names = [p for p in (*folder.glob("*"), *folder.glob("*/*")) if p.suffix.lower() in SUFFIXES]
    found = []
    for path in sorted(p for p in names if any(name in str(p.relative_to(folder)).lower() for name in DECODER_NAMES)):
        try:
            weights = Weights(path)
            if role(weights) == "autoencoder":
                found.append(weights)
        except CheckpointError as error:
            log.debug("%s", error)
    return found


def _expected(kind: Callable[..., nn.Module], config: object, weights: Weights) -> dict[str, tuple[int, ...]]:
    try:
        return network_shapes(kind, config)
    except CheckpointError as error:
        raise CheckpointError(f"{weights.path}: {error}") from error


def _view(weights: Weights, expected: Mapping[str, tuple[int, ...]], prefix: str, part: str = "") -> View:
    """The tensors that a network expects, and only those. CheckpointError if some are missing or misshapen."""
    check(expected, under(weights.shapes(), prefix), f"{weights.path}{part}")
    return View(weights, {name: (prefix + name,) for name in expected})


def _short(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def _widths(config: UNetConfig) -> str:
    moe = "Space MoE" if config.space_experts else "no Space MoE"
    return f"{config.model_channels} channels x {list(config.channel_mult)} with {moe}"


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
