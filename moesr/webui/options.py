"""Our page in the host's settings."""

from __future__ import annotations

from typing import Any

from ..service.settings import CHOICES
from ..ui.compat import gradio
from ..ui.handlers import MOST_STEPS, TILES
from . import webui_api
from .engine import decoders, engine, models

SECTION = ("moesr", "MoESR", "postprocessing")
CHECKPOINT = ("when memory is short", "always", "never")


def add() -> None:
    """The callback of on_ui_settings."""
    gr = gradio()
    of = webui_api.DEFAULTS

    def info(name: str, label: str, component: Any = None, args: Any = None, **more: Any) -> Any:
        made = webui_api.shared.OptionInfo(of[name], label, component, args, section=SECTION[:2], **more)
        made.category_id = SECTION[2]
        return made

    tiny = {"minimum": 0, "maximum": 1, "step": 0.05}
    page = {
        "moesr_model": info(
            "moesr_model", "Model that the tab and Extras start with", gr.Dropdown, lambda: {"choices": list(models())}
        ).needs_reload_ui(),
        "moesr_steps": info(
            "moesr_steps", "Steps of the upscalers", gr.Slider, {"minimum": 0, "maximum": MOST_STEPS, "step": 1}
        ).info("in hires-fix, img2img, SD upscale and Extras' lists; 0 is the model's own number"),
        "moesr_fidelity": info("moesr_fidelity", "Fidelity of the upscalers", gr.Slider, tiny).info(
            "0 lets the decoder invent, 1 holds it to the input"
        ),
        "moesr_color_fix": info(
            "moesr_color_fix", "Colour fix of the upscalers", gr.Radio, {"choices": list(CHOICES["color_fix"])}
        ),
        "moesr_seed": info("moesr_seed", "Seed of the upscalers", gr.Number, {"precision": 0}),
        "moesr_tile": info("moesr_tile", "Tile of the upscalers", gr.Dropdown, {"choices": list(TILES)}).info(
            "side in output pixels; auto is what fits into memory, 0 is none"
        ),
        "moesr_dtype": info(
            "moesr_dtype", "Precision", gr.Radio, {"choices": ["auto", "fp32", "bf16", "fp16"]}
        ).needs_reload_ui(),
        "moesr_keep": info("moesr_keep", "Keep the model in system memory after a run").info(
            "the next run starts sooner"
        ),
        "moesr_save": info("moesr_save", "Save results of the MoESR tab where those of Extras are saved"),
        "moesr_decoder": info(
            "moesr_decoder", "Decode Stable Diffusion 1.5 generations with", gr.Dropdown,
            lambda: {"choices": decoders()}, infotext="MoESR decoder",
        ).info("a frequency-compensated KL f8 decoder, fa_vae.pth in models/MoESR; None is the checkpoint's own"),
    }  # fmt: skip
    if not webui_api.FORGE:
        page["moesr_checkpoint"] = info(
            "moesr_checkpoint", "Move the checkpoint out of the GPU while MoESR works", gr.Radio,
            {"choices": list(CHECKPOINT)},
        ).info("it comes back by itself")  # fmt: skip
    for name, made in page.items():
        webui_api.shared.opts.add_option(name, made)
    engine()  # says now, not in the middle of a run, what is wrong with our folders
