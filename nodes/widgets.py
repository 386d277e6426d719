"""Inputs that several nodes have, with the ranges of the table of settings. Their words are in locales/."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..moesr.errors import SettingError
from ..moesr.settings import BATCH_SEEDS, SETTINGS
from .comfyui import io
from .model import MODEL

#: What every node of the pack is found by; newer hosts search these too.
ALIASES = ("moesr", "super resolution", "diffusion upscale")
#: What the node shows for each value of `batch_seed`.
BATCH_SEED_WORDS: dict[str, str] = dict(zip(("per image", "same for all"), BATCH_SEEDS))


#: Numbers that a list offers beside "auto". A prompt or a link may give any number that the setting takes.
OFFERED = {
    "steps": (*range(1, 11), 12, 15, 20, 25, 30, 40, 50, 100, 250, 500, 1000),
    "fidelity": (0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 2),
    "restore": (0, 0.25, 0.5, 0.75, 1),
    "tile": (128, 256, 384, 512, 640, 768, 1024, 1536, 2048),
    "tile_overlap": (32, 64, 96, 128, 192, 256, 384),
    "tile_batch": (1, 2, 4, 8, 16),
    "scale": (1, 1.5, 2, 3, 4, 6, 8),
}


def read(name: str, value: Any) -> Any:
    """The value of a list with "auto" as the pipeline takes it. Raises SettingError, one line.

    Workflows of older versions have numbers, and 0 for auto where 0 means nothing else.
    """
    if value == "auto" or (name not in ("fidelity", "restore") and value in (0, "0")):
        return SETTINGS[name].default
    return SETTINGS[name].read(str(value))


def read_all(values: dict[str, Any]) -> dict[str, Any]:
    """The values of several such lists, by the names of their settings."""
    return {name: read(name, value) for name, value in values.items()}


def check(**values: Any) -> bool | str:
    """True, or the line that says which value is wrong: what the host wants of `validate_inputs`. None is a link."""
    try:
        for name, value in values.items():
            if value is not None:
                read(name, value)
    except SettingError as error:
        return str(error)
    return True


def check_choice(widget: str, value: str, options: Sequence[str]) -> None:
    """Raises SettingError that names the widget if a value is none of its options. Older hosts do not look."""
    if value not in options:
        raise SettingError(f"{widget}: there is no {value}; choose one of {', '.join(options)}")


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


def automatic(name: str, optional: bool = False) -> Any:
    """A number in a list that begins with "auto"; a link may bring another number."""
    words = ["auto", *map(str, OFFERED[name])]
    number = io.Int if SETTINGS[name].kind == "int" else io.Float
    return io.MultiType.Input(io.Combo.Input(name, options=words, default="auto", optional=optional), [number])


def wrap(optional: bool = False) -> Any:
    """Whether opposite borders are neighbours."""
    return io.Boolean.Input("wrap", default=SETTINGS["wrap"].default, optional=optional)
