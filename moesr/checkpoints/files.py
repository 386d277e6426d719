"""A model's weights as its networks want them, whichever files they come from.

Two kinds: one converted safetensors file (`experts.<i>.*`, `first_stage_model.*`, config in the header), and the
release's stage files with a decoder beside them. Nothing is read before a network asks for it.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..config import AutoencoderConfig, ModelConfig, UNetConfig, uniform_stages
from ..errors import CheckpointError
from ..networks.space_moe import average_experts
from .detect import EMA, FIRST_STAGE, UNET, autoencoder_config, check, under, unet_config
from .reading import Weights

log = logging.getLogger(__name__)

M = TypeVar("M", bound=nn.Module)

#: Where a converted file keeps its config, in JSON.
HEADER = "moesr"
SCALE_OF_RELEASE = 8


@dataclass(frozen=True)
class ModelFiles:
    """A model on disk: what it is, and its weights on demand. `notes` say what had to be assumed."""

    config: ModelConfig
    expert: Callable[[int], dict[str, Tensor]]
    autoencoder: Callable[[], dict[str, Tensor]]
    paths: tuple[Path, ...]
    notes: tuple[str, ...] = ()


def open_model(source: Path | Sequence[Path], scale: int | None = None) -> ModelFiles:
    """The model in a converted file, in a folder of the release's files, or in a list of them.

    scale: for files that do not say it. Raises CheckpointError for a file that is neither, or for parts that are
    missing.
    """
    if isinstance(source, Path) and source.is_file():
        weights = Weights(source)
        if HEADER in weights.metadata:
            return _converted(weights)
        source = [source]
    if isinstance(source, Path):
        suffixes = (".ckpt", ".pth", ".pt", ".safetensors")
        found = sorted(p for p in source.rglob("*") if p.suffix in suffixes) if source.is_dir() else []
        if not found:
            raise CheckpointError(
                f"{source}: no checkpoint there; give a file, or a folder with stage files and a decoder"
            )
        source = found
    return _release(list(source), scale)


def build(
    kind: Callable[..., M],
    config: object,
    state: dict[str, Tensor],
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
    check(expected, {k: tuple(v.shape) for k, v in state.items()}, what)
    ready = {k: _cast(state[k], dtype).to(device) for k in expected}
    network.load_state_dict(ready, assign=True)
    return network.eval().requires_grad_(False)


def save_model(
    path: Path, config: ModelConfig, experts: Sequence[dict[str, Tensor]], autoencoder: dict[str, Tensor], dtype:
    torch.dtype, metadata: dict[str, str] | None = None,
) -> None:  # fmt: skip
    """One converted file: averaged experts, decoder, config in the header. It appears whole or not at all."""
    tensors: dict[str, Tensor] = {}
    for i, expert in enumerate(experts):
        tensors |= {f"experts.{i}.{k}": _cast(v, dtype).contiguous() for k, v in expert.items()}
    tensors |= {FIRST_STAGE + k: _cast(v, dtype).contiguous() for k, v in autoencoder.items()}
    partial = path.with_name(f".{path.name}.partial")
    try:
        save_file(tensors, partial, {HEADER: json.dumps(config.to_dict()), **(metadata or {})})
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _converted(weights: Weights) -> ModelFiles:
    values = weights.header(HEADER)
    if values is None:
        raise CheckpointError(f"{weights.path}: its header has no config; convert the model again")
    config = ModelConfig.from_dict(values)

    def expert(i: int) -> dict[str, Tensor]:
        return _below(weights, f"experts.{i}.")

    return ModelFiles(config, expert, lambda: _below(weights, FIRST_STAGE), (weights.path,))


def _release(paths: list[Path], scale: int | None) -> ModelFiles:
    opened = [Weights(p) for p in paths]
    experts = [w for w in opened if f"{UNET}out.2.weight" in w or "out.2.weight" in w]
    decoders = [w for w in opened if "decoder.conv_out.weight" in w]
    if not experts:
        raise CheckpointError(
            f"{paths[0]}: no UNet of MoESR or LDM-SR in it; give the stage files model_stage0..3.ckpt"
        )
    experts, notes = _in_order(experts)
    unet = _unet_of(experts[0])
    if decoders:
        autoencoder = autoencoder_config(decoders[0].shapes())
    else:
        autoencoder = autoencoder_config(under(experts[0].shapes(), FIRST_STAGE))
        notes.append("no frequency-compensated decoder among the files: the plain first stage decodes")
    if scale is None:
        scale = SCALE_OF_RELEASE
        notes.append(f"the files do not say their scale: assumed x{scale}; give scale to change it")
    config = ModelConfig(
        unet=replace(unet, space_experts=min(unet.space_experts, 1)),
        autoencoder=autoencoder,
        stages=uniform_stages(1000, len(experts)),
        scale=scale,
        name=paths[0].parent.name,
    )

    def decoder() -> dict[str, Tensor]:
        return dict(decoders[0]) if decoders else _below(experts[0], FIRST_STAGE)

    for note in notes:
        log.info("%s: %s", paths[0].parent, note)
    return ModelFiles(config, lambda i: stage_weights(experts[i]), decoder, tuple(paths), tuple(notes))


def stage_weights(weights: Weights) -> dict[str, Tensor]:
    """The UNet of one stage file: its EMA copy if all of that is there, FFN experts averaged."""
    prefix = UNET if f"{UNET}out.2.weight" in weights else ""
    names = [k[len(prefix) :] for k in weights if k.startswith(prefix) and not k.startswith((EMA, FIRST_STAGE))]
    names = [
        k for k in names if k.split(".")[0] in ("time_embed", "input_blocks", "middle_block", "output_blocks", "out")
    ]
    average = {k: f"{EMA}diffusion_model{k.replace('.', '')}" for k in names}
    if all(key in weights for key in average.values()):
        return average_experts({k: weights[key] for k, key in average.items()})
    return average_experts({k: weights[prefix + k] for k in names})


def _unet_of(weights: Weights) -> UNetConfig:
    shapes = weights.shapes()
    return unet_config(under(shapes, UNET) if f"{UNET}out.2.weight" in shapes else shapes)


def _in_order(experts: list[Weights]) -> tuple[list[Weights], list[str]]:
    """Stage files from least to most noise: by the number in their names, else as given."""
    if len(experts) == 1:
        return experts, ["one stage file: it works at all timesteps"]
    numbers = [re.findall(r"\d+", w.path.stem) for w in experts]
    last = [int(n[-1]) if n else -1 for n in numbers]
    if sorted(last) == list(range(len(experts))):
        return [w for _, w in sorted(zip(last, experts), key=lambda pair: pair[0])], []
    return experts, ["stage files are not numbered 0, 1, ...: taken in the given order, the first for the least noise"]


def _below(weights: Weights, prefix: str) -> dict[str, Tensor]:
    return {k[len(prefix) :]: weights[k] for k in weights if k.startswith(prefix)}


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def plain_autoencoder(config: AutoencoderConfig) -> AutoencoderConfig:
    """The same first stage without fusion and refinement."""
    return replace(config, lr_fusion=False, refine=False)
