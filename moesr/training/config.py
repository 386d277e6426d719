"""The config of a training run: one JSON file for the model and its stages, with overrides from the command line."""

from __future__ import annotations

import json
import os
import types
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from ..config import ModelConfig, build, unet_values
from ..errors import SettingError
from .decoder import DecoderConfig
from .experts import ExpertConfig
from .first_stage import FirstStageConfig
from .loop import LoopConfig
from .unrolled import UnrolledConfig

CONFIGS = Path(__file__).parent / "configs"
#: The class of each stage's part of a config.
STAGES: dict[str, type[Any]] = {
    "first_stage": FirstStageConfig, "experts": ExpertConfig, "decoder": DecoderConfig, "unrolled": UnrolledConfig
}  # fmt: skip

#: Environment variable in which `accelerate launch --mixed_precision` passes its value; "no" is the default.
_LAUNCHED = "ACCELERATE_MIXED_PRECISION"
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", tuple: "a list"}
_CHOICES = {"precision": ("fp32", "bf16", "fp16"), "train": ("fcd", "decoder")}
_POSITIVE = (
    "steps", "batch", "save_every", "log_every", "accumulate", "batch_gpu", "crop_gpu", "crop", "cache",
    "sample_steps", "scale",
)  # fmt: skip


@dataclass(frozen=True)
class TrainingConfig:
    """Model, degradation and the settings of every stage."""

    model: ModelConfig = field(default_factory=ModelConfig)
    #: As `degradation` in data/ takes it.
    degradation: str = "bicubic"
    first_stage: FirstStageConfig = field(default_factory=FirstStageConfig)
    experts: ExpertConfig = field(default_factory=ExpertConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    unrolled: UnrolledConfig = field(default_factory=UnrolledConfig)


def load(source: str, overrides: list[str] | None = None) -> TrainingConfig:
    """The config in a JSON file, or of that name in `configs`, with overrides like `decoder.loop.steps=100`.

    Raises SettingError for a missing or broken file, an unknown entry, a value of the wrong kind, or an override that
    is not KEY=VALUE.
    """
    path = Path(source) if source.endswith(".json") else CONFIGS / f"{source}.json"
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in CONFIGS.glob("*.json")))
        raise SettingError(f"{source}: no such training config; give a .json file or one of {names}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SettingError(f"{path}: is not JSON ({error}); repair it") from error
    if not isinstance(values, dict):
        raise SettingError(f"{path}: is no training config; see {CONFIGS / 'tiny.json'}")
    for item in overrides or []:
        key, found, text = item.partition("=")
        if not found:
            raise SettingError(f"override {item!r}: write it as key=value, as in decoder.loop.steps=100")
        _override(values, key, _value(text))
    return from_dict(values)


def from_dict(values: dict[str, Any]) -> TrainingConfig:
    """The config of plain values. Raises SettingError as `load` does."""
    out = dict(values)
    out["model"] = ModelConfig.from_dict(_map(values.get("model", {}), "model"))
    for name, cls in STAGES.items():
        part = dict(_map(values.get(name, {}), name))
        for loop in ("loop", "trunk", "estimator", "cleaner"):
            if part.get(loop) is not None:
                where = f"{name}.{loop}"
                part[loop] = build(LoopConfig, _map(part[loop], where), where)
        out[name] = build(cls, part, name)
    config = build(TrainingConfig, out, "training")
    _check(config, "")
    return config


def to_dict(config: TrainingConfig) -> dict[str, Any]:
    """Plain JSON-able values; `from_dict` is its inverse."""
    values = asdict(config)
    values["model"] = {**values["model"], "unet": unet_values(config.model.unet)}
    return values


def apply_launcher(config: TrainingConfig) -> TrainingConfig:
    """The config with the precision that `accelerate launch` passes, if it passes one."""
    precision = os.environ.get(_LAUNCHED, "no")
    if precision == "no":
        return config
    values = to_dict(config)
    for stage, loop in (("first_stage", "loop"), ("experts", "loop"), ("experts", "trunk"), ("decoder", "loop")):
        if values[stage][loop]:
            values[stage][loop]["precision"] = precision
    return from_dict(values)


def _override(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    target = values
    for i, name in enumerate(parents):
        inner = target.setdefault(name, {})
        if not isinstance(inner, dict):
            raise SettingError(f"override {key}: {'.'.join(parents[: i + 1])} has no entries, it is {inner!r}")
        target = inner
    target[last] = value


def _map(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SettingError(f"config: {where} is {value!r}, it must be a map of settings")
    return value


def _check(config: Any, where: str) -> None:
    """Raise SettingError for a value of the wrong kind, a count below 1, or a choice that does not exist."""
    hints = get_type_hints(type(config))
    for f in fields(config):
        value, name = getattr(config, f.name), f"{where}.{f.name}".lstrip(".")
        if is_dataclass(value):
            _check(value, name)
            continue
        kinds = _kinds(hints[f.name])
        good = type(value) in kinds or (type(value) is int and float in kinds) or (value is None and None in kinds)
        if not good and kinds:
            wanted = " or ".join(_KINDS[kind] for kind in kinds if kind in _KINDS)
            raise SettingError(f"config: {name} is {value!r}, it must be {wanted or 'a map of settings'}")
        if f.name in _POSITIVE and value is not None and value < 1:
            raise SettingError(f"config: {name} is {value}, it must be at least 1")
        choices = _CHOICES.get(f.name)
        if choices and value not in choices:
            raise SettingError(f"config: {name} is {value!r}; choose {', '.join(choices)}")


def _kinds(hint: Any) -> list[Any]:
    """The plain types that an annotation allows."""
    if get_origin(hint) in (Union, types.UnionType):
        return [kind for part in get_args(hint) for kind in _kinds(part)]
    if hint is type(None):
        return [None]
    return [get_origin(hint) or hint]


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
