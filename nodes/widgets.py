"""Inputs that several nodes have. What an artist reads about them is in locales/."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .comfyui import io
from .model import MODEL

CATEGORY = "image/upscaling"
#: What people type who look for such a node; newer hosts search these too.
ALIASES = ("moesr", "upscale", "upscaler", "super resolution", "superres", "enlarge", "enhance", "diffusion upscale")
SAMPLERS = ("auto", "ddim", "ddpm", "ddpm_large", "dpmpp_2m")
COLOUR_FIXES = ("adain", "wavelet", "none")
BATCH_SEEDS = ("per image", "same for all")


def listed(widget: str, value: str, options: Sequence[str]) -> None:
    """Raises SettingError that names the widget if a value is none of its options. Older hosts do not look."""
    if value not in options:
        from ..moesr.errors import SettingError

        raise SettingError(f"{widget}: there is no {value}; choose one of {', '.join(options)}")


def model() -> Any:
    """The model from a Loader."""
    return MODEL.Input("model")


def seed() -> Any:
    """The seed, with the host's control after generate."""
    return io.Int.Input("seed", default=0, min=0, max=2**64 - 1, control_after_generate=True)


def steps() -> Any:
    """The number of steps, 0 for the model's own."""
    return io.Int.Input("steps", default=0, min=0, max=1000)


def sampler() -> Any:
    """The sampler."""
    return io.Combo.Input("sampler", options=list(SAMPLERS), default="auto")


def scale(default: float = 0.0, **more: Any) -> Any:
    """The enlargement, 0 for the model's own (unless a `min` forbids it)."""
    return io.Float.Input(
        "scale", **{"default": default, "min": 0.0, "max": 16.0, "step": 0.25, "round": 0.001, **more}
    )


def fidelity() -> Any:
    """The decoder's weight of the source image."""
    return io.Float.Input("fidelity", default=1.0, min=0.0, max=2.0, step=0.05)


def tile() -> Any:
    """The side of a tile, 0 for automatic."""
    return io.Int.Input("tile", default=0, min=0, max=16384, step=64)


def wrap(**more: Any) -> Any:
    """Whether opposite borders are neighbours."""
    return io.Boolean.Input("wrap", default=False, **more)
