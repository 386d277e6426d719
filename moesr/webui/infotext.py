"""What a result says of itself, in the host's words: `MoESR model: tiny, MoESR scale: 4, ...`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..settings import SETTINGS

#: Names in the record of a run that are always said, and those that are said where they are not the default.
_ALWAYS = ("model", "model_hash", "scale", "steps", "seed", "fidelity", "color_fix")
_CHANGED = ("sampler", "eta", "restore", "wrap")
_WORDS = {"model_hash": "model hash", "color_fix": "colour fix"}


def list_facts(record: Mapping[str, Any]) -> dict[str, Any]:
    """Names and values for PNG info. record: see record.describe_run."""
    names = [*_ALWAYS, *(name for name in _CHANGED if record[name] != SETTINGS[name].default)]
    names += ["protect"] if "protect" in record else []
    return {f"MoESR {_WORDS.get(name, name)}": _as_text(record[name]) for name in names}


def join_facts(facts: Mapping[str, Any]) -> str:
    """One line; values with commas or colons are in quotation marks, as the host has them."""
    return ", ".join(f"{name}: {_quote(str(value))}" for name, value in facts.items())


def _as_text(value: Any) -> Any:
    return f"{value:g}" if isinstance(value, float) else value


def _quote(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"' if any(c in text for c in ',:\n"') else text
