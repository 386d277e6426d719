"""What generations that used MoESR say of it. No controls: hires-fix and img2img only know an upscaler's name."""

from __future__ import annotations

from typing import Any

from . import sd15_decoder, webui_api
from .infotext import join_facts
from .upscaler import is_ours

_OPTIONS = ("steps", "seed", "fidelity", "color_fix")


class MoESRGeneration(webui_api.scripts.Script):
    """Adds to the generation parameters; it changes no pixel."""

    def title(self) -> str:
        return "MoESR"

    def show(self, is_img2img: bool) -> Any:
        return webui_api.scripts.AlwaysVisible

    def process(self, p: Any, *_: Any) -> None:
        p.extra_generation_params.update(sd15_decoder.list_facts(p.sd_model))
        used = p.hr_upscaler if getattr(p, "enable_hr", False) else None
        if is_ours(used):
            words = {"color_fix": "colour fix"}
            facts = {words.get(name, name): webui_api.get_option(f"moesr_{name}") for name in _OPTIONS}
            facts["steps"] = facts["steps"] or "model's"
            p.extra_generation_params["MoESR hires"] = join_facts(facts)
