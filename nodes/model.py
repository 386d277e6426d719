"""What travels between our nodes as MOESR_MODEL: a model, or a decoder alone, whose networks ComfyUI keeps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import comfyui

if TYPE_CHECKING:
    from ..moesr.hosting.hosted_model import HostedModel

MODEL = comfyui.io.Custom("MOESR_MODEL")
DTYPES = ("auto", "fp16", "bf16", "fp32")
RESIDENCIES = ("auto", "one at a time", "all")


class Model:
    """A model as the Loader hands it on, with what the host asks of an output that keeps networks in memory."""

    def __init__(self, hosted: HostedModel) -> None:
        self.hosted = hosted

    @property
    def patcher(self) -> Any:
        """The host's patcher of the decoder, which every model has."""
        networks = self.hosted.networks
        return networks.get_handle(networks.decoder)

    def get_models(self) -> list[Any]:
        return self.hosted.networks.handles()

    def get_ram_usage(self) -> int:
        return sum(patcher.model_size() for patcher in self.get_models())


def list_models() -> list[str]:
    """Models that can be chosen: the embedded default, then all in the host's folders and the library's, by name.

    Files are listed with their extension, by which the host's page knows a model that a workflow needs and lacks.
    """
    first, *others = _installed().items()
    return [first[0], *sorted((path.name for _, path in others), key=str.lower)]


def find_problem(name: str) -> str | None:
    """Why a model cannot be chosen, with the way out; None if it can."""
    if isinstance(name, str) and _find_path(name) is not None:
        return None
    from ..moesr.library import suggest

    if not name:
        return "model: none is chosen; choose one of the list"
    folder = comfyui.find_model_folders()[0]
    return f"model: there is no {name}{suggest(str(name), list_models())}; put it into {folder} and press R"


def fingerprint(name: str) -> str:
    """Changes when a file of the model does."""
    from ..moesr.hosting.model_facts import read_file_states

    path = _find_path(name)
    return "missing" if path is None else read_file_states(path)


def load(name: str, dtype: str, residency: str) -> Model:
    """The model of that name, with its networks left to the host. Raises CheckpointError for a file that is none."""
    from ..moesr.errors import CheckpointError
    from ..moesr.hosting.hosted_model import open_hosted

    path = _find_path(name)
    if path is None:
        raise CheckpointError(str(find_problem(name)))
    return Model(open_hosted(name, path, comfyui.ComfyKeeper(), dtype=dtype, residency=residency))


def _find_path(name: str) -> Path | None:
    """The file or folder of a model: of its name in the list, or without extension as older versions listed it."""
    known = _installed()
    return known.get(name) or next((path for path in known.values() if path.name == name), None)


def _installed() -> dict[str, Path]:
    from ..moesr.library import add_folder, installed

    for folder in comfyui.find_model_folders():
        add_folder(folder)
    return installed()
