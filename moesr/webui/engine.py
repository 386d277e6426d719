"""The models of the tab, the upscaler, Extras and the API: loaded once for all of them, in the host's memory."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import cast

import torch

from ..checkpoints.files import open_model
from ..checkpoints.library import DEFAULT, add_folder, installed
from ..errors import CheckpointError, MoESRError, SettingError
from ..latent_decoder import LatentDecoder, open_decoder
from ..model import DTYPES, Parts, SRModel
from ..networks.autoencoder import Autoencoder
from ..runtime import PlainRuntime, Runtime
from ..service.models import Models
from ..tiling import LARGEST_TILE, estimate_tile_memory
from . import host
from .memory import Keeper, Moved, Network, Networks, Patched, Slot

log = logging.getLogger(__name__)

NO_DECODER = "None"


class Engine:
    """One model and one decoder of SD latents at a time. Runs are the host's: they never overlap."""

    def __init__(self, keeper: Keeper) -> None:
        self.keeper = keeper
        self.models = Models(DEFAULT)
        self.dtype = _dtype(keeper.device)
        self._model: tuple[object, Parts, Networks] | None = None
        self._decoder: tuple[object, LatentDecoder, Networks] | None = None
        self._side = LARGEST_TILE

    def default(self) -> str:
        """The model that our setting names, or the embedded one if that is not there any more."""
        name = host.option("moesr_model")
        return name if name in installed() else DEFAULT

    @contextmanager
    def run(self, name: str, side: int) -> Iterator[None]:
        """Inside, a model may be used for pictures whose result has sides of at most `side` pixels.

        The host's checkpoint makes room for it, and has it back afterwards. Raises MoESRError for a model that is not
        there or broken.
        """
        self._side = min(LARGEST_TILE, max(1, side))
        networks = self._open(name)[1]
        short = self.keeper.device.type != "cpu"
        short = short and PlainRuntime().free_memory(self.keeper.device) < networks.largest + 2 * networks.working
        with host.checkpoint_aside(short), host.full_precision():
            try:
                yield
            finally:
                networks.rest(host.option("moesr_keep"))

    def model(self, name: str, asked: Runtime) -> SRModel:
        """The model of that name, for use inside `run`. asked: whether to stop, and for memory."""
        parts, networks = self._open(name)
        last = len(parts.files.experts)
        decoder = cast(Autoencoder, networks.network(last))

        def now() -> Networks:
            return self._open(name, begin=False)[1]

        # The networks are shared, this object is not: it knows whom a run has to ask.
        return parts.assemble(Slot(now), decoder, self.keeper.device, asked, Slot(now, last))

    def memory(self) -> Runtime:
        """The Runtime that knows how much room the model at work has."""
        return _Current(self)

    def networks(self) -> Networks | None:
        """Those of the model that was opened last."""
        return self._model and self._model[2]

    def decoder(self, name: str) -> LatentDecoder:
        """The KL decoder of that name. Raises SettingError if there is none."""
        path = installed().get(name)
        parts = None if path is None else open_decoder(path)
        if path is None or parts is None:
            raise SettingError(f"decoder {name!r} is not in the library: put its file into {host.model_folders()[-1]}")
        key = (name, path.stat().st_mtime_ns, path.stat().st_size)
        if self._decoder is None or self._decoder[0] != key:
            self._decoder = None
            dtype = _decoder_dtype(self.keeper.device)
            size = _bytes(parts.weights.shapes(), dtype)
            networks = Networks([Network(size, lambda device: parts.autoencoder(dtype, device))], self.keeper)
            networks.begin(estimate_tile_memory(parts.config, dtype, LARGEST_TILE))
            network = cast(Autoencoder, networks.network(0))
            decoder = LatentDecoder(network, self.keeper.device, dtype, networks, Slot(lambda: networks))
            self._decoder = (key, decoder, networks)
        self._decoder[2].begin(self._decoder[2].working)
        return self._decoder[1]

    def rest_decoder(self) -> None:
        """A picture has been decoded."""
        if self._decoder is not None:
            self._decoder[2].rest(host.option("moesr_keep"))

    def close(self) -> None:
        """Let go of everything."""
        for opened in (self._model, self._decoder):
            if opened is not None:
                opened[2].rest(keep=False)
        self._model = self._decoder = None

    def _open(self, name: str, *, begin: bool = True) -> tuple[Parts, Networks]:
        key = (name, self.models.digest(name))
        if self._model is None or self._model[0] != key:
            if self._model is not None:
                self._model[2].rest(keep=False)
            self._model = (key, *_networks(name, self.models.path(name), self.dtype, self.keeper))
            begin = True
        parts, networks = self._model[1:]
        if begin:
            networks.begin(estimate_tile_memory(parts.files.config.autoencoder, self.dtype, self._side))
        return parts, networks


class _Current:
    """The memory of whichever model is at work."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def check(self) -> None:
        """Others ask."""

    def free_memory(self, device: torch.device) -> int:
        """Bytes that tiles may use."""
        return self._host().free_memory(device)

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether a smaller tile could succeed."""
        return self._host().is_out_of_memory(error)

    def release(self) -> None:
        """Give memory back."""
        self._host().release()

    def _host(self) -> Runtime:
        return self._engine.networks() or PlainRuntime()


@lru_cache(maxsize=1)
def engine() -> Engine:
    """The one engine of this process."""
    for folder in host.model_folders():
        add_folder(folder)
    return Engine(Patched() if host.FORGE else Moved(host.device()))


def decoders() -> list[str]:
    """Names in the library that decode latents of SD 1.5, after the one for none."""
    engine()  # adds the host's folders
    return [NO_DECODER, *(name for name, path in installed().items() if open_decoder(path) is not None)]


def models() -> dict[str, int]:
    """Models in the library that make pictures larger, and how much; broken files are left out with a line."""
    found, known = {}, engine().models
    for name, path in installed().items():
        try:
            config = known.config(name)
        except MoESRError as error:
            if open_decoder(path) is None:
                log.warning("MoESR: left out: %s", error)
            continue
        if not config.unet.mask:  # those fill in what a mask marks, and the host has none to give
            found[name] = config.scale
    return found


def _networks(name: str, path: Path, dtype: torch.dtype, keeper: Keeper) -> tuple[Parts, Networks]:
    try:
        parts = Parts(open_model(path), dtype)
    except CheckpointError as error:
        raise CheckpointError(str(error).replace(str(path), name)) from error
    experts = [
        Network(_bytes(view.shapes(), dtype), lambda device, i=i: parts.expert(i, device))
        for i, view in enumerate(parts.files.experts)
    ]
    decoder = Network(_bytes(parts.files.decoder.shapes(), dtype), parts.autoencoder)
    return parts, Networks([*experts, decoder], keeper)


def _bytes(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> int:
    return dtype.itemsize * sum(math.prod(shape) for shape in shapes.values())


def _dtype(device: torch.device) -> torch.dtype:
    name = host.option("moesr_dtype")
    if name in DTYPES:
        return DTYPES[name]
    return torch.float16 if host.half_is_fine(device) else torch.float32


def _decoder_dtype(device: torch.device) -> torch.dtype:
    """Decoders of SD 1.5 overflow in fp16."""
    fine = host.half_is_fine(device) and torch.cuda.is_bf16_supported()
    return torch.bfloat16 if fine else torch.float32
