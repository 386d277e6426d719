"""What generations that used MoESR say of it. No controls: hires-fix and img2img only know an upscaler's name."""

from __future__ import annotations

from typing import Any

from . import decoder, webui_api
from .infotext import line
from .run import option_settings
from .upscaler import is_ours


class MoESRGeneration(webui_api.scripts.Script):
    """Adds to the generation parameters; it changes no pixel."""

    def title(self) -> str:
        """Its name for the host."""
        return "MoESR"

    def show(self, is_img2img: bool) -> Any:
        """Always at work, never seen."""
        return webui_api.scripts.AlwaysVisible

    def process(self, p: Any, *_: Any) -> None:
        """Before sampling."""
        p.extra_generation_params.update(decoder.facts(p.sd_model))
        used = p.hr_upscaler if getattr(p, "enable_hr", False) else None
        if is_ours(used):
            settings = option_settings("", None)
            told = {"steps": settings.steps or "model's", "seed": settings.seed, "fidelity": settings.fidelity}
            p.extra_generation_params["MoESR hires"] = line({**told, "colour fix": settings.color_fix})
