"""MoESR: diffusion super-resolution with time experts and a frequency-compensated decoder (arXiv 2310.12004).

import moesr
model = moesr.load()                       # the embedded x4 model
result = moesr.upscale(model, image)       # PIL image, uint8 HWC array or float BHWC tensor; the same kind comes back
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import CheckpointError, ImageError, MoESRError, NumericsError, SettingError

if TYPE_CHECKING:
    from .batch.job import batch
    from .evaluation.invented_detail import Invention, invention
    from .frames import upscale_frames
    from .model import SRModel, load
    from .pipeline import decode_latents, sample_latents, upscale
    from .progress import Event

__version__ = "0.1.0"
__all__ = [
    "CheckpointError", "Event", "ImageError", "Invention", "MoESRError", "NumericsError", "SRModel", "SettingError",
    "batch", "decode_latents", "invention", "load", "sample_latents", "upscale", "upscale_frames",
]  # fmt: skip

_MODULES = {
    "batch": "batch", "Invention": "evaluation.invented_detail", "invention": "evaluation.invented_detail",
    "load": "model", "SRModel": "model", "upscale": "pipeline", "upscale_frames": "frames",
    "sample_latents": "pipeline", "decode_latents": "pipeline", "Event": "progress",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    # Late, so that a host can import the package without paying for torch's import or ours.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
