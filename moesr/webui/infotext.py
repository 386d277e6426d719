"""What a result says of itself, in the host's words: `MoESR model: tiny, MoESR scale: 4, ...`."""

from __future__ import annotations

from typing import Any

from ..service.settings import Settings


def facts(settings: Settings, digest: str) -> dict[str, Any]:
    """Names and values for PNG info. settings: with scale and steps as they were used."""
    told = {
        "MoESR model": settings.model,
        "MoESR model hash": digest,
        "MoESR scale": f"{settings.scale:g}" if settings.scale else None,
        "MoESR steps": settings.steps,
        "MoESR seed": settings.seed,
        "MoESR fidelity": f"{settings.fidelity:g}",
        "MoESR colour fix": settings.color_fix,
        "MoESR sampler": None if settings.sampler == "auto" else settings.sampler,
        "MoESR eta": None if settings.eta == 1.0 else f"{settings.eta:g}",
        "MoESR wrap": True if settings.wrap else None,
    }
    return {name: value for name, value in told.items() if value is not None}


def line(told: dict[str, Any]) -> str:
    """One line; values with commas or colons are in quotation marks, as the host has them."""
    return ", ".join(f"{name}: {_quoted(str(value))}" for name, value in told.items())


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"' if any(c in text for c in ',:\n"') else text
