"""Frames of a video, one result after the other: memory holds one group of them, however many come."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sized
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .errors import ImageError, SettingError
from .images.canvas import Canvas, as_canvas
from .images.fidelity_map import is_map
from .images.motion import Steadier
from .model import SRModel
from .pipeline import upscale
from .progress import Callback, Event, narrow_callback
from .run_plan import plan_run
from .settings import resolve


def upscale_frames(
    model: SRModel, frames: Iterable[Any], *, steady: float = 0.0, callback: Callback | None = None, **settings: Any
) -> Iterator[Any]:
    """The results of the frames, one by one, in order, each in the kind that its frame has.

    frames: PIL images, uint8 arrays [H, W, C] or float tensors [H, W, C] in [0, 1], from a list, a generator or a batch
    [B, H, W, C]. They are read as results are asked for, one group ahead. A frame of another size or number of channels
    than the last one begins a new group.
    settings: those of `upscale`; maps are [H, W], the same for all frames. Results are those of one call with the whole
    batch: noise is drawn from (seed, index of the frame), whatever else is in the stream.
    steady: 0 to 0.8, how much of each result is the last one, moved along with the picture: details flicker less, and
    are softer. 0 leaves every frame to itself.
    callback: its events count frames; how many there are, and the fraction that is done, only if `frames` has a length.
    Raises SettingError at once; ImageError names the frame, after the results of those before it.
    """
    fidelity = settings.get("fidelity")
    resolve(model.config, **{**settings, "fidelity": None if is_map(fidelity) else fidelity, "steady": steady})
    for name in ("fidelity", "protect", "mask"):
        value = settings.get(name)
        if isinstance(value, (np.ndarray, Tensor)) and value.ndim != 2:
            raise SettingError(f"{name} of shape {list(value.shape)}: give one [H, W] for all frames")
    if isinstance(frames, (Image.Image, np.ndarray, Tensor)) and getattr(frames, "ndim", 3) != 4:
        raise ImageError("a single image: give its frames, as a list, a generator or a batch [B, H, W, C]")
    count = len(frames) if isinstance(frames, Sized) else 0
    return _upscale_groups(model, frames, count, Steadier(steady) if steady else None, callback, settings)


def _upscale_groups(
    model: SRModel, frames: Iterable[Any], count: int, steadier: Steadier | None, callback: Callback | None,
    settings: dict[str, Any],
) -> Iterator[Any]:  # fmt: skip
    first, whole = 0, count or math.inf
    for group in _read_groups(model, frames):
        end, forward = first + len(group), None
        if callback is not None:
            forward = narrow_callback(callback, first / whole, end / whole, image=first, images=count - len(group))
        batch = torch.cat([_join_channels(canvas) for canvas in group])
        results = upscale(model, batch, first_index=first, callback=forward, **settings)
        first = end
        for canvas, result in zip(group, results):  # [H, W, C]
            planes = result.permute(2, 0, 1)
            alpha = None if canvas.alpha is None else planes[-1:]
            rgb = planes[:3].expand(3, -1, -1)
            if steadier is not None:
                rgb = steadier.steady(canvas.rgb.cpu(), rgb[None])[0]
            out = canvas.empty(*result.shape[:2])
            canvas.put(out, 0, 0, rgb, alpha)
            yield canvas.restore(out)
        del results, batch, group  # before the next group is computed


def steady_frames(frames: Tensor, results: Tensor, share: float, callback: Callback | None = None) -> None:
    """Mixes every result with the last one, as `upscale_frames` does with `steady`. It writes into `results`.

    frames, results: [B, h, w, C] and [B, H, W, C] in [0, 1]. share: 0 to 0.8, how much of the last one.
    callback: called before every frame; what it raises stops the work.
    """
    steadier, count = Steadier(share), len(frames)
    for index in range(count):
        if callback is not None:
            callback(Event("steady", image=index + 1, images=count, done=index / count, share=1 / count))
        place = slice(index, index + 1)
        results[place] = steadier.steady_image(frames[place], results[place])


def _read_groups(model: SRModel, frames: Iterable[Any]) -> Iterator[list[Canvas]]:
    """Frames of one size and one number of channels that fit on the device together, as a plan of `upscale` has it."""
    group: list[Canvas] = []
    room = 0
    for index, frame in enumerate(frames):
        try:
            canvas = _read_frame(frame)
        except ImageError as error:
            if group:
                yield group
            raise ImageError(f"frame {index + 1}: {error}") from error
        if group and _describe(group[0]) != _describe(canvas):
            yield group
            group = []
        if not group:
            room = plan_run(model, *canvas.rgb.shape[-2:], tile=0).group
        group.append(canvas)
        if len(group) == room:
            yield group
            group = []
    if group:
        yield group


def _read_frame(frame: Any) -> Canvas:
    if not isinstance(frame, Tensor):
        return as_canvas(frame)
    canvas = as_canvas(frame[None])
    return replace(canvas, restore=lambda out: canvas.restore(out)[0])


def _describe(canvas: Canvas) -> tuple[Any, ...]:
    """What frames that work together have in common: size and channels."""
    return canvas.rgb.shape, canvas.grey, canvas.alpha is None


def _join_channels(canvas: Canvas) -> Tensor:
    """The frame as a batch of `upscale`, [1, H, W, C]: C is 1 for grey, 3 for RGB, 4 with alpha."""
    if canvas.alpha is not None:
        return torch.cat([canvas.rgb, canvas.alpha], dim=1).permute(0, 2, 3, 1)
    return (canvas.rgb[:, :1] if canvas.grey else canvas.rgb).permute(0, 2, 3, 1)
