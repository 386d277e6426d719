"""A model whose networks a host keeps: opened from the library, with the memory that a run of it needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import cast

import torch
from torch import nn

from ..checkpoints.model_files import open_model
from ..errors import SettingError
from ..model import DTYPES, Parts, SRModel
from ..networks.autoencoder import Autoencoder
from ..sd15_decoder import DecoderParts, LatentDecoder, open_decoder
from ..tiling import LARGEST_TILE, estimate_tile_memory
from .networks import Keeper, Networks, NetworkSource, NetworkView


class HostedModel:
    """A super-resolution model, or a decoder of Stable Diffusion 1.5 latents alone, in a host's memory manager."""

    def __init__(self, name: str, networks: Networks, parts: Parts | DecoderParts, dtype: torch.dtype) -> None:
        #: Its name in the library.
        self.name = name
        self.networks = networks
        #: Its files.
        self.parts = parts
        self._dtype = dtype
        self._config = parts.files.config.autoencoder if isinstance(parts, Parts) else parts.config

    def assemble(self) -> SRModel:
        """The super-resolution model, whose runs ask the networks. Raises SettingError if there is only a decoder."""
        if isinstance(self.parts, DecoderParts):
            raise SettingError(
                f"model: {self.name} is a decoder of Stable Diffusion 1.5 latents, with no experts to sample with; "
                "connect it to Frequency-Compensated Decode, or choose another model in the Loader"
            )
        networks = self.networks
        autoencoder = cast(Autoencoder, networks.get_network(networks.decoder))
        view = NetworkView(networks, networks.decoder)
        return self.parts.assemble(NetworkView(networks), autoencoder, networks.keeper.device, networks, view)

    @cached_property
    def sr(self) -> SRModel:
        return self.assemble()

    @cached_property
    def decoder(self) -> LatentDecoder | None:
        """The decoder of Stable Diffusion 1.5 latents; None if this is a super-resolution model."""
        if isinstance(self.parts, Parts):
            return None
        network = cast(Autoencoder, self.networks.get_network(0))
        keeper = self.networks.keeper
        return LatentDecoder(network, keeper.device, self._dtype, self.networks, NetworkView(self.networks))

    def begin_run(self, width: int, height: int, tile: int | str = "auto") -> None:
        """A run starts. width, height: of the result in pixels. tile: side of its tiles; auto: the pipeline chooses."""
        side = max(width, height)
        if tile != 0:
            side = min(side, LARGEST_TILE if tile == "auto" else int(tile))
        self.networks.begin_run(estimate_tile_memory(self._config, self.networks.keeper.device, side))


def open_hosted(
    name: str, path: Path, keeper: Keeper, *, dtype: str | torch.dtype = "auto", residency: str = "auto"
) -> HostedModel:
    """The model in a file or folder of the library; no weight is read yet.

    dtype: auto lets the keeper choose. residency: see `Networks`. Raises CheckpointError for a file that is no model.
    """

    def choose(parameters: int, decoder: bool) -> torch.dtype:
        if isinstance(dtype, torch.dtype):
            return dtype
        return keeper.choose_dtype(parameters, decoder=decoder) if dtype == "auto" else DTYPES[dtype]

    decoder = open_decoder(path)
    if decoder is not None:
        count = _count_parameters(decoder.weights.shapes())
        number = choose(count, True)
        source = NetworkSource(count * number.itemsize, lambda device: decoder.autoencoder(number, device))
        return HostedModel(name, Networks([source], keeper), decoder, number)
    files = open_model(path)
    counts = [_count_parameters(view.shapes()) for view in (*files.experts, files.decoder)]
    number = choose(max(counts), False)
    parts = Parts(files, number)
    builds: list[Callable[[torch.device], nn.Module]] = [
        *(lambda device, i=i: parts.expert(i, device) for i in range(len(files.experts))),
        parts.autoencoder,
    ]
    sources = [NetworkSource(count * number.itemsize, build) for count, build in zip(counts, builds)]
    return HostedModel(name, Networks(sources, keeper, residency), parts, number)


def _count_parameters(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())
