"""All that is asked of ComfyUI: memory, progress, cancel, folders, schemas. No other file of the pack imports it."""
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import comfy.model_management as memory
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import ComfyExtension, io
from comfy_execution.graph_utils import GraphBuilder
from comfy_execution.progress import get_progress_state
from comfy_execution.utils import get_executing_context
from server import PromptServer
from torch import nn

from ..moesr.runtime import PlainRuntime

__all__ = ["ComfyExtension", "GraphBuilder", "io"]

log = logging.getLogger(__name__)

FOLDER = "moesr"
SUFFIXES = {".safetensors", ".ckpt", ".pth", ".pt"}
PREVIEW_SIDE = 512
#: Seconds between messages to the page, at least; a new step is always told.
PAUSE = 0.05

#: Layers that the host has a kind of its own of, whose weights it can leave in system memory.
_LAYERS = {
    kind: getattr(comfy.ops.disable_weight_init, kind.__name__)
    for kind in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.GroupNorm, nn.LayerNorm)
}


class _Whole(comfy.model_patcher.ModelPatcher):
    """The host's patcher of before dynamic VRAM, which would leave layers that it cannot stream on the wrong device.

    Loaded whole, also with --lowvram and --novram: an expert is small beside what it works on.
    """

    def partially_load(self, device_to: Any, extra_memory: float = 0, *args: Any, **kwargs: Any) -> Any:
        return super().partially_load(device_to, extra_memory if extra_memory < 0 else 1e32, *args, **kwargs)


def patcher_of(network: nn.Module, device: torch.device, offload_device: torch.device) -> Any:
    """The host's patcher of a network, of the kind that the host has chosen for this machine."""
    for layer in network.modules():
        if type(layer) in _LAYERS:
            layer.__class__ = _LAYERS[type(layer)]
        if next(layer.parameters(recurse=False), None) is not None:
            layer.register_forward_pre_hook(_stop_if_cancelled)
    # Late: the host decides for dynamic VRAM after the packs' files may have been imported.
    kind = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    return (_Whole if kind is comfy.model_patcher.ModelPatcher else kind)(network, device, offload_device)


def _stop_if_cancelled(*_: Any) -> None:
    memory.throw_exception_if_processing_interrupted()


@dataclass(frozen=True)
class Network:
    """A network that does not exist yet: its size in bytes, and how it is made on a device."""

    size: int
    build: Callable[[torch.device], nn.Module]


class Patchers:
    """A model's networks in the host's memory manager, which loads them when they are used and may take them back.

    residency: "auto" loads the network at work, and the next one if there is room; "all" loads all experts at once;
    "one at a time" lets go of an expert, in system memory too, once another is used. The last network is the decoder.
    """

    def __init__(self, networks: Sequence[Network], residency: str) -> None:
        self.device = memory.get_torch_device()
        self.working = 0  # bytes that a run needs beside the weights
        self._networks, self._residency = networks, residency
        self._offload_device = memory.unet_offload_device()
        self._patchers: dict[int, Any] = {}
        self._loaded: set[int] = set()  # asked for by this run, and by nobody else since

    @property
    def count(self) -> int:
        """Number of networks."""
        return len(self._networks)

    def begin(self, working: int) -> None:
        """A run starts, which needs so many bytes beside the weights; what the host did since the last is not known."""
        self._loaded, self.working = set(), working

    def patcher(self, i: int) -> Any:
        """The patcher of network i, which is made if need be."""
        if i not in self._patchers:
            network = self._networks[i].build(self._offload_device)
            self._patchers[i] = patcher_of(network, self.device, self._offload_device)
        return self._patchers[i]

    def existing(self) -> list[Any]:
        """The patchers of the networks that have been used."""
        return list(self._patchers.values())

    @contextmanager
    def use(self, i: int) -> Iterator[nn.Module]:
        """Network i, on the device inside the block."""
        if i not in self._loaded:
            decoder = self.count - 1
            self._load([*range(decoder)] if self._residency == "all" and i != decoder else [i])
        yield self._patchers[i].model

    def prefetch(self, i: int) -> None:
        """Load network i beside those that are, if there is room for it."""
        if self._residency == "auto" and i not in self._loaded and self._has_room(self._networks[i].size):
            self._load([*self._loaded, i])

    def close(self) -> None:
        """Let go of all networks."""
        self._patchers.clear()
        self._loaded.clear()

    def make_room(self) -> int:
        """Bytes that are free for tiles, beside the largest network, after others made room for a run."""
        largest = max(network.size for network in self._networks)
        if self.device.type != "cpu":
            # Twice: a run plans with half of what is free.
            memory.free_memory(largest + 2 * self.working, self.device)
        return max(0, int(memory.get_free_memory(self.device)) - largest)

    def _load(self, wanted: list[int]) -> None:
        if self._residency == "one at a time":
            kept = {*wanted, self.count - 1}
            self._patchers = {i: patcher for i, patcher in self._patchers.items() if i in kept}
        patchers = [self.patcher(i) for i in wanted]
        memory.load_models_gpu(patchers, memory_required=self.working, force_full_load=True)
        self._loaded = set(wanted)

    def _has_room(self, size: int) -> bool:
        reserved = memory.extra_reserved_memory()
        return memory.get_free_memory(self.device) > 1.1 * size + self.working + reserved


