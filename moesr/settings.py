"""ONE table of what a run can be told, and the one place where "the model's own" becomes a value.

Checks of the API, options of the command line, widgets of the nodes, controls of the page, options of the WebUIs and
fields of HTTP requests are made from SETTINGS. Nothing here needs torch.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any, cast

from .config import ModelConfig
from .errors import SettingError

SAMPLERS = ("ddpm", "ddpm_large", "ddim", "dpmpp_2m")
SPACINGS = ("leading", "trailing")
COLOUR_FIXES = ("adain", "wavelet", "none")
BATCH_SEEDS = ("per_image", "same")
#: Below so many steps "leading" starts far from pure noise, and DDPM is sampled by the few-step solver dpmpp_2m.
FEW_STEPS = 20
#: Words for number formats, and where experts are while they wait.
DTYPES = ("fp32", "bf16", "fp16")
RESIDENCIES = ("all", "stream")


@dataclass(frozen=True)
class Setting:
    """One setting: what values it takes, and what a user reads about it."""

    name: str
    #: "int", "float", "choice", "flag" (true or false), "text", or "image" (checked where it is read).
    kind: str
    #: Value if nothing is said. None means the model's own, or none at all for images.
    default: Any
    #: Smallest and largest number, both allowed.
    minimum: float = -math.inf
    maximum: float = math.inf
    #: By how much a control moves it.
    step: float | None = None
    #: The words that it takes: all values of a choice; of numbers, what may stand in their place.
    choices: tuple[str, ...] = ()
    #: Of numbers: "pixels", "steps", "times"; empty if it has none.
    unit: str = ""
    #: One sentence for users.
    sentence: str = ""
    #: Rarely touched: doors may hide it behind "more".
    advanced: bool = False

    def check(self, value: Any) -> Any:
        """The value in its proper type. Raises SettingError, one line, if it is none of this setting's."""
        if self.kind == "image" or (value is None and self.default is None):
            return value
        if isinstance(value, str) and value in self.choices:
            return value
        if self.kind == "flag" and isinstance(value, bool):
            return value
        if self.kind == "text" and isinstance(value, str) and value.isprintable() and value:
            return value
        if self.kind in ("int", "float") and isinstance(value, Real) and not isinstance(value, bool):
            number: Any = int(cast(Any, value)) if isinstance(value, Integral) else float(value)
            if self.minimum <= number <= self.maximum and (self.kind == "float" or number == int(number)):
                return float(number) if self.kind == "float" else int(number)
        raise SettingError(f"{self.name} {repr(value)[:60]}: {self.wanted}")

    def read(self, text: str) -> Any:
        """The value that a text stands for, as command lines and forms give it. Raises SettingError."""
        value: Any = text
        if self.kind == "flag":
            value = {"true": True, "false": False}.get(text.lower(), text)
        elif self.kind in ("int", "float") and text not in self.choices:
            with suppress(ValueError):  # the check says what was wanted
                value = int(text) if self.kind == "int" else float(text)
        return self.check(value)

    def describe(self) -> dict[str, Any]:
        """The JSON schema of a value, as OpenAPI has it: type, range, default and sentence."""
        kinds = {"int": "integer", "float": "number", "flag": "boolean"}
        schema: dict[str, Any] = {"type": kinds.get(self.kind, "string")}
        if self.kind in ("int", "float"):
            schema |= {"minimum": self.minimum, "maximum": self.maximum}
            if self.choices:
                schema = {"anyOf": [schema, {"type": "string", "enum": list(self.choices)}]}
        elif self.choices:
            schema["enum"] = list(self.choices)
        return {**schema, "default": self.default, "description": self.sentence}

    @property
    def span(self) -> str:
        """The values that it takes: "0 to 1, or auto", "adain|wavelet|none"; empty for texts and images."""
        if self.kind in ("int", "float"):
            return ", or ".join([f"{self.minimum} to {self.maximum}", *self.choices])
        return "|".join(self.choices)

    @property
    def wanted(self) -> str:
        """What to give instead of a wrong value."""
        if self.kind == "choice":
            return f"choose one of {', '.join(self.choices)}"
        if self.kind in ("int", "float"):
            return f"give {'a whole number' if self.kind == 'int' else 'a number'} from {self.span}"
        return "give true or false" if self.kind == "flag" else "give its name"


