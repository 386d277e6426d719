"""MoESR among the host's upscalers: Extras, hires-fix, img2img, SD upscale, and the API's lists."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import SettingError
from ..hosting.model_runner import Stopped
from ..settings import result_size
from . import webui_api
from .infotext import list_facts
from .opened_models import engine, list_models
from .run_in_job import read_options, upscale_now

log = logging.getLogger(__name__)


def make_title(name: str, scale: int) -> str:
    """What the lists call a model. The host finds the scale by the `x4` in it."""
    known = re.search(r"(\d)[xX]|[xX](\d)", name)
    fits = known is not None and str(scale) in (known[1], known[2])
    return f"MoESR {name}" if fits else f"MoESR {name} x{scale}"


@dataclass
class ExtrasRun:
    """The host's own upscaling in Extras, which works on one picture at a time."""

    #: The results of two upscalers are blended.
    blends: bool
    #: What our upscaler says of its result.
    facts: dict[str, Any] = field(default_factory=dict)


#: The one at work, None outside of Extras.
_extras: ExtrasRun | None = None


def process_extras(process: Callable[..., None], pp: Any, **arguments: Any) -> None:
    """In place of `process` of the host's upscaling in Extras: results fit for a blend, and facts in the infotext."""
    global _extras
    first, second = (arguments.get(f"upscaler_{number}_name") for number in (1, 2))
    blends = second not in (None, "None") and bool(arguments.get("upscaler_2_visibility"))
    if not is_ours(first) and not (blends and is_ours(second)):
        process(pp, **arguments)
        return
    _extras = run = ExtrasRun(blends)
    webui_api.forget_upscaled(process)
    try:
        process(pp, **arguments)
    finally:
        _extras = None
        webui_api.forget_upscaled(process)
    pp.info.update(run.facts)


class UpscalerMoESR(webui_api.upscaler.Upscaler):
    """All models of the library. Steps, seed, fidelity and colour fix are those of our page in the host's settings.

    The name of the class makes --moesr-models-path its folder.
    """

    name = "MoESR"

    def __init__(self, dirname: str | None = None) -> None:
        # The host makes a folder below its models for this name.
        super().__init__(True)
        self.model_path = dirname or self.model_path
        self._names: dict[str, str] = {}
        self.scalers = []
        for name, scale in list_models().items():
            path = str(engine().facts.find_path(name))
            self._names[path] = name
            self.scalers.append(webui_api.upscaler.UpscalerData(make_title(name, scale), path, self, scale))

    def upscale(self, img: Image.Image, scale: float, selected_model: str | None = None) -> Image.Image:
        """The image in exactly the asked size, in one run. Interrupted, it is a plain enlargement, as with the host's.

        Raises MoESRError, which the host shows: for a model whose file has gone, for instance.
        """
        height, width = result_size(img.height, img.width, scale)
        larger, facts = img, {}
        if scale >= 1:
            try:
                settings = {**read_options(), "scale": scale}
                larger, record = upscale_now(img, self._find_name(selected_model), settings)
                facts = list_facts(record)
            except Stopped:
                log.info("MoESR: interrupted; this picture is enlarged without a model")
                facts = {"MoESR": "interrupted, enlarged without a model"}
        if _extras is not None:
            _extras.facts |= facts
            if _extras.blends:  # the other upscaler gives what the host asks for: whole eights
                width, height = (max(8, int(side * scale) // 8 * 8) for side in img.size)
        return larger if larger.size == (width, height) else larger.resize((width, height), Image.Resampling.LANCZOS)

    def do_upscale(self, img: Image.Image, selected_model: str | None = None) -> Image.Image:
        """The image at the model's own scale, for extensions that call this by themselves."""
        name = self._find_name(selected_model)
        return self.upscale(img, engine().facts.read_config(name).scale, selected_model)

    def load_model(self, path: str) -> Any:
        """Models are loaded by `upscale`."""

    def _find_name(self, selected: str | None) -> str:
        if selected is None:
            return engine().choose_default()
        name = self._names.get(selected, Path(selected).stem)
        if not Path(selected).exists():
            raise SettingError(f"model {name}: {selected} is not there any more; put it back or press Reload UI")
        return name


def is_ours(name: str | None) -> bool:
    """Whether an upscaler of the host's list is one of ours."""
    return any(data.name == name and isinstance(data.scaler, UpscalerMoESR) for data in webui_api.shared.sd_upscalers)
