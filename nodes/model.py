"""What travels between our nodes as MOESR_MODEL: a model, or a decoder alone, whose networks the host keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import host

MODEL = host.io.Custom("MOESR_MODEL")
NUMBERS = ("auto", "fp16", "bf16", "fp32")
RESIDENCIES = ("auto", "one at a time", "all")


class Model:
    """A model as the Loader hands it on. `sr` for super-resolution, or `decoder` for latents of other models.

    `parts` are the files of a decoder. The host looks at `patcher`, `get_models` and `get_ram_usage` to see what an
    output keeps in memory.
    """

    def __init__(
        self, name: str, patchers: host.Patchers, sr: Any = None, decoder: Any = None, parts: Any = None
    ) -> None:
        self.name, self.patchers, self._sr, self.decoder, self.parts = name, patchers, sr, decoder, parts

    @property
    def sr(self) -> Any:
        """The super-resolution model. Raises SettingError if there is only a decoder."""
        if self._sr is None:
            from ..moesr.errors import SettingError

            raise SettingError(
                f"model: {self.name} is a decoder of Stable Diffusion 1.5 latents, with no experts to sample with; "
                "connect it to Frequency-Compensated Decode, or choose another model in the Loader"
            )
        return self._sr

    @property
    def patcher(self) -> Any:
        """The host's patcher of the decoder, which every model has."""
        return self.patchers.patcher(self.patchers.count - 1)

    def get_models(self) -> list[Any]:
        """The host's patchers of all networks that have been used."""
        return self.patchers.existing()

    def get_ram_usage(self) -> int:
        """Bytes of the networks that exist."""
        return sum(patcher.model_size() for patcher in self.patchers.existing())

    def begin(self, tile: int, width: int, height: int) -> None:
        """A run starts whose result has that size, with tiles of that side (0: the pipeline chooses)."""
        from ..moesr.tiling import LARGEST_TILE, estimate_tile_memory

        side = min(max(width, height), tile or LARGEST_TILE)
        part = self._sr or self.decoder
        self.patchers.begin(estimate_tile_memory(part.autoencoder.config, part.dtype, side))


def names() -> list[str]:
    """Models that can be chosen: the embedded default, then all in the host's folders and the library's, by name."""
    first, *others = _installed()
    return [first, *sorted(others, key=str.lower)]


def problem(name: str) -> str | None:
    """Why a model cannot be chosen, with the way out; None if it can."""
    known = _installed()
    if name in known:
        return None
    from ..moesr.checkpoints.library import meant

    return f"model: there is no {name}{meant(name, known)}; put it into {host.model_folders()[0]} and press R"


def fingerprint(name: str) -> str:
    """Changes when a file of the model does."""
    path = _installed().get(name)
    if path is None:
        return "missing"
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return "|".join(f"{p}:{p.stat().st_mtime_ns}:{p.stat().st_size}" for p in files)


def load(name: str, dtype: str, residency: str) -> Model:
    """The model of that name, with its networks left to the host. Raises CheckpointError for a file that is none."""
    from ..moesr.latent_decoder import open_decoder

    reason = problem(name)
    if reason:
        from ..moesr.errors import CheckpointError

        raise CheckpointError(reason)
    path = _installed()[name]
    decoder = open_decoder(path)
    return _load_model(name, path, dtype, residency) if decoder is None else _load_decoder(name, decoder, dtype)


def _load_model(name: str, path: Path, dtype: str, residency: str) -> Model:
    from ..moesr.checkpoints.files import open_model
    from ..moesr.model import DTYPES, Parts

    files = open_model(path)
    views = [*files.experts, files.decoder]
    counts = [_parameters(view.shapes()) for view in views]
    number = DTYPES[host.number_format(max(counts), DTYPES) if dtype == "auto" else dtype]
    parts = Parts(files, number)
    decoder = len(files.experts)

    def network(i: int) -> host.Network:
        build = parts.autoencoder if i == decoder else lambda device: parts.expert(i, device)
        return host.Network(counts[i] * number.itemsize, build)

    patchers = host.Patchers([network(i) for i in range(len(views))], residency)
    autoencoder = patchers.patcher(decoder).model
    slot = host.Slot(patchers, decoder)
    sr = parts.assemble(host.Slot(patchers, 0), autoencoder, patchers.device, host.ComfyHost(patchers), slot)
    return Model(name, patchers, sr=sr)


def _load_decoder(name: str, parts: Any, dtype: str) -> Model:
    from ..moesr.latent_decoder import LatentDecoder
    from ..moesr.model import DTYPES

    count = _parameters(parts.weights.shapes())
    number = DTYPES[host.number_format(count, DTYPES) if dtype == "auto" else dtype]
    network = host.Network(count * number.itemsize, lambda device: parts.autoencoder(number, device))
    patchers = host.Patchers([network], "auto")
    decoder = LatentDecoder(
        patchers.patcher(0).model, patchers.device, number, host.ComfyHost(patchers), host.Slot(patchers, 0)
    )
    return Model(name, patchers, decoder=decoder, parts=parts)


def _parameters(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def _installed() -> dict[str, Path]:
    from ..moesr.checkpoints.library import add_folder, installed

    for folder in host.model_folders():
        add_folder(folder)
    return installed()
