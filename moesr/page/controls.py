"""Controls made of the table of settings: for the page, the tab, Extras and a host's options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..config import ModelConfig
from ..settings import ANY_SEED, SETTINGS, read_settings
from .gradio_versions import gradio, make

#: Controls of the page after model, size and format, in the order in which handlers get and give their values.
CONTROLS = ("steps", "fidelity", "color_fix", "seed", "tile", "wrap", "sampler", "eta", "restore", "spacing")
#: What a user wants, and the settings for it beside the model's own: of any model, and of one that can be told how
#: degraded its input is.
PRESETS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "Photograph": ({}, {}),
    "Web picture (restore)": ({"fidelity": 0.5}, {"restore": "1"}),
    "Faithful": ({"fidelity": 1, "eta": 0.0}, {"fidelity": 1, "restore": "0", "eta": 0.0}),
    "Texture (seamless)": ({"wrap": True}, {"wrap": True}),
}
#: Where a slider ends before the table does: what follows has no use for pictures on a screen.
LIMITS: dict[str, dict[str, Any]] = {
    "scale": {"minimum": 1, "maximum": 8},
    "fidelity": {"maximum": 1, "info": "0 invents detail, 1 keeps to the input."},
}
LABELS = {
    "scale": "How much larger",
    "color_fix": "Colour fix",
    "wrap": "Seamless texture",
    "eta": "Noise of each step (eta)",
}
#: Numbers that stand beside the words of a setting.
NUMBERS = {
    "tile": ("0", "256", "384", "512", "768", "1024"),
    "restore": ("0", "0.25", "0.5", "0.75", "1"),
    "fidelity": ("0", "0.25", "0.5", "0.75", "1"),  # where it has the word auto too: in a host's options
}


def describe_control(name: str, **changes: Any) -> tuple[str, dict[str, Any]]:
    """The kind of Gradio component for a setting, and its options. changes: other options than the table's."""
    setting = SETTINGS[name]
    options: dict[str, Any] = {
        "label": LABELS.get(name, name.capitalize()), "value": setting.default, "info": setting.sentence,
    }  # fmt: skip
    if setting.kind == "flag":
        kind = "Checkbox"
    elif setting.kind == "choice":
        kind = "Radio" if len(setting.choices) < 4 else "Dropdown"
        options["choices"] = list(setting.choices)
    elif setting.choices:
        kind = "Dropdown"
        options |= {"choices": [*setting.choices, *NUMBERS[name]], "allow_custom_value": True}
    elif name == "seed":
        kind = "Number"
        options |= {"precision": 0, "info": f"{setting.sentence[:-1]}; {ANY_SEED} for any."}
    else:
        kind = "Slider"
        options |= {"minimum": setting.minimum, "maximum": setting.maximum, "step": setting.step}
        options |= LIMITS.get(name, {})
    return kind, {**options, **changes}


def make_control(name: str, **changes: Any) -> Any:
    """The component for a setting."""
    kind, options = describe_control(name, **changes)
    return make(getattr(gradio(), kind), **options)


def find_most_steps(config: ModelConfig) -> int:
    """Where a slider of steps ends for a model: more than that changes nothing that is seen."""
    return min(max(20, 4 * config.steps), config.process.timesteps)


def list_own_values(config: ModelConfig) -> dict[str, dict[str, Any]]:
    """Options of the controls that show a model's own values."""
    return {
        "steps": {"value": config.steps, "maximum": find_most_steps(config)},
        "fidelity": {"value": min(config.fidelity, LIMITS["fidelity"]["maximum"])},
        "restore": {"visible": config.unet.takes_settings},
    }


def list_preset(name: str, config: ModelConfig) -> dict[str, Any]:
    """The values of the controls that a preset sets, for a model."""
    defaults = {control: SETTINGS[control].default for control in ("restore", "wrap", "color_fix", "eta")}
    own = {"fidelity": list_own_values(config)["fidelity"]["value"]}
    return {**defaults, **own, **PRESETS[name][config.unet.takes_settings]}


def read_form(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a run from values by name; 0 steps or times, "auto" and empty fields stand for the defaults.

    Raises SettingError.
    """
    given = {name: value for name, value in values.items() if value not in (None, "", "auto")}
    return read_settings({name: value for name, value in given.items() if value or name not in ("scale", "steps")})
