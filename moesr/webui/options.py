"""Our page in the host's settings."""

from __future__ import annotations

from functools import partial
from typing import Any

from ..page.controls import NUMBERS, describe_control
from ..page.gradio_versions import gradio
from ..settings import LOADING
from . import webui_api
from .opened_models import engine, list_decoders, list_models

SECTION = ("moesr", "MoESR", "postprocessing")
CHECKPOINT = ("when memory is short", "always", "never")


def add() -> None:
    """The callback of on_ui_settings."""
    gr = gradio()
    page = {
        "moesr_model": _option(
            "moesr_model", "Model that the tab and Extras start with", gr.Dropdown,
            lambda: {"choices": list(list_models())},
        ).needs_reload_ui(),
    }  # fmt: skip
    for name in webui_api.RUN_OPTIONS:
        key, (kind, options) = f"moesr_{name}", describe_control(name)
        if name == "steps":
            options["minimum"] = 0  # stands for the model's own
        if name == "fidelity":
            kind, options["choices"] = "Dropdown", ["auto", *NUMBERS[name]]
            options = {part: options[part] for part in ("label", "value", "info", "choices")}
        label, _, info = (options.pop(part) for part in ("label", "value", "info"))
        # The host hands these options to Gradio's updates too, and Gradio 3 refuses this one there.
        fixed = {part: options.pop(part) for part in ("allow_custom_value",) if part in options}
        component = partial(getattr(gr, kind), **fixed)
        page[key] = _option(key, f"{label} of the upscalers", component, options).info(info)
    page |= {
        "moesr_dtype": _option(
            "moesr_dtype", "Precision", gr.Radio, {"choices": list(LOADING["dtype"].choices)}
        ).needs_reload_ui(),
        "moesr_keep": _option("moesr_keep", "Keep the model in system memory after a run").info(
            "the next run starts sooner"
        ),
        "moesr_save": _option("moesr_save", "Save results of the MoESR tab where those of Extras are saved"),
        "moesr_decoder": _option(
            "moesr_decoder", "Decode Stable Diffusion 1.5 generations with", gr.Dropdown,
            lambda: {"choices": list_decoders()}, infotext="MoESR decoder",
        ).info("a frequency-compensated KL f8 decoder, fa_vae.pth in models/MoESR; None is the checkpoint's own"),
    }  # fmt: skip
    if not webui_api.FORGE:
        page["moesr_checkpoint"] = _option(
            "moesr_checkpoint", "Move the checkpoint out of the GPU while MoESR works", gr.Radio,
            {"choices": list(CHECKPOINT)},
        ).info("it comes back by itself")  # fmt: skip
    for name, option in page.items():
        webui_api.shared.opts.add_option(name, option)
    engine()  # says now, not in the middle of a run, what is wrong with our folders


def _option(name: str, label: str, component: Any = None, args: Any = None, **more: Any) -> Any:
    option = webui_api.shared.OptionInfo(webui_api.DEFAULTS[name], label, component, args, section=SECTION[:2], **more)
    option.category_id = SECTION[2]
    return option
