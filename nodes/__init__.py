"""ComfyUI's nodes, one file each. Only `comfyui` imports ComfyUI; `model` is what travels between the nodes."""

from __future__ import annotations

from typing import Any

from .as_model import MoESRAsModel
from .as_upscale_model import MoESRAsUpscaleModel
from .as_vae import MoESRFCDAsVAE
from .comfyui import ComfyExtension
from .decode import FrequencyCompensatedDecode
from .invented_detail import MoESRInventedDetail
from .loader import MoESRLoader
from .sampler import MoESRSampler
from .timeline import MoESRExpertTimeline
from .upscale import MoESRUpscale

NODES = [
    MoESRUpscale,
    MoESRLoader,
    MoESRSampler,
    FrequencyCompensatedDecode,
    MoESRAsUpscaleModel,
    MoESRFCDAsVAE,
    MoESRAsModel,
    MoESRExpertTimeline,
    MoESRInventedDetail,
]


class MoESRExtension(ComfyExtension):
    """The pack."""

    async def get_node_list(self) -> list[Any]:
        return list(NODES)


async def comfy_entrypoint() -> MoESRExtension:
    """What ComfyUI calls to get the pack."""
    return MoESRExtension()