class Slot:
    """The residency of the networks from `first` on."""

    def __init__(self, patchers: Patchers, first: int) -> None:
        self._patchers, self._first = patchers, first

    def use(self, i: int) -> Any:
        """Network i, on the device inside the block."""
        return self._patchers.use(self._first + i)

    def prefetch(self, i: int) -> None:
        """Network i comes next."""
        self._patchers.prefetch(self._first + i)

    def close(self) -> None:
        """Let go of all networks."""
        self._patchers.close()


class ComfyHost:
    """ComfyUI as the `Runtime` of the pipeline."""

    def __init__(self, patchers: Patchers) -> None:
        self._patchers = patchers

    def check(self) -> None:
        """Raises the host's own exception if the user cancelled."""
        memory.throw_exception_if_processing_interrupted()

    def free_memory(self, device: torch.device) -> int:
        """Bytes that tiles may use; other models of the host have made room."""
        return self._patchers.make_room()

    def is_out_of_memory(self, error: BaseException) -> bool:
        """What the host takes for it, and what torch does."""
        known = getattr(memory, "is_oom", None)
        if known is not None and known(error):
            return True
        # Where torch has no such error, the host's name stands for every Exception.
        kind = memory.OOM_EXCEPTION
        return (kind is not Exception and isinstance(error, kind)) or PlainRuntime().is_out_of_memory(error)

    def release(self) -> None:
        """All models leave the device; those of the run come back when they are used."""
        log.info("MoESR: out of memory; models are unloaded and the tile is halved")
        self._patchers.begin(self._patchers.working)
        memory.unload_all_models()
        memory.soft_empty_cache()


def vae_of(
    weights: dict[str, torch.Tensor],
    build: Callable[[torch.dtype, torch.device], nn.Module],
    pixel: Callable[[torch.dtype], int],
) -> Any:
    """The host's VAE for such weights, with another network in it.

    weights: what of the network's weights the host's own has too; it takes sizes, ranges and number formats from them.
    build(dtype, device) makes the network; pixel(dtype) are the bytes that a pixel of the result takes to decode.
    """
    vae = comfy.sd.VAE(sd=weights)
    offload_device = memory.vae_offload_device()
    vae.first_stage_model = build(vae.vae_dtype, offload_device)
    vae.patcher = patcher_of(vae.first_stage_model, vae.device, offload_device)
    vae.size = None
    cells = vae.upscale_ratio**2
    vae.memory_used_decode = lambda shape, dtype: shape[-2] * shape[-1] * cells * pixel(dtype)
    return vae