#: Settings of `upscale`, in the order in which a user meets them.
SETTINGS = {setting.name: setting for setting in (
    Setting(
        "scale", "float", None, 0.1, 64, 0.25, unit="times",
        sentence="How many times as wide and high the result is; by default the model's own scale.",
    ),
    Setting(
        "fidelity", "float", None, 0, 2, 0.05,
        sentence="How much the decoder is held to the input: 0 is generative, 1 is faithful, more exaggerates; "
        "by default the model's own best.",
    ),
    Setting(
        "protect", "image", None,
        sentence="White where the result keeps to the input, at fidelity 1; where it is black, fidelity is as given.",
    ),
    Setting(
        "restore", "float", "auto", 0, 1, 0.05, ("auto",),
        sentence="How degraded the input is: 0 is clean, 1 is a poor web picture; auto estimates it.",
    ),
    Setting("seed", "int", 0, 0, 2**64 - 1, 1, sentence="Another seed, other details."),
    Setting(
        "steps", "int", None, 1, 1000, 1, unit="steps",
        sentence="Denoising steps; by default the number that the model was made for.",
    ),
    Setting(
        "color_fix", "choice", "adain", choices=COLOUR_FIXES,
        sentence="Gives the result the colours of the input: of the whole picture (adain), place by place (wavelet), "
        "or not at all (none).",
    ),
    Setting("wrap", "flag", False, sentence="Opposite borders are neighbours: a seamless texture stays seamless."),
    Setting("mask", "image", None, sentence="White where the result counts; elsewhere it is a plain bicubic resize."),
    Setting(
        "sampler", "choice", "auto", choices=("auto", *SAMPLERS), advanced=True,
        sentence="How noise is taken away step by step; auto is the model's own.",
    ),
    Setting(
        "spacing", "choice", "auto", choices=("auto", *SPACINGS), advanced=True,
        sentence="Which of the model's timesteps are visited; auto fits the number of steps.",
    ),
    Setting(
        "eta", "float", 1.0, 0, 1, 0.05, advanced=True,
        sentence="Noise that ddim adds in each step: 0 is deterministic, 1 is ancestral sampling.",
    ),
    Setting(
        "batch_seed", "choice", "per_image", choices=BATCH_SEEDS, advanced=True,
        sentence="Whether each picture of a batch has noise of its own, or all have the same.",
    ),
    Setting(
        "steady", "float", 0.0, 0, 0.8, 0.05, advanced=True,
        sentence="For frames of a video: how much of each result is the last one, moved along with the picture; "
        "slow motion flickers less, fine texture gets softer.",
    ),
    Setting(
        "tile", "int", "auto", 0, 16384, 64, ("auto",), unit="pixels", advanced=True,
        sentence="Largest side of a tile of the result, 0 for no tiles. A smaller tile takes less memory; what the "
        "network sees around a place changes with it, and so do details.",
    ),
    Setting(
        "tile_overlap", "int", "auto", 8, 4096, 8, ("auto",), unit="pixels", advanced=True,
        sentence="By how many pixels of the result tiles overlap, at least; auto is an eighth of the tile. More takes "
        "longer and makes neighbours more alike; at most half a tile counts.",
    ),
    Setting(
        "tile_batch", "int", "auto", 1, 256, 1, ("auto",), unit="tiles", advanced=True,
        sentence="Tiles at a time; auto takes as many as the device has memory for.",
    ),
)}  # fmt: skip

#: Settings of `load`.
LOADING = {setting.name: setting for setting in (
    Setting("model", "text", "tiny", sentence="A name in the library, a file or a folder."),
    Setting(
        "dtype", "choice", "auto", choices=("auto", *DTYPES), advanced=True,
        sentence="Number format of the networks; auto is fp16 on CUDA and fp32 elsewhere.",
    ),
    Setting(
        "device", "text", "auto", advanced=True,
        sentence="Where the networks work: auto, cpu, cuda, cuda:1, mps.",
    ),
    Setting(
        "residency", "choice", "auto", choices=("auto", *RESIDENCIES), advanced=True,
        sentence="Which experts stay on the device: all, or the one at work and the next (stream).",
    ),
)}  # fmt: skip


