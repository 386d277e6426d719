"""What a training run is: one JSON file for the model and its three stages, with overrides from the command line."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config import ModelConfig, build
from ..errors import SettingError
from .decoder import DecoderConfig
from .experts import ExpertConfig
from .first_stage import FirstStageConfig
from .loop import LoopConfig

CONFIGS = Path(__file__).parent / "configs"


@dataclass(frozen=True)
class TrainingConfig:
    """Model, degradation and the settings of every stage."""

    model: ModelConfig = field(default_factory=ModelConfig)
    degradation: str = "bicubic"
    first_stage: FirstStageConfig = field(default_factory=FirstStageConfig)
    experts: ExpertConfig = field(default_factory=ExpertConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)


def load(source: str, overrides: list[str] | None = None) -> TrainingConfig:
    """The config of a JSON file, or of a name in `configs`, with overrides like `decoder.loop.steps=100`.

    Raises SettingError for a missing file, an unknown entry, or an override that is not KEY=VALUE.
    """
    path = Path(source) if source.endswith(".json") else CONFIGS / f"{source}.json"
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in CONFIGS.glob("*.json")))
        raise SettingError(f"{source}: no such training config; give a .json file or one of {names}")
    values = json.loads(path.read_text())
    for item in overrides or []:
        key, found, text = item.partition("=")
        if not found:
            raise SettingError(f"override {item!r}: write it as key=value, as in decoder.loop.steps=100")
        *parents, last = key.split(".")
        target = values
        for name in parents:
            target = target.setdefault(name, {})
        target[last] = _value(text)
    return from_dict(values)


def from_dict(values: dict[str, Any]) -> TrainingConfig:
    """The config of plain values."""
    stages = {"first_stage": FirstStageConfig, "experts": ExpertConfig, "decoder": DecoderConfig}
    out = dict(values)
    out["model"] = ModelConfig.from_dict(values.get("model", {}))
    for name, cls in stages.items():
        part = dict(values.get(name, {}))
        for loop in ("loop", "trunk"):
            if isinstance(part.get(loop), dict):
                part[loop] = build(LoopConfig, part[loop], f"{name}.{loop}")
        out[name] = build(cls, part, name)
    return build(TrainingConfig, out, "training")


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