class Progress:
    """Callback of a run: the host's bar, a line of text on the node, a preview a step, and events for our page script.

    steps: of sampling, 0 if there is none. experts and noise: of each step, for the picture of the plan.
    """

    def __init__(self, experts: Sequence[int] = (), noise: Sequence[float] = ()) -> None:
        self._experts, self._noise = list(experts), list(noise)
        self._bar = comfy.utils.ProgressBar(1)
        self._node = _node_on_page()
        self._encodes = False
        self._seen = ("", 0)  # phase and step
        self._sent = 0.0

    def __call__(self, event: Any) -> None:
        self._encodes |= event.phase == "encode"
        before = event.tiles * (event.step - 1 + self._encodes) if event.phase == "sample" else 0
        total = event.tiles * (len(self._experts) + self._encodes) if event.phase != "decode" else event.tiles
        fresh = (event.phase, event.step) != self._seen
        now = time.monotonic()
        if not fresh and now - self._sent < PAUSE:
            return
        self._seen, self._sent = (event.phase, event.step), now
        preview = None
        if fresh and event.preview is not None:
            preview = ("JPEG", event.preview(), PREVIEW_SIDE)
        self._bar.update_absolute(before + event.tile - 1, max(total, 1), preview)
        self._tell(event, fresh)

    def done(self) -> None:
        """The bar is full."""
        self._bar.update_absolute(self._bar.total)
        server = PromptServer.instance
        server.send_sync("moesr.step", {"node": self._node, "phase": "done"}, server.client_id)

    def _tell(self, event: Any, fresh: bool) -> None:
        at = {"encode": "reading the image", "decode": "decoding"}.get(event.phase)
        at = at or f"step {event.step}/{event.steps}, expert {event.expert}"
        server = PromptServer.instance
        server.send_progress_text(f"tile {event.tile}/{event.tiles}, {at}", self._node, server.client_id)
        data = {"node": self._node, "phase": event.phase, "step": event.step, "tile": event.tile, "tiles": event.tiles}
        if fresh:
            data |= {"experts": self._experts, "noise": self._noise}
        server.send_sync("moesr.step", data, server.client_id)


def _node_on_page() -> str:
    """The id of the node at work, or of the node on the page that it is part of."""
    context = get_executing_context()
    if context is None:
        return ""
    try:
        return str(get_progress_state().dynprompt.get_display_node_id(context.node_id))
    except Exception:  # the host's book-keeping of node ids changes; no reason to lose a picture
        return str(context.node_id)


def number_format(parameters: int, names: dict[str, torch.dtype]) -> str:
    """The name of the number format that the host would choose for a network of so many parameters."""
    supported = [torch.float16, torch.bfloat16, torch.float32]
    chosen = memory.unet_dtype(memory.get_torch_device(), parameters, supported_dtypes=supported)
    return next((name for name, dtype in names.items() if dtype == chosen), "fp16")


def model_folders() -> list[str]:
    """Where the host keeps our models, extra_model_paths.yaml included."""
    default = os.path.join(folder_paths.models_dir, FOLDER)
    if default not in folder_paths.folder_names_and_paths.get(FOLDER, ([],))[0]:
        folder_paths.add_model_folder_path(FOLDER, default)
    paths, suffixes = folder_paths.folder_names_and_paths[FOLDER]
    if SUFFIXES - set(suffixes):
        folder_paths.folder_names_and_paths[FOLDER] = (paths, {*suffixes, *SUFFIXES})
    return folder_paths.get_folder_paths(FOLDER)


def schema(node_id: str, inputs: list[Any], outputs: list[Any], **more: Any) -> Any:
    """The host's schema of a node, whose words are those of locales/en, without fields that this host does not know."""
    words = _words()[node_id]
    described = [(put, words["inputs"][put.id]) for put in inputs]
    described += [(put, words["outputs"][str(i)]) for i, put in enumerate(outputs)]
    for put, said in described:
        put.display_name, put.tooltip = said["name"], said["tooltip"]
    more |= {"display_name": words["display_name"], "description": words["description"]}
    known = {f.name for f in fields(io.Schema)}
    more = {name: value for name, value in more.items() if name in known}
    return io.Schema(node_id=node_id, inputs=inputs, outputs=outputs, **more)


@lru_cache
def _words() -> dict[str, Any]:
    path = Path(__file__).parent.parent / "locales" / "en" / "nodeDefs.json"
    return json.loads(path.read_text(encoding="utf-8"))
