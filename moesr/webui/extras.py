"""MoESR in the Extras tab, with controls of its own."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from ..service.job import Stopped
from ..service.settings import CHOICES, checked
from ..ui.compat import gradio, make
from ..ui.handlers import LARGEST_SCALE, MOST_STEPS
from . import webui_api
from .engine import engine, models
from .infotext import facts
from .run import upscale_now

log = logging.getLogger(__name__)


class MoESRExtras(webui_api.scripts_postprocessing.ScriptPostprocessing):
    """One run on each picture, after the host's own upscaling. Off until it is opened."""

    name = "MoESR"
    order = 1100

    def ui(self) -> dict[str, Any]:
        """Controls by the names of process()'s arguments."""
        gr = gradio()
        default = engine().default()
        with webui_api.ui_components.InputAccordion(False, label="MoESR", elem_id="extras_moesr") as enabled:
            with webui_api.ui_components.FormRow():
                model = make(gr.Dropdown, list(models()), value=default, label="Model", elem_id="extras_moesr_model")
                scale = make(
                    gr.Slider, 1, LARGEST_SCALE, value=engine().models.config(default).scale, step=0.25,
                    label="Scale", elem_id="extras_moesr_scale",
                )  # fmt: skip
            with webui_api.ui_components.FormRow():
                steps = make(
                    gr.Slider, 0, MOST_STEPS, value=0, step=1, label="Steps, 0 for the model's own",
                    elem_id="extras_moesr_steps",
                )  # fmt: skip
                fidelity = make(
                    gr.Slider, 0, 1, value=1, step=0.05, label="Fidelity to the input", elem_id="extras_moesr_fidelity"
                )
            with webui_api.ui_components.FormRow():
                color_fix = make(
                    gr.Radio, list(CHOICES["color_fix"]), value="adain", label="Colour fix", elem_id="extras_moesr_fix"
                )
                seed = make(gr.Number, value=0, precision=0, label="Seed", elem_id="extras_moesr_seed")
                wrap = make(gr.Checkbox, value=False, label="Seamless texture", elem_id="extras_moesr_wrap")
        return {
            "enabled": enabled,
            "model": model,
            "scale": scale,
            "steps": steps,
            "fidelity": fidelity,
            "color_fix": color_fix,
            "seed": seed,
            "wrap": wrap,
        }

    def process_firstpass(self, pp: Any, enabled: bool = False, scale: float | None = None, **_: Any) -> None:
        """Tells other scripts the size to come."""
        if enabled and scale:
            width, height = pp.shared.target_width or pp.image.width, pp.shared.target_height or pp.image.height
            pp.shared.target_width, pp.shared.target_height = int(width * scale + 0.5), int(height * scale + 0.5)

    def process(self, pp: Any, enabled: bool = False, **values: Any) -> None:
        """Replaces the picture. Raises MoESRError; interrupted, the picture stays as it was."""
        if not enabled:
            return
        # The API leaves out what it does not know of, and None stands for that.
        given = {name: value for name, value in values.items() if value is not None}
        given = {"model": engine().default(), **given}
        given["steps"] = given.get("steps") or None
        given["seed"] = max(0, int(given.get("seed", 0)))
        settings = checked(given)
        config = engine().models.config(settings.model)
        settings = replace(settings, scale=settings.scale or config.scale, steps=settings.steps or config.steps)
        try:
            pp.image = upscale_now(pp.image, settings)
        except Stopped:
            log.info("MoESR: interrupted; this picture stays as it was")
            return
        pp.info.update(facts(settings, engine().models.digest(settings.model)))
