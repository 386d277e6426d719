"""All that is asked of ComfyUI: memory, progress, cancel, folders, schemas. No other file imports ComfyUI."""
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.model_base
import comfy.model_management as memory
import comfy.model_patcher
import comfy.ops
import comfy.patcher_extension
import comfy.sd
import comfy.supported_models_base
import comfy.utils
import comfy_api.latest
import comfy_execution.graph_utils
import folder_paths
import torch
from comfy.cli_args import LatentPreviewMethod, args
from comfy_execution.progress import get_progress_state
from comfy_execution.utils import get_executing_context
from PIL import Image
from server import PromptServer
from torch import nn

from ..moesr.errors import SettingError
from ..moesr.hosting.model_facts import Plan
from ..moesr.hosting.networks import Keeper
from ..moesr.progress import Event, estimate_seconds_left
from ..moesr.settings import LOADING, SETTINGS

if TYPE_CHECKING:
    from ..moesr.hosting.sigma_model import SigmaModel

ComfyExtension: Any = comfy_api.latest.ComfyExtension
GraphBuilder: Any = comfy_execution.graph_utils.GraphBuilder
io: Any = comfy_api.latest.io

FOLDER = "moesr"
SUFFIXES = {".safetensors", ".ckpt", ".pth", ".pt"}
BAR_LENGTH = 1000
#: Seconds between messages to the page, at least; a new step is always told.
PAUSE = 0.05

#: Names of inputs that are rarely touched.
ADVANCED = tuple(s.name for s in (*SETTINGS.values(), *LOADING.values()) if s.advanced)

#: Layers that the host has a kind of its own of, whose weights it can leave in system memory.
_LAYERS: dict[type[nn.Module], Any] = {
    kind: getattr(comfy.ops.disable_weight_init, kind.__name__)
    for kind in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.GroupNorm, nn.LayerNorm)
}


class _Whole(comfy.model_patcher.ModelPatcher):
    """The host's patcher of before dynamic VRAM, which would leave layers that it cannot stream on the wrong device.

    Loaded whole, also with --lowvram and --novram: an expert is small beside what it works on.
    """

    def partially_load(self, device_to: Any, extra_memory: float = 0, *args: Any, **kwargs: Any) -> Any:
        return super().partially_load(device_to, extra_memory if extra_memory < 0 else 1e32, *args, **kwargs)


def make_patcher(network: nn.Module, device: torch.device, offload_device: torch.device) -> Any:
    """The host's patcher of a network, of the kind that the host has chosen for this machine."""
    from ..moesr.networks.frequency import find_folded_layers

    # Layers whose weights we read ourselves stay torch's own, which dynamic VRAM copies whole: weights of the host's
    # layers report the CPU, and cannot be folded.
    folded = set(find_folded_layers(network))
    for layer in network.modules():
        if type(layer) in _LAYERS and layer not in folded:
            layer.__class__ = _LAYERS[type(layer)]
        if next(layer.parameters(recurse=False), None) is not None:
            layer.register_forward_pre_hook(lambda *_: memory.throw_exception_if_processing_interrupted())
    # Late: the host decides for dynamic VRAM after the packs' files may have been imported.
    kind = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    return (_Whole if kind is comfy.model_patcher.ModelPatcher else kind)(network, device, offload_device)


class ComfyKeeper(Keeper):
    """ComfyUI's memory manager as the `Keeper` of our networks (moesr/hosting): a handle is a patcher of the host."""

    def __init__(self) -> None:
        super().__init__(memory.get_torch_device(), memory.unet_offload_device())

    def choose_dtype(self, parameters: int, *, decoder: bool) -> torch.dtype:
        """The host's choice for a network of that size. Decoders of SD 1.5 latents overflow in fp16, as its VAEs do."""
        if decoder:
            return memory.vae_dtype(self.device, [torch.bfloat16])
        supported = [torch.float16, torch.bfloat16, torch.float32]
        chosen = memory.unet_dtype(self.device, parameters, supported_dtypes=supported)
        return chosen if chosen in supported else torch.float16  # the host has an option for fp8

    def register(self, network: nn.Module) -> Any:
        return make_patcher(network, self.device, self.offload_device)

    def load(self, handles: Sequence[Any], *, others: Sequence[Any], working: int) -> None:
        memory.load_models_gpu(list(handles), memory_required=working, force_full_load=True)

    def make_room(self, needed: int) -> None:
        if self.device.type != "cpu":
            memory.free_memory(needed, self.device)

    def measure_free_memory(self) -> int:
        """What the host counts as free, without what it keeps for other programs."""
        return int(memory.get_free_memory(self.device)) - int(memory.extra_reserved_memory())

    def unload(self, handles: Sequence[Any]) -> None:
        memory.unload_all_models()
        memory.soft_empty_cache()

    def check(self) -> None:
        memory.throw_exception_if_processing_interrupted()

    def is_out_of_memory(self, error: BaseException) -> bool:
        if hasattr(memory, "is_oom") and memory.is_oom(error):
            return True
        # Where torch has no such error, the host's name stands for every Exception.
        kind = memory.OOM_EXCEPTION
        return (kind is not Exception and isinstance(error, kind)) or super().is_out_of_memory(error)


