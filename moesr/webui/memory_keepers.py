"""Forge and A1111 as keepers of our networks: see moesr/hosting/networks.py."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..hosting.networks import Keeper
from . import webui_api

CPU = torch.device("cpu")


class A1111Keeper(Keeper):
    """A1111 manages its checkpoint only: our networks wait in system memory, and are on the device during a run."""

    def __init__(self, device: torch.device, offload_device: torch.device = CPU) -> None:
        super().__init__(device, offload_device)
        self._loaded: weakref.WeakSet[nn.Module] = weakref.WeakSet()

    def choose_dtype(self, parameters: int, *, decoder: bool) -> torch.dtype:
        """What the host computes in on this device. Decoders of SD 1.5 latents overflow in fp16."""
        if not webui_api.uses_half_precision(self.device):
            return torch.float32
        if decoder:
            return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
        return torch.float16

    def load(self, handles: Sequence[Any], *, others: Sequence[Any], working: int) -> None:
        """Others leave only if there is no room for more."""
        missing = [network for network in handles if network not in self._loaded]
        size = sum(tensor.nbytes for network in missing for tensor in network.parameters())
        if missing and self.measure_free_memory() < 1.1 * size + working:
            self.unload(others)
        for network in missing:
            network.to(self.device)
            self._loaded.add(network)

    def unload(self, handles: Sequence[Any]) -> None:
        for network in handles:
            network.to(self.offload_device)
            self._loaded.discard(network)
        webui_api.empty_cache()

    def end_run(self, handles: Sequence[Any]) -> None:
        """The device is the checkpoint's again."""
        self.unload(handles)


class ForgeKeeper(A1111Keeper):
    """Forge: a handle is a patcher of the host's, which loads it when it is used and takes it back for others."""

    def __init__(self) -> None:
        memory = webui_api.forge_memory()
        super().__init__(memory.get_torch_device(), memory.unet_offload_device())

        class Whole(webui_api.forge_patcher()):
            """Loaded whole also where Forge swaps layers: it would leave parameters behind that are not `weight`."""

            def forge_patch_model(self, target_device: Any = None) -> Any:
                return super().forge_patch_model(self.load_device)

        self._patcher = Whole

    def register(self, network: nn.Module) -> Any:
        return self._patcher(network, self.device, self.offload_device)

    def load(self, handles: Sequence[Any], *, others: Sequence[Any], working: int) -> None:
        webui_api.forge_memory().load_models_gpu(list(handles), memory_required=working)

    def make_room(self, needed: int) -> None:
        if self.device.type != "cpu":
            webui_api.forge_memory().free_memory(needed, self.device)

    def measure_free_memory(self) -> int:
        return int(webui_api.forge_memory().get_free_memory(self.device))

    def unload(self, handles: Sequence[Any]) -> None:
        webui_api.forge_memory().unload_all_models()
        webui_api.empty_cache()

    def end_run(self, handles: Sequence[Any]) -> None:
        """Networks stay until the host wants their room."""
