"""A picture at once, in a job that the host has begun: for the upscaler and for Extras."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from ..hosting.model_runner import use_model
from ..page.controls import read_form
from ..progress import Event
from ..settings import result_size
from . import webui_api
from .opened_models import engine


def upscale_now(image: Image.Image, model: str, settings: Mapping[str, Any]) -> tuple[Image.Image, dict[str, Any]]:
    """The image, `scale` times as large to the nearest pixel, and the record of the run.

    Modes L, RGB and RGBA stay as they are. Its progress is the host's. Raises Stopped if the host's user interrupts,
    and MoESRError.
    """
    scale = settings.get("scale") or engine().facts.read_config(model).scale
    side = max(result_size(image.height, image.width, scale))
    # The host means pixels as they lie there, whatever EXIF says of turning them.
    pixels = np.asarray(image) if image.mode in ("L", "RGB", "RGBA") else image
    with webui_api.keep_progress(), use_model(engine(), model, side=side, check=webui_api.check) as opened:
        result = opened.upscale(pixels, settings, _show)
    larger = result.picture if isinstance(result.picture, Image.Image) else Image.fromarray(result.picture)
    if "icc_profile" in image.info:
        larger.info["icc_profile"] = image.info["icc_profile"]
    return larger, result.record


def read_options() -> dict[str, Any]:
    """What our page of the host's settings says, for the doors that have no controls of their own."""
    return read_form({name: webui_api.get_option(f"moesr_{name}") for name in webui_api.RUN_OPTIONS})


def _show(event: Event) -> None:
    webui_api.show_progress(event.fraction, f"MoESR: {event.text}")