def make_vae(
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
    vae.patcher = make_patcher(vae.first_stage_model, vae.device, offload_device)
    vae.size = None
    cells = vae.upscale_ratio**2
    vae.memory_used_decode = lambda shape, dtype: shape[-2] * shape[-1] * cells * pixel(dtype)
    return vae


class _NoNetwork(nn.Module):
    dtype = torch.float32


class _HostModel(comfy.model_base.BaseModel):
    """What the host's samplers ask for x0 of: `denoise`, at sigmas of `SigmaModel`. Its networks are not its own."""

    def __init__(self, images: SigmaModel) -> None:
        config = comfy.supported_models_base.BASE({"disable_unet_model_creation": True})
        config.latent_format.latent_channels = images.shape[1]
        super().__init__(config, comfy.model_base.ModelType.EPS)
        self.diffusion_model = _NoNetwork()
        self.model_sampling.set_sigmas(images.sigmas)
        self.images = images

    def apply_model(self, x: torch.Tensor, t: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        shape = self.images.shape
        if x.shape[1:] != shape[1:] or len(x) % shape[0]:
            raise SettingError("latent_image: connect the latent of MoESR as Model; another one has another size")
        # Once for all conditions, since all are empty.
        return self.images.denoise(x[: shape[0]], t[0].item()).repeat(len(x) // shape[0], 1, 1, 1)

    def process_latent_in(self, latent: torch.Tensor) -> torch.Tensor:
        return self.images.from_latent(latent)

    def process_latent_out(self, latent: torch.Tensor) -> torch.Tensor:
        return self.images.to_latent(latent)

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        return {}

    def memory_required(self, *args: Any, **kwargs: Any) -> int:
        return 0


def make_model(images: SigmaModel, begin_run: Callable[[], None]) -> Any:
    """The host's MODEL of images for its own samplers. begin_run: called before each run of one."""
    device = memory.get_torch_device()
    patcher = comfy.model_patcher.ModelPatcher(_HostModel(images), device, memory.unet_offload_device())

    def run(sample: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        begin_run()
        return sample(*args, **kwargs)

    patcher.add_wrapper(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, run)
    return patcher


class Progress:
    """Callback of a run: the host's bar, a preview per step, and events from which web/comfy/moesr.js makes the status.

    start, end: the part of a whole run that the node does, as fractions of it. plan: to draw; None if it only decodes.
    """

    def __init__(self, start: float, end: float, plan: Plan | None = None) -> None:
        self._start, self._end = start, end
        self._plan = {"experts": plan.experts, "noise": plan.noise} if plan else {}
        self._bar = comfy.utils.ProgressBar(BAR_LENGTH)
        self._node = _find_node_on_page()
        self._last_step = ("", 0, 0)  # phase, image and step
        self._begun = self._last_time = time.monotonic()

    def __call__(self, event: Event) -> None:
        step = (event.phase, event.image, event.step)
        is_new_step, now = step != self._last_step, time.monotonic()
        if not is_new_step and not event.note and now - self._last_time < PAUSE:
            return
        self._last_step, self._last_time = step, now
        preview = None
        if is_new_step and event.preview is not None and _wants_previews():
            preview = ("JPEG", event.preview(), args.preview_size)
        # Of the pictures at work, then of all.
        fraction = ((event.fraction - event.done) / event.share - self._start) / (self._end - self._start)
        fraction = min(1.0, max(0.0, event.done + event.share * fraction))
        self._bar.update_absolute(round(BAR_LENGTH * fraction), BAR_LENGTH, preview)
        names = ("phase", "step", "steps", "expert", "tile", "tiles", "image", "images", "note")
        data = {name: getattr(event, name) for name in names}
        left = estimate_seconds_left(self._begun, fraction)
        if left is not None:
            data["left"] = round(left)
        self._send(data | (self._plan if is_new_step else {}))

    def finish(self, pictures: torch.Tensor | None = None) -> None:
        """The bar is full. pictures: the result [B, H, W, C], the first of which takes the place of the previews."""
        preview = None
        if pictures is not None and _wants_previews():
            fewer = math.ceil(max(pictures.shape[1:3]) / args.preview_size)
            small = pictures[0, ::fewer, ::fewer, :3].clamp(0, 1).mul(255).round().byte().cpu()
            preview = ("JPEG", Image.fromarray(small.numpy()), args.preview_size)
        self._bar.update_absolute(BAR_LENGTH, BAR_LENGTH, preview)
        self._send({"phase": "done"})

    def _send(self, data: dict[str, Any]) -> None:
        server = PromptServer.instance
        server.send_sync("moesr.step", {**self._node, **data}, server.client_id)


def _wants_previews() -> bool:
    return args.preview_method != LatentPreviewMethod.NoPreviews


def _find_node_on_page() -> dict[str, str]:
    """Id and type of the node at work, or of the node on the page that it is part of."""
    try:
        prompt, node = get_progress_state().dynprompt, get_executing_context().node_id
        node = prompt.get_display_node_id(node)
        return {"node": str(node), "type": prompt.get_node(node)["class_type"]}
    except Exception:  # the host's book-keeping of node ids changes; no reason to lose a picture
        return {}


def to_output(values: torch.Tensor) -> torch.Tensor:
    """Values as the host wants them between nodes: where --gpu-only and --fp16-intermediates say."""
    find_dtype = getattr(memory, "intermediate_dtype", lambda: values.dtype)
    return values.to(memory.intermediate_device(), find_dtype())


def read_prompt_inputs(link: str | None = None) -> dict[str, Any]:
    """The inputs of the node at work as the prompt has them, or of the node that its input `link` comes from.

    The host leaves out inputs that the schema does not know. Empty if the host does not tell.
    """
    try:
        prompt, node = get_progress_state().dynprompt, get_executing_context().node_id
        if link is not None:
            node = prompt.get_node(node)["inputs"][link][0]
        return dict(prompt.get_node(node)["inputs"])
    except Exception:  # see above
        return {}


def find_model_folders() -> list[str]:
    """Where the host keeps our models, extra_model_paths.yaml included."""
    default = os.path.join(folder_paths.models_dir, FOLDER)
    if default not in folder_paths.folder_names_and_paths.get(FOLDER, ([],))[0]:
        folder_paths.add_model_folder_path(FOLDER, default)
    paths, suffixes = folder_paths.folder_names_and_paths[FOLDER]
    if SUFFIXES - set(suffixes):
        folder_paths.folder_names_and_paths[FOLDER] = (paths, {*suffixes, *SUFFIXES})
    return folder_paths.get_folder_paths(FOLDER)


def make_schema(
    node_id: str, inputs: list[Any], outputs: list[Any], advanced: Sequence[str] = ADVANCED, **more: Any
) -> Any:
    """The host's schema of a node, whose words are those of locales/en, without fields that this host does not know.

    advanced: names of inputs that are rarely touched.
    """
    words = _read_words()[node_id]
    # An input whose choice decides about others has their words as size_width, which is how the page looks them up.
    described = [(put, words["inputs"][put.id]) for put in inputs]
    for put in inputs:
        inner = [each for option in getattr(put, "options", ()) for each in getattr(option, "inputs", ())]
        described += [(each, words["inputs"][f"{put.id}_{each.id}"]) for each in inner]
    described += [(put, words["outputs"][str(i)]) for i, put in enumerate(outputs)]
    for put, text in described:
        put.display_name, put.tooltip = text["name"], text["tooltip"]
        if put.id in advanced and hasattr(put, "advanced"):  # newer hosts fold it away
            put.advanced = True
    more |= {"display_name": words["display_name"], "description": words["description"]}
    known = {f.name for f in fields(io.Schema)}
    more = {name: value for name, value in more.items() if name in known}
    return io.Schema(node_id=node_id, category="image/upscaling", inputs=inputs, outputs=outputs, **more)


@lru_cache
def _read_words() -> dict[str, Any]:
    path = Path(__file__).parent.parent / "locales" / "en" / "nodeDefs.json"
    return json.loads(path.read_text(encoding="utf-8"))
