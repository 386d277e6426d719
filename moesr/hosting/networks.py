"""One plan for networks in a host: load a network when it is used, prefetch the next one, let go of the others."""

from __future__ import annotations

import gc
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..runtime import Runtime

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NetworkSource:
    """A network that is built when it is first used."""

    #: Bytes of its weights.
    size: int
    #: Builds it on a device.
    build: Callable[[torch.device], nn.Module]


class Keeper(Runtime, ABC):
    """The host's memory manager as `Networks` uses it. Each host has a subclass, which says what differs there.

    device: where networks compute. offload_device: where they wait.
    """

    def __init__(self, device: torch.device, offload_device: torch.device) -> None:
        self.device, self.offload_device = device, offload_device

    @abstractmethod
    def choose_dtype(self, parameters: int, *, decoder: bool) -> torch.dtype:
        """The number format for a network of so many parameters. decoder: it decodes latents of SD 1.5."""

    def register(self, network: nn.Module) -> Any:
        """A handle that stands for a network, which lies on `offload_device`, in the other calls."""
        return network

    @abstractmethod
    def load(self, handles: Sequence[Any], *, others: Sequence[Any], working: int) -> None:
        """Have these networks on the device together, with `working` bytes to spare. `others` may leave it."""

    def make_room(self, needed: int) -> None:
        """Have other models of the host leave the device until `needed` bytes are free, if they can."""

    def measure_free_memory(self) -> int:
        """Bytes that a run may take on the device now."""
        return super().free_memory(self.device)

    @abstractmethod
    def unload(self, handles: Sequence[Any]) -> None:
        """Memory ran out: take all networks off the device."""

    def end_run(self, handles: Sequence[Any]) -> None:
        """A run has ended. Networks stay until the host wants their room."""


class Networks(Runtime):
    """The networks of one model by number, the decoder last, and the `Runtime` of that model's runs.

    residency: "auto" loads the network at work, and the next one if there is room; "all" loads all experts together;
    "one at a time" lets go of an expert, in system memory too, when another is used.
    """

    def __init__(self, sources: Sequence[NetworkSource], keeper: Keeper, residency: str = "auto") -> None:
        self.keeper = keeper
        #: Bytes that a run needs beside the weights.
        self.working = 0
        self._sources, self._residency = list(sources), residency
        self._largest = max(source.size for source in self._sources)
        self._built: dict[int, tuple[nn.Module, Any]] = {}
        self._loaded: set[int] = set()  # by this run, and not taken back since

    @property
    def decoder(self) -> int:
        """Number of the decoder."""
        return len(self._sources) - 1

    @property
    def needed(self) -> int:
        """Bytes that a run needs on the device. The working memory counts twice: a run plans with half of it."""
        return self._largest + 2 * self.working

    def begin_run(self, working: int) -> None:
        """A run starts, which needs so many bytes beside the weights. Forgets what was loaded: the host may know."""
        self._loaded, self.working = set(), working

    def end_run(self, keep: bool = True) -> None:
        """A run has ended. Lets go of all networks unless `keep`."""
        self._loaded = set()
        self.keeper.end_run(self.handles())
        if not keep:
            self.close()

    def close(self) -> None:
        """Let go of all networks; `use` builds them again."""
        self._built.clear()
        self._loaded.clear()
        gc.collect()

    def handles(self) -> list[Any]:
        """The handles of the networks that have been built."""
        return [handle for _, handle in self._built.values()]

    def get_network(self, i: int) -> nn.Module:
        """Network i, wherever it lies."""
        return self._build(i)[0]

    def get_handle(self, i: int) -> Any:
        return self._build(i)[1]

    @contextmanager
    def use(self, i: int) -> Iterator[nn.Module]:
        if i not in self._loaded:
            together = self._residency == "all" and i != self.decoder
            self._load(range(self.decoder) if together else [i])
        yield self._built[i][0]

    def prefetch(self, i: int) -> None:
        """Load network i beside those that are loaded, if there is room for it."""
        if self._residency != "auto" or i in self._loaded:
            return
        if self.keeper.measure_free_memory() > 1.1 * self._sources[i].size + self.working:
            self._load([*self._loaded, i])

    def check(self) -> None:
        self.keeper.check()

    def free_memory(self, device: torch.device) -> int:
        """Bytes that tiles may use beside the largest network, after other models made room for a run."""
        self.keeper.make_room(self.needed)
        return max(0, self.keeper.measure_free_memory() - self._largest)

    def is_out_of_memory(self, error: BaseException) -> bool:
        return self.keeper.is_out_of_memory(error)

    def release(self) -> None:
        """Take all networks off the device after memory ran out; those of the run come back when they are used."""
        log.info("MoESR: out of memory; models are unloaded and the tile is halved")
        self._loaded = set()
        self.keeper.unload(self.handles())
        super().release()

    def _load(self, wanted: Sequence[int]) -> None:
        if self._residency == "one at a time":
            self._built = {i: built for i, built in self._built.items() if i in {*wanted, self.decoder}}
        handles = [self.get_handle(i) for i in wanted]
        others = [handle for i, (_, handle) in self._built.items() if i not in wanted]
        self.keeper.load(handles, others=others, working=self.working)
        self._loaded = set(wanted)

    def _build(self, i: int) -> tuple[nn.Module, Any]:
        if i not in self._built:
            network = self._sources[i].build(self.keeper.offload_device)
            self._built[i] = (network, self.keeper.register(network))
        return self._built[i]


@dataclass(frozen=True)
class NetworkView:
    """The `Residency` (diffusion/experts.py) of the networks from `first` on."""

    networks: Networks
    first: int = 0

    def use(self, i: int) -> AbstractContextManager[nn.Module]:
        return self.networks.use(self.first + i)

    def prefetch(self, i: int) -> None:
        self.networks.prefetch(self.first + i)

    def close(self) -> None:
        self.networks.close()
