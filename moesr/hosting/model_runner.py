"""A run on a model that is asked for by name, with its progress, its stop and its result: for every door of a host."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from torch.nn.modules.module import register_module_forward_pre_hook

from ..errors import MoESRError
from ..model import SRModel
from ..pipeline import upscale
from ..progress import Callback, Event
from ..settings_record import describe_run
from .model_facts import ModelFacts


class Stopped(MoESRError):
    """The run ends here: it was cancelled, its client has left, or its time is up. The message says which."""


@dataclass(frozen=True)
class Result:
    """A picture that is finished, and how it was made."""

    #: In the kind that was given.
    picture: Any
    #: Name and hash of the model, and every setting as it was used: see record.describe_run.
    record: dict[str, Any]


class ModelSource(Protocol):
    """Where models come from: a process of its own, or a host's memory manager."""

    facts: ModelFacts

    def use(self, name: str, *, side: int) -> AbstractContextManager[SRModel]:
        """The model of that name, inside the block. side: the longest side of its results, in pixels."""
        ...

    def close(self) -> None:
        """Let go of all models."""
        ...


@dataclass(frozen=True)
class OpenModel:
    """A model that is ready to run."""

    #: Its name in the library.
    name: str
    #: The fingerprint of its files.
    hash: str
    model: SRModel

    def upscale(self, picture: Any, settings: Mapping[str, Any], show: Callback) -> Result:
        """The picture, larger, and how it was made. settings: see settings.read_settings. Raises MoESRError."""
        larger = upscale(self.model, picture, **settings, callback=show)
        show(Event("save"))
        return Result(larger, describe_run(self.name, self.hash, self.model.config, settings))


@contextmanager
def use_model(source: ModelSource, name: str, *, side: int, check: Callable[[], None]) -> Iterator[OpenModel]:
    """The model of that name, ready to run inside the block. side: the longest side of its results, in pixels.

    check: called before every layer that this thread runs, since on a slow machine a tile takes long; what it raises
    ends the run. Raises MoESRError for a model that is not there, or broken.
    """
    check()
    with source.use(name, side=side) as model, _check_layers(check):
        yield OpenModel(name, source.facts.compute_hash(name), model)


@contextmanager
def _check_layers(check: Callable[[], None]) -> Iterator[None]:
    """Inside, every layer of a network that this thread runs calls `check` first."""
    thread = threading.get_ident()

    def before(*_: object) -> None:
        if threading.get_ident() == thread:
            check()

    handle = register_module_forward_pre_hook(before)
    try:
        yield
    finally:
        handle.remove()
