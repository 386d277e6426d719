"""A picture at once, in a job that the host has begun: for the upscaler and for Extras."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from ..pipeline import upscale
from ..progress import Event
from ..service.pace import Pace
from ..service.settings import Settings
from ..service.stopping import StoppableHost, stoppable
from . import webui_api
from .engine import engine

log = logging.getLogger(__name__)

_PACE = Pace()


def upscale_now(image: Image.Image, settings: Settings) -> Image.Image:
    """The image, `settings.scale` times as large to the nearest pixel; host modes L, RGB and RGBA stay as they are.

    Its progress is the host's. Raises Stopped if the host's user interrupts, and MoESRError.
    """
    scale = engine().models.config(settings.model).scale if settings.scale is None else settings.scale
    asked = StoppableHost(engine())
    with (
        webui_api.keep_progress(),
        engine().run(settings.model, int(max(image.size) * scale + 0.5)),
        stoppable(asked, webui_api.check),
    ):
        webui_api.check()
        model = engine().model(settings.model, asked)
        steps = model.config.steps if settings.steps is None else settings.steps
        run = _PACE.run(settings.model, image.width * image.height * scale**2, steps)
        result = upscale(model, _pixels(image), **settings.arguments(), callback=_told(run.at))
        run.finished()
    if isinstance(result, np.ndarray):
        result = Image.fromarray(result)
    if "icc_profile" in image.info:
        result.info["icc_profile"] = image.info["icc_profile"]
    return result


def option_settings(model: str, scale: float | None) -> Settings:
    """What our page of the host's settings says, for the doors that have no controls of their own."""
    tile = str(webui_api.get_option("moesr_tile"))
    return Settings(
        model=model,
        scale=scale,
        steps=int(webui_api.get_option("moesr_steps")) or None,
        seed=max(0, int(webui_api.get_option("moesr_seed"))),
        fidelity=float(webui_api.get_option("moesr_fidelity")),
        color_fix=webui_api.get_option("moesr_color_fix"),
        tile=int(tile) if tile.isdigit() else "auto",
    )


def _pixels(image: Image.Image) -> Any:
    """What to upscale: the host means pixels as they lie there, whatever EXIF says of turning them."""
    return np.asarray(image) if image.mode in ("L", "RGB", "RGBA") else image


def _told(share: Callable[[Event], float]) -> Callable[[Event], None]:
    def tell(event: Event) -> None:
        at = f"step {event.step} of {event.steps}, " if event.phase == "sample" else ""
        webui_api.show_progress(share(event), f"MoESR: {at}tile {event.tile} of {event.tiles}")

    return tell
