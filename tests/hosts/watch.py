"""A pack of the tests: GET /watch tells what the host's memory manager keeps, and which of our models are alive.

With WATCH_CARD set, the processor plays a graphics card with that many bytes of memory: the host's manager, which does
nothing on a processor, has to make room. Only its figures of free memory are made up.
"""
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

import gc
import os
from typing import Any

import comfy.model_management as memory
import torch
from aiohttp import web
from server import PromptServer

NODE_CLASS_MAPPINGS: dict[str, Any] = {}

CARD = int(os.environ.get("WATCH_CARD", "0"))


def state() -> dict[str, Any]:
    """What is loaded, in bytes, and the names of our models that exist."""
    loaded = [
        {"network": type(kept.model.model).__name__, "size": kept.model_memory(), "loaded": kept.model_loaded_memory()}
        for kept in memory.current_loaded_models
        if kept.model is not None
    ]
    gc.collect()
    models = [o for o in gc.get_objects() if type(o).__name__ == "Model" and type(o).__module__.endswith("nodes.model")]
    return {"loaded": loaded, "models": [model.hosted.name for model in models]}


@PromptServer.instance.routes.get("/watch")
async def watch(_: Any) -> Any:
    return web.json_response(state())


@PromptServer.instance.routes.post("/watch/unload")
async def unload(_: Any) -> Any:
    memory.unload_all_models()
    return web.json_response({})


@PromptServer.instance.routes.post("/watch/fail")
async def fail(request: Any) -> Any:
    """The next convolutions on our networks run out of memory, so many times."""
    left = (await request.json())["times"]
    convolve = torch.nn.Conv2d._conv_forward

    def failing(*arguments: Any) -> Any:
        nonlocal left
        if left:
            left -= 1
            raise memory.OOM_EXCEPTION("the tests wanted it")
        torch.nn.Conv2d._conv_forward = convolve
        return convolve(*arguments)

    torch.nn.Conv2d._conv_forward = failing
    return web.json_response({})


def pretend_card() -> None:
    """Another name of the processor, which the host takes for a card."""
    card = torch.device("cpu", 0)

    def free(device: Any = None, torch_free_too: bool = False) -> Any:
        used = sum(kept.model_loaded_memory() for kept in memory.current_loaded_models if kept.device == card)
        left = max(0, CARD - used) if device in (None, card) else 2**34
        return (left, 0) if torch_free_too else left

    memory.get_torch_device = lambda: card
    memory.get_free_memory = free
    # What the host keeps for the screen and for others is more than this card has.
    memory.minimum_inference_memory = lambda: 0
    memory.extra_reserved_memory = lambda: 0


if CARD:
    pretend_card()
