"""upscale() in two halves, for programs that keep the latent between them: sample_latents, then decode_latents."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import scratch
from .errors import SettingError
from .images.canvas import as_canvas
from .images.finish import colours
from .model import SRModel
from .pipeline import Run, finite, seen
from .progress import Callback
from .settings import check_settings, resolve


def sample_latents(
    model: SRModel,
    image: Any,
    *,
    steps: int | None = None,
    sampler: str = "auto",
    spacing: str = "auto",
    eta: float = 1.0,
    seed: int = 0,
    batch_seed: str = "per_image",
    tile: int | str = "auto",
    tile_batch: int | str = "auto",
    wrap: bool = False,
    mask: Any = None,
    fidelity: float | None = None,
    restore: float | str = "auto",
    callback: Callback | None = None,
) -> Tensor:
    """Clean latents of the images, float32 [B, C, h, w], as `upscale` samples them.

    They are on the model's device, or, where they are large, in system memory, in a temporary file (scratch.py).
    The settings are those of `upscale`, and so are the errors. `decode_latents` with the same image, tile and wrap
    makes of them what `upscale` returns.
    """
    settings = resolve(model.config, steps=steps, sampler=sampler, spacing=spacing, fidelity=fidelity, restore=restore)
    check_settings(eta=eta, seed=seed, batch_seed=batch_seed, tile=tile, tile_batch=tile_batch, wrap=wrap)
    canvas = as_canvas(image)
    with torch.inference_mode():
        run = Run(model, seen(model, colours(canvas, model.device), mask), wrap, tile, tile_batch, callback)
        return run.latents(steps, sampler, spacing, eta, seed, batch_seed, settings.fidelity, restore)


def decode_latents(
    model: SRModel,
    latents: Tensor,
    image: Any,
    *,
    scale: float | None = None,
    fidelity: float | None = None,
    color_fix: str = "adain",
    tile: int | str = "auto",
    wrap: bool = False,
    mask: Any = None,
    callback: Callback | None = None,
) -> Any:
    """The pictures of latents [B, C, h, w] that were sampled for `image`, in the kind that the image has.

    The settings are those of `upscale`. Raises SettingError for latents of another model or another image.
    """
    fidelity = resolve(model.config, scale=scale, fidelity=fidelity).fidelity
    check_settings(color_fix=color_fix, tile=tile, wrap=wrap)
    canvas = as_canvas(image)
    with torch.inference_mode():
        run = Run(model, seen(model, colours(canvas, model.device), mask), wrap, tile, "auto", callback)
        _fits(latents, run)
        z = latents.to(scratch.home(latents.shape, model.device)).float()
        return run.picture(canvas, z, scale, fidelity, color_fix, mask)


def timesteps(model: SRModel, steps: int | None = None, sampler: str = "auto", spacing: str = "auto") -> list[int]:
    """The timesteps that a run with these settings visits, from high to low; the settings are those of `upscale`."""
    settings = resolve(model.config, steps=steps, sampler=sampler, spacing=spacing)
    return model.process.timesteps(settings.steps, settings.spacing)


def _fits(latents: Tensor, run: Run) -> None:
    images, channels, height, width = run.shape
    if latents.ndim != 4 or latents.shape[1] != channels:
        raise SettingError(
            f"latents of shape {list(latents.shape)}: this model's have {channels} channels; "
            "take those of its own sampler"
        )
    if tuple(latents.shape) != run.shape:
        found = f"{latents.shape[0]} x {latents.shape[2]} x {latents.shape[3]}"
        raise SettingError(
            f"latents of {found} cells: this image has {images} x {height} x {width}; "
            "give the image that they were sampled for"
        )
    if not finite(latents):
        raise SettingError("the latents have NaN or infinite values: check what made them")