#: Settings of several pictures together.
_OF_SEVERAL = ("batch_seed", "steady")
#: Names of the settings that a single picture can be given as words and numbers: by forms, requests, records.
RUN_SETTINGS = tuple(name for name, setting in SETTINGS.items() if setting.kind != "image" and name not in _OF_SEVERAL)
#: In a form or a request: any seed.
ANY_SEED = -1


def read_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a run from outside: forms, requests, records. None stands for the default, texts for numbers.

    Seed -1 draws one. Raises SettingError, one line, for a name that is none of RUN_SETTINGS or a wrong value.
    """
    found = {}
    for name, value in values.items():
        if name not in RUN_SETTINGS:
            raise SettingError(f"{name[:60]}: there is no such setting; choose from {', '.join(RUN_SETTINGS)}")
        if name == "seed" and str(value) in (str(ANY_SEED), str(float(ANY_SEED))):
            value = random.SystemRandom().randrange(2**32)
        if value is not None:
            setting = SETTINGS[name]
            found[name] = setting.read(value) if isinstance(value, str) else setting.check(value)
    return found


def check_settings(**values: Any) -> None:
    """Raises SettingError, one line, for the first value that its setting does not take, or a name there is not."""
    for name, value in values.items():
        if name not in SETTINGS:
            raise SettingError(f"{name}: there is no such setting; choose one of {', '.join(SETTINGS)}")
        SETTINGS[name].check(value)


@dataclass(frozen=True)
class Resolved:
    """What a run with a model really does, where settings were left to the model."""

    #: Output pixels per input pixel along a side.
    scale: float
    #: Denoising steps.
    steps: int
    #: One of SAMPLERS.
    sampler: str
    #: One of SPACINGS.
    spacing: str
    #: 0 generative to 1 faithful.
    fidelity: float
    #: How degraded the input is, 0 to 1; "auto" is estimated for each image.
    restore: float | str
    #: Noise that ddim adds in each step, 0 to 1.
    eta: float
    #: What noise is drawn from, 0 to 2^64 - 1.
    seed: int
    #: One of BATCH_SEEDS.
    batch_seed: str
    #: One of COLOUR_FIXES.
    color_fix: str


def choose_spacing(kind: str, steps: int) -> str:
    """The spacing for a process of that kind: trailing for residual shift and below FEW_STEPS, else leading."""
    return "trailing" if kind == "residual_shift" or steps < FEW_STEPS else "leading"


def choose_sampler(kind: str, steps: int, sampler: str, spacing: str) -> tuple[str, str]:
    """Sampler and spacing where they are "auto", for a process of that kind.

    ddim, which is ancestral at its default eta; for DDPM below FEW_STEPS dpmpp_2m, whose spacing is always trailing.
    """
    if sampler == "auto":
        sampler = "dpmpp_2m" if kind == "ddpm" and steps < FEW_STEPS else "ddim"
    if spacing == "auto":
        spacing = "trailing" if sampler == "dpmpp_2m" else choose_spacing(kind, steps)
    return sampler, spacing


def resolve(config: ModelConfig, **settings: Any) -> Resolved:
    """The values that `upscale` uses for these settings; where one is absent, None or "auto", the model's own.

    Raises SettingError for a value that no setting takes, or that this model does not.
    """
    check_settings(**settings)
    names = [field.name for field in fields(Resolved)]
    values = {name: settings.get(name, SETTINGS[name].default) for name in names}
    for name in ("scale", "steps", "fidelity"):
        values[name] = getattr(config, name) if values[name] is None else values[name]
    if values["restore"] != "auto" and not config.unet.takes_settings:
        raise SettingError(
            f"restore {values['restore']}: this model is not told how degraded the input is; leave it at auto"
        )
    steps, timesteps = values["steps"], config.process.timesteps
    if steps > timesteps:
        raise SettingError(f"{steps} steps: this model has {timesteps} timesteps, ask for no more")
    sampler = config.sampler if values["sampler"] == "auto" else values["sampler"]
    values["sampler"], values["spacing"] = choose_sampler(config.process.kind, steps, sampler, values["spacing"])
    return Resolved(**values)


def result_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """Height and width of the result in pixels: `scale` times the input's, to the nearest pixel, at least 1."""
    return max(1, math.floor(height * scale + 0.5)), max(1, math.floor(width * scale + 0.5))
