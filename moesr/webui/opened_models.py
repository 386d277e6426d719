"""The models of the tab, the upscaler, Extras and the API: opened once for all of them, in the host's memory."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from ..errors import CheckpointError, MoESRError, SettingError
from ..hosting.hosted_model import HostedModel, open_hosted
from ..hosting.model_facts import ModelFacts, read_file_states
from ..hosting.networks import Keeper, Networks
from ..library import DEFAULT, add_folder, installed
from ..model import DTYPES, SRModel
from ..runtime import Runtime
from ..sd15_decoder import LatentDecoder, open_decoder
from ..tiling import LARGEST_TILE
from . import webui_api
from .memory_keepers import A1111Keeper, ForgeKeeper

log = logging.getLogger(__name__)

NO_DECODER = "None"


class Engine:
    """One model and one decoder of SD latents in memory at a time. Runs are the host's: they never overlap.

    It is the `ModelSource` (hosting/model_runner.py) of the tab, the upscalers, Extras and HTTP requests.
    """

    def __init__(self, keeper: Keeper) -> None:
        self.keeper = keeper
        self.facts = ModelFacts(DEFAULT)
        self.dtype = webui_api.get_option("moesr_dtype")
        #: Networks of the model that was used last.
        self.networks: Networks | None = None
        self._opened: dict[tuple[str, str], HostedModel] = {}
        self._decoder: tuple[str, HostedModel] | None = None

    def choose_default(self) -> str:
        """The model that our setting names, or the embedded one if that is not there any more."""
        name = webui_api.get_option("moesr_model")
        return name if name in installed() else DEFAULT

    @contextmanager
    def use(self, name: str, *, side: int) -> Iterator[SRModel]:
        """The model of that name, inside the block, for results whose sides have at most `side` pixels.

        The host's checkpoint makes room for it, and has it back afterwards. Raises MoESRError for a model that is not
        there or broken.
        """
        hosted = self._open(name)
        networks = hosted.networks
        if self.networks is not None and self.networks is not networks:
            self.networks.end_run(keep=False)
        self.networks = networks
        hosted.begin_run(side, side)
        device = self.keeper.device
        short = device.type != "cpu" and Runtime().free_memory(device) < networks.needed
        with webui_api.move_checkpoint_aside(short), webui_api.disable_autocast():
            try:
                yield hosted.assemble()
            finally:
                networks.end_run(webui_api.get_option("moesr_keep"))

    def decoder(self, name: str) -> LatentDecoder:
        """The KL decoder of that name. Raises SettingError if there is none."""
        path = installed().get(name)
        if path is None or open_decoder(path) is None:
            folder = webui_api.find_model_folders()[-1]
            raise SettingError(f"decoder {name!r} is not in the library: put its file into {folder}")
        key = read_file_states(path)
        if self._decoder is None or self._decoder[0] != key:
            self._decoder = (key, open_hosted(name, path, self.keeper))
        hosted = self._decoder[1]
        hosted.begin_run(LARGEST_TILE, LARGEST_TILE)
        assert hosted.decoder is not None
        return hosted.decoder

    def end_decoder_run(self) -> None:
        if self._decoder is not None:
            self._decoder[1].networks.end_run(webui_api.get_option("moesr_keep"))

    def close(self) -> None:
        opened = [*self._opened.values(), *([self._decoder[1]] if self._decoder else [])]
        for hosted in opened:
            hosted.networks.end_run(keep=False)
        self._opened.clear()
        self.networks = self._decoder = None

    def _open(self, name: str) -> HostedModel:
        """Opened models stay known, since the tab keeps one between its jobs; their networks come and go."""
        key = (name, self.facts.compute_hash(name))
        if key not in self._opened:
            path = self.facts.find_path(name)
            dtype = DTYPES.get(self.dtype, "auto")
            try:
                self._opened[key] = open_hosted(name, path, self.keeper, dtype=dtype)
            except CheckpointError as error:
                raise CheckpointError(str(error).replace(str(path), name)) from error
        return self._opened[key]


@lru_cache(maxsize=1)
def engine() -> Engine:
    """The one engine of this process."""
    for folder in webui_api.find_model_folders():
        add_folder(folder)
    return Engine(ForgeKeeper() if webui_api.FORGE else A1111Keeper(webui_api.choose_device()))


def stop() -> None:
    """Let go of everything; the next call of `engine` begins anew."""
    engine().close()
    engine.cache_clear()


def list_decoders() -> list[str]:
    """Names in the library that decode latents of SD 1.5, after the one for none."""
    engine()  # adds the host's folders
    return [NO_DECODER, *(name for name, path in installed().items() if open_decoder(path) is not None)]


def list_models() -> dict[str, int]:
    """Models in the library that make pictures larger, and how much; broken files are left out with a line."""
    found, known = {}, engine().facts
    for name, path in installed().items():
        try:
            config = known.read_config(name)
        except MoESRError as error:
            if open_decoder(path) is None:
                log.warning("MoESR: left out: %s", error)
            continue
        if not config.unet.mask:  # those fill in what a mask marks, and the host has none to give
            found[name] = config.scale
    return found
