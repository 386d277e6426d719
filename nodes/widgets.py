"""Inputs that several nodes have, with the ranges of the table of settings. Their words are in locales/."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from ..moesr.errors import SettingError
from ..moesr.settings import BATCH_SEEDS, SETTINGS
from .comfyui import io
from .model import MODEL

log = logging.getLogger(__name__)

CATEGORY = "image/upscaling"
#: What every node of the pack is found by; newer hosts search these too.
ALIASES = ("moesr", "super resolution", "diffusion upscale")
#: What the node shows for each value of `batch_seed`.
BATCH_SEED_WORDS = dict(zip(("per image", "same for all"), BATCH_SEEDS))


def check_choice(widget: str, value: str, options: Sequence[str]) -> None:
    """Raises SettingError that names the widget if a value is none of its options. Older hosts do not look."""
    if value not in options:
        raise SettingError(f"{widget}: there is no {value}; choose one of {', '.join(options)}")


def drop_unpainted(mask: Any) -> Any:
    """The mask, or None if it is black everywhere: nobody painted one, and Load Image has such an output too."""
    if mask is None or bool((mask > 0).any()):
        return mask
    log.info("MoESR: the mask is black everywhere and is not used")
    return None


def model() -> Any:
    """The model from a Loader."""
    return MODEL.Input("model")


def number(name: str, **changes: Any) -> Any:
    """A setting that is a number. changes: options of the host's input, where a node differs from the table."""
    setting = SETTINGS[name]
    options = {"default": setting.default, "min": setting.minimum, "max": setting.maximum, "step": setting.step}
    kind = io.Int if setting.kind == "int" else io.Float
    return kind.Input(name, **{**options, **changes})


def choice(name: str) -> Any:
    """A setting that is one of some words."""
    return io.Combo.Input(name, options=list(SETTINGS[name].choices), default=SETTINGS[name].default)


def seed() -> Any:
    """The seed, with the host's control after generate."""
    return number("seed", control_after_generate=True)


def steps() -> Any:
    """The number of steps, 0 for the model's own."""
    return number("steps", default=0, min=0)


def scale() -> Any:
    """The enlargement, 0 for the model's own."""
    return number("scale", default=0.0, min=0.0, round=0.001, optional=True)


def fidelity() -> Any:
    """How much the decoder is held to the source image."""
    return number("fidelity", default=1.0)


def tile() -> Any:
    """The side of a tile, 0 for automatic."""
    return number("tile", default=0)


def wrap(optional: bool = False) -> Any:
    """Whether opposite borders are neighbours."""
    return io.Boolean.Input("wrap", default=SETTINGS["wrap"].default, optional=optional)
