"""Where a model's networks are while they wait and while they work: Forge's patchers, or moved by us in A1111."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from ..runtime import PlainRuntime
from . import host

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Network:
    """A network that does not exist yet: its size in bytes, and how it is made on a device."""

    size: int
    build: Callable[[torch.device], nn.Module]


class Keeper(Protocol):
    """Brings networks to the device and away from it. `hold` gives what stands for a network in the other calls."""

    device: torch.device
    offload: torch.device

    def hold(self, network: nn.Module) -> Any:
        """A handle for a network on `offload`."""
        ...

    def bring(self, wanted: Any, others: Sequence[Any], size: int, working: int) -> None:
        """`wanted`, of `size` bytes, is on the device then, with `working` bytes to spare; `others` may have left."""
        ...

    def room(self, needed: int) -> int:
        """Bytes that are free on the device, after others made room for `needed`."""
        ...

    def rest(self, all_of_them: Sequence[Any]) -> None:
        """A run has ended."""
        ...

    def retreat(self, all_of_them: Sequence[Any]) -> None:
        """Memory is out: everything leaves the device, and comes back when it is used."""
        ...


class Moved:
    """A1111, which manages its checkpoint only: networks wait in system memory, and are on the device during a run."""

    offload = torch.device("cpu")

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._there: weakref.WeakSet[nn.Module] = weakref.WeakSet()

    def hold(self, network: nn.Module) -> nn.Module:
        """The network itself."""
        return network

    def bring(self, wanted: nn.Module, others: Sequence[nn.Module], size: int, working: int) -> None:
        """Others leave only if there is no room for one more."""
        if wanted in self._there:
            return
        if PlainRuntime().free_memory(self.device) < 1.1 * size + working:
            self.retreat(others)
        wanted.to(self.device)
        self._there.add(wanted)

    def room(self, needed: int) -> int:
        """What is free; the checkpoint has been moved before, see host.checkpoint_aside."""
        return PlainRuntime().free_memory(self.device)

    def rest(self, all_of_them: Sequence[nn.Module]) -> None:
        """The device is the checkpoint's again."""
        self.retreat(all_of_them)

    def retreat(self, all_of_them: Sequence[nn.Module]) -> None:
        """To system memory."""
        for network in all_of_them:
            network.to(self.offload)
            self._there.discard(network)
        host.empty_cache()


class Patched:
    """Forge: each network is a patcher of the host's, which loads it when it is used and takes it back for others."""

    def __init__(self) -> None:
        memory = host.backend()
        self.device: torch.device = memory.get_torch_device()
        self.offload: torch.device = memory.unet_offload_device()

        class Whole(host.patcher_class()):
            """Loaded whole also where Forge swaps layers: it would leave parameters behind that are not `weight`."""

            def forge_patch_model(self, target_device: Any = None) -> Any:
                return super().forge_patch_model(self.load_device)

        self._kind = Whole

    def hold(self, network: nn.Module) -> Any:
        """A patcher."""
        return self._kind(network, self.device, self.offload)

    def bring(self, wanted: Any, others: Sequence[Any], size: int, working: int) -> None:
        """Others leave if the host needs their room."""
        host.backend().load_models_gpu([wanted], memory_required=working)

    def room(self, needed: int) -> int:
        """The host unloads what it has to; on the CPU nothing would be gained."""
        memory = host.backend()
        if self.device.type != "cpu":
            memory.free_memory(needed, self.device)
        return int(memory.get_free_memory(self.device))

    def rest(self, all_of_them: Sequence[Any]) -> None:
        """They stay until the host wants their room."""

    def retreat(self, all_of_them: Sequence[Any]) -> None:
        """All models of the host leave the device."""
        host.backend().unload_all_models()
        host.empty_cache()


class Networks:
    """A model's networks by number, each built when it is first used. The last one is the decoder."""

    def __init__(self, networks: Sequence[Network], keeper: Keeper) -> None:
        self.keeper = keeper
        self.working = 0  # bytes that a run needs beside the weights
        self._networks = list(networks)
        self._built: dict[int, tuple[nn.Module, Any]] = {}
        self._here: int | None = None  # brought by this run, and nobody has asked for another since

    @property
    def largest(self) -> int:
        """Bytes of the largest network."""
        return max(network.size for network in self._networks)

    def begin(self, working: int) -> None:
        """A run starts, which needs so many bytes beside the weights; what the host did since the last is not known."""
        self._here, self.working = None, working

    def network(self, i: int) -> nn.Module:
        """Network i, wherever it is."""
        return self._get(i)[0]

    @contextmanager
    def use(self, i: int) -> Iterator[nn.Module]:
        """Network i, on the device inside the block."""
        network, handle = self._get(i)
        if self._here != i:
            others = [held for j, (_, held) in self._built.items() if j != i]
            self.keeper.bring(handle, others, self._networks[i].size, self.working)
            self._here = i
        yield network

    def rest(self, keep: bool) -> None:
        """A run has ended; the networks are let go unless `keep`."""
        self._here = None
        self.keeper.rest(self._handles())
        if not keep:
            self.close()

    def close(self) -> None:
        """Let go of all networks; `use` builds them again."""
        self._built.clear()
        self._here = None
        gc.collect()

    # The Runtime of a run: see moesr/runtime.py.

    def check(self) -> None:
        """Whether the user has cancelled is for others to ask."""

    def free_memory(self, device: torch.device) -> int:
        """Bytes that tiles may use beside the largest network, after others made room for a run."""
        # Twice: a run plans with half of what is free.
        return max(0, self.keeper.room(self.largest + 2 * self.working) - self.largest)

    def is_out_of_memory(self, error: BaseException) -> bool:
        """What torch takes for it."""
        return PlainRuntime().is_out_of_memory(error)

    def release(self) -> None:
        """All leave the device, and come back one by one."""
        log.info("MoESR: out of memory; models leave the device and the tile is halved")
        self._here = None
        self.keeper.retreat(self._handles())
        PlainRuntime().release()

    def _handles(self) -> list[Any]:
        return [held for _, held in self._built.values()]

    def _get(self, i: int) -> tuple[nn.Module, Any]:
        if i not in self._built:
            network = self._networks[i].build(self.keeper.offload)
            self._built[i] = (network, self.keeper.hold(network))
        return self._built[i]


class Slot:
    """The residency of the networks from `first` on; see moesr/diffusion/experts.py.

    networks: gives them, built or not. The host's other doors may have had another model opened since the last run.
    """

    def __init__(self, networks: Callable[[], Networks], first: int = 0) -> None:
        self._networks, self._first = networks, first

    def use(self, i: int) -> Any:
        """Network i, on the device inside the block."""
        return self._networks().use(self._first + i)

    def prefetch(self, i: int) -> None:
        """The host decides what is loaded."""

    def close(self) -> None:
        """Others may use the same networks: they go when another model comes, or when the host says so."""
