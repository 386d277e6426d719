"""MoESR in the Extras tab, with controls of its own."""

from __future__ import annotations

import logging
from typing import Any

from ..hosting.model_runner import Stopped
from ..page.controls import list_own_values, make_control, read_form
from ..page.gradio_versions import gradio, make
from . import webui_api
from .infotext import list_facts
from .opened_models import engine, list_models
from .run_in_job import upscale_now

log = logging.getLogger(__name__)

#: Controls in rows.
_ROWS = (("scale",), ("steps", "fidelity"), ("color_fix", "seed"), ("restore", "tile"), ("wrap",))


class MoESRExtras(webui_api.scripts_postprocessing.ScriptPostprocessing):
    """One run on each picture, after the host's own upscaling. Off until it is opened."""

    name = "MoESR"
    order = 1100

    def ui(self) -> dict[str, Any]:
        default = engine().choose_default()
        config = engine().facts.read_config(default)
        own = {**list_own_values(config), "scale": {"value": config.scale}, "restore": {}}
        with webui_api.ui_components.InputAccordion(False, label="MoESR", elem_id="extras_moesr") as enabled:
            model = make(
                gradio().Dropdown, list(list_models()), value=default, label="Model", elem_id="extras_moesr_model"
            )
            controls = {"enabled": enabled, "model": model}
            for row in _ROWS:
                with webui_api.ui_components.FormRow():
                    for name in row:
                        elem_id = f"extras_moesr_{name}"
                        options = {"info": None, **own.get(name, {})}
                        controls[name] = make_control(name, elem_id=elem_id, **options)
        return controls

    def process_firstpass(self, pp: Any, enabled: bool = False, scale: float | None = None, **_: Any) -> None:
        if enabled and scale:
            width, height = pp.shared.target_width or pp.image.width, pp.shared.target_height or pp.image.height
            pp.shared.target_width, pp.shared.target_height = int(width * scale + 0.5), int(height * scale + 0.5)

    def process(self, pp: Any, enabled: bool = False, model: str | None = None, **values: Any) -> None:
        """Replaces the picture. Raises MoESRError; interrupted, the picture stays as it was, and its infotext says so.

        The API leaves out what it does not know of, and None stands for that.
        """
        if not enabled:
            return
        try:
            pp.image, record = upscale_now(pp.image, model or engine().choose_default(), read_form(values))
        except Stopped:
            log.info("MoESR: interrupted; this picture stays as it was")
            pp.info["MoESR"] = "interrupted, not upscaled"
            return
        pp.info.update(list_facts(record))
