"""The parts of a model in its files: networks' weights as views, first stages and decoders, and what lies beside."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..config import AutoencoderConfig, ModelConfig
from ..errors import CheckpointError
from ..networks.autoencoder import Autoencoder
from .detect import check, compute_shapes, find_role, naming, read_autoencoder_config, under
from .weight_reading import SUFFIXES, View, Weights

log = logging.getLogger(__name__)

#: What a decoder or first stage beside a network is called, in part.
DECODER_NAMES = ("vae", "decoder", "fcd", "vq")


@dataclass(frozen=True, eq=False)
class ModelFiles:
    """A model on disk: what it is, and its weights on demand. `notes` say what had to be assumed.

    Views read one tensor at a time. `converted` is the file itself if the model is one converted file. `licence`: what
    is known of that of released files.
    """

    config: ModelConfig
    experts: tuple[View, ...]
    decoder: View
    paths: tuple[Path, ...]
    notes: tuple[str, ...] = ()
    converted: Weights | None = field(default=None, repr=False)
    licence: str = ""


def find_autoencoder(weights: Weights, prefix: str) -> tuple[AutoencoderConfig, View]:
    """The autoencoder under a prefix of a file, and its weights. Raises CheckpointError if it is incomplete."""
    with naming(weights.path):
        config = read_autoencoder_config(under(weights.shapes(), prefix))
        expected = compute_shapes(Autoencoder, config)
    return config, make_view(weights, expected, prefix)


def describe_autoencoder(weights: Weights) -> str:
    """What an autoencoder's file is, for an error line."""
    config, _ = find_autoencoder(weights, "")
    if config.kind == "vq":
        return "a decoder alone" if config.refine else "a first stage alone"
    if config.refine:
        return "a decoder of Stable Diffusion 1.5 latents (KL f8)"
    return "a VAE of Stable Diffusion (KL f8)"


def list_fitting(
    candidates: Sequence[Weights], channels: int, named: Collection[Path], *, wanted: str
) -> list[tuple[AutoencoderConfig, View]]:
    """The VQ first stages among the candidates whose latents have so many channels.

    Raises CheckpointError for one that the user named (`named`) and does not fit; it says which is `wanted`.
    """
    fitting = []
    for weights in candidates:
        config, view = find_autoencoder(weights, "")
        if config.kind == "vq" and config.embed_dim == channels:
            fitting.append((config, view))
        elif weights.path in named:
            what = describe_autoencoder(weights)
            raise CheckpointError(f"{weights.path}: {what}, for other latents than these; give {wanted}")
    return fitting


def find_decoders(experts: Sequence[Weights]) -> list[Weights]:
    """Decoders in the folder of the stage files or one below; files that cannot be read are none of them."""
    folder = experts[0].path.parent
    names = [p for p in (*folder.glob("*"), *folder.glob("*/*")) if p.suffix.lower() in SUFFIXES]
    found = []
    for path in sorted(p for p in names if any(name in str(p.relative_to(folder)).lower() for name in DECODER_NAMES)):
        try:
            weights = Weights(path)
            if find_role(weights) == "autoencoder":
                found.append(weights)
        except CheckpointError as error:
            log.debug("%s", error)
    return found


def make_view(weights: Weights, expected: Mapping[str, tuple[int, ...]], prefix: str, part: str = "") -> View:
    """The tensors that a network expects, and only those. CheckpointError if some are missing or misshapen."""
    check(expected, under(weights.shapes(), prefix), f"{weights.path}{part}")
    return View(weights, {name: (prefix + name,) for name in expected})


def short_name(path: Path) -> str:
    """A file with its folder, to tell two of a name apart."""
    return f"{path.parent.name}/{path.name}"
