"""The settings of a job, and their way into a PNG and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ..errors import SettingError
from ..library import DEFAULT
from ..record import KEYWORD as KEYWORD
from ..record import from_texts, to_texts
from ..settings import COLOUR_FIXES, SAMPLERS

CHOICES = {"sampler": ("auto", *SAMPLERS), "color_fix": COLOUR_FIXES}
LARGEST_SCALE = 16.0
LARGEST_TILE = 8192


@dataclass(frozen=True)
class Settings:
    """What `upscale` is told, and the name of the model. scale and steps: None is the model's own."""

    model: str = DEFAULT
    scale: float | None = None
    steps: int | None = None
    sampler: str = "auto"
    eta: float = 1.0
    seed: int = 0
    fidelity: float = 1.0
    color_fix: str = "adain"
    tile: int | str = "auto"
    wrap: bool = False

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `upscale`."""
        return {key: value for key, value in asdict(self).items() if key != "model"}


def checked(values: Mapping[str, Any]) -> Settings:
    """Settings of values from outside; names that they do not have are left out.

    Raises SettingError that names the first value of a wrong type or out of range. What depends on the model (its name,
    its number of steps) is for the caller to check.
    """
    given = {f.name: _value(f.name, values[f.name]) for f in fields(Settings) if f.name in values}
    return replace(Settings(), **given)


def as_text(settings: Settings, digest: str) -> dict[str, str]:
    """Text chunks of a PNG that say how it was made. digest: of the model's files."""
    return to_texts({"model_hash": digest, **asdict(settings)})


def from_text(texts: Mapping[str, str]) -> tuple[Settings, str] | None:
    """Settings and the hash of the model from the texts of a PNG; None if it says nothing that makes sense."""
    record = from_texts(texts)
    if record is None:
        return None
    try:
        digest = record.get("model_hash", "")
        return checked(record), digest if isinstance(digest, str) else ""
    except SettingError:
        return None


def _value(name: str, value: Any) -> Any:
    """The value with its proper type. Raises SettingError."""
    if name == "model":
        return _word(name, value)
    if name in CHOICES:
        if value not in CHOICES[name]:
            raise SettingError(f"{name} {_shown(value)} is unknown: choose one of {', '.join(CHOICES[name])}")
        return value
    if name == "wrap":
        if not isinstance(value, bool):
            raise SettingError(f"wrap {_shown(value)}: give true or false")
        return value
    if name == "tile":
        return "auto" if value == "auto" else int(_number(name, value, 0, LARGEST_TILE, whole=True))
    if name == "scale":
        return None if value is None else _number(name, value, 0.1, LARGEST_SCALE)
    if name == "steps":
        return None if value is None else int(_number(name, value, 1, 10_000, whole=True))
    if name == "seed":
        return int(_number(name, value, 0, 2**53, whole=True))
    return _number(name, value, 0, {"eta": 1, "fidelity": 2}[name])


def _number(name: str, value: Any, low: float, high: float, *, whole: bool = False) -> float:
    if isinstance(value, str):  # a choice of a menu
        try:
            value = float(value)
        except ValueError:
            value = None
    wrong = isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value)
    if wrong or not low <= value <= high or (whole and value != int(value)):
        kind = "a whole number" if whole else "a number"
        raise SettingError(f"{name} {_shown(value)}: give {kind} from {low:g} to {high:.16g}")
    return value


def _word(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable() or not 1 <= len(value) <= 200:
        raise SettingError(f"{name} {_shown(value)}: give its name")
    return value


def _shown(value: Any) -> str:
    return repr(value)[:60]
