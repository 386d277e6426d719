"""LR image -> condition -> latent -> experts -> decoder -> SR image: the three functions that every door stands on.

`sample_latents` gives latents, `decode_latents` makes pictures of them, `upscale` does both for a few images at a time.
Read from top to bottom, this is the way of the data. run_plan.py has what is decided once per call, pipeline_run.py
what happens to images that work together. The three spell their arguments out, so that editors, `help` and type
checkers know them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import canvas_memory
from .errors import SettingError
from .images import postprocess
from .images.canvas import Canvas, as_canvas
from .images.fidelity_map import is_map, read_fidelity
from .images.row_bands import Store, resized_rows
from .model import SRModel
from .pipeline_run import Run, is_finite
from .progress import Callback
from .run_plan import plan_run
from .runtime import trim_memory
from .settings import resolve, result_size
from .tiling import retry_smaller


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
    fidelity: Any = None,
    protect: Any = None,
    restore: float | str = "auto",
    tile: int | str = "auto",
    tile_batch: int | str = "auto",
    tile_overlap: int | str = "auto",
    wrap: bool = False,
    mask: Any = None,
    callback: Callback | None = None,
) -> Tensor:
    """Clean latents of the images, float32 [B, C, h, w], of which `decode_latents` makes pictures.

    They are on the model's device if there is room, else in system memory, large ones in a temporary file. Arguments
    and errors are those of `upscale`.
    """
    batch = Batch(
        model, image, fidelity=fidelity, protect=protect, wrap=wrap, mask=mask,
        tile=tile, tile_batch=tile_batch, tile_overlap=tile_overlap, callback=callback,
        steps=steps, sampler=sampler, spacing=spacing, eta=eta, seed=seed, batch_seed=batch_seed, restore=restore,
    )  # fmt: skip
    latents: Tensor | None = None
    with torch.inference_mode():
        for run in batch.runs():
            z = run.sample(batch.settings)
            if len(z) == batch.images:
                return z
            if latents is None:
                latents = canvas_memory.zeros((batch.images, *z.shape[1:]), torch.device("cpu"))
            latents[run.first : run.first + len(z)] = z.cpu()
            del run, z  # before the next group is on the device
    assert latents is not None  # a batch has an image
    return latents


def decode_latents(
    model: SRModel,
    latents: Tensor,
    image: Any,
    *,
    scale: float | None = None,
    fidelity: Any = None,
    protect: Any = None,
    restore: float | str = "auto",
    color_fix: str = "adain",
    tile: int | str = "auto",
    tile_batch: int | str = "auto",
    tile_overlap: int | str = "auto",
    wrap: bool = False,
    mask: Any = None,
    callback: Callback | None = None,
) -> Any:
    """The pictures of latents [B, C, h, w] that were sampled for `image`, in the kind that the image has.

    Arguments are those of `upscale`; with equal image, tile, wrap and mask the result is that of `upscale`. Raises
    SettingError for latents of another model or another image.
    """
    batch = Batch(
        model, image, fidelity=fidelity, protect=protect, wrap=wrap, mask=mask,
        tile=tile, tile_batch=tile_batch, tile_overlap=tile_overlap, callback=callback, scale=scale, restore=restore,
        color_fix=color_fix,
    )  # fmt: skip
    out = batch.allocate_result()
    with torch.inference_mode():
        for run in batch.runs():
            _check_latents(latents, run, batch.images)
            z = latents[run.first : run.first + len(run)].to(run.canvas_device).float()
            _decode_into(out, run, z, batch)
            del run, z
    return batch.canvas.restore(out)


def upscale(
    model: SRModel,
    image: Any,
    *,
    scale: float | None = None,
    steps: int | None = None,
    sampler: str = "auto",
    spacing: str = "auto",
    eta: float = 1.0,
    seed: int = 0,
    batch_seed: str = "per_image",
    fidelity: Any = None,
    protect: Any = None,
    restore: float | str = "auto",
    color_fix: str = "adain",
    tile: int | str = "auto",
    tile_batch: int | str = "auto",
    tile_overlap: int | str = "auto",
    wrap: bool = False,
    mask: Any = None,
    first_index: int = 0,
    callback: Callback | None = None,
) -> Any:
    """The image, `scale` times as large (the model's own scale by default), in the kind it was given.

    image: a PIL image, a uint8 array [H, W, C], or a float tensor [B, H, W, C] in [0, 1]; any size. A batch of any
    length: pictures that work together are on the device, the others wait. The other settings are those of the table
    in settings.py. Noise is drawn on the CPU for the whole image, from (seed, its index in the batch). mask [H, W] or
    [B, H, W]: tiles that it does not touch are not computed; models that fill in what is missing need it, and see
    nothing of the image there. fidelity: a number, or a map of numbers: a PIL image (white is 1), an array or a tensor
    [H, W] or [B, H, W], of any size. protect: such a map too; where it is 1 so is the fidelity, where it is 0 nothing
    changes. first_index: the first image's index, for a batch that comes in parts. callback(Event): called before every
    batch of tiles; what it raises stops the run.
    Raises SettingError, ImageError or NumericsError.
    """
    batch = Batch(
        model, image, fidelity=fidelity, protect=protect, wrap=wrap, mask=mask,
        tile=tile, tile_batch=tile_batch, tile_overlap=tile_overlap, callback=callback, scale=scale, steps=steps,
        sampler=sampler, spacing=spacing, eta=eta, seed=seed, batch_seed=batch_seed, restore=restore,
        color_fix=color_fix, first_index=first_index,
    )  # fmt: skip
    out = batch.allocate_result()
    with torch.inference_mode():
        for run in batch.runs():
            _decode_into(out, run, run.sample(batch.settings), batch)
            del run  # before the next group is on the device
    return batch.canvas.restore(out)


class Batch:
    """The images of one call, prepared once; `runs` gives them in groups that the device has room for."""

    def __init__(
        self, model: SRModel, image: Any, *, fidelity: Any, protect: Any, wrap: bool, mask: Any, tile: int | str,
        tile_batch: int | str, tile_overlap: int | str, callback: Callback | None, first_index: int = 0,
        **settings: Any,
    ) -> None:  # fmt: skip
        if not isinstance(first_index, int) or first_index < 0:
            raise SettingError(f"first_index {repr(first_index)[:60]}: give a whole number from 0")
        has_map = is_map(fidelity)
        self.settings = resolve(model.config, **settings, fidelity=None if has_map else fidelity)
        self.canvas, self._first_index = as_canvas(image), first_index
        self.images, _, self.height, self.width = self.canvas.rgb.shape
        self.plan = plan_run(
            model, self.height, self.width, tile=tile, tile_batch=tile_batch, tile_overlap=tile_overlap, wrap=wrap,
            callback=callback,
        )  # fmt: skip
        fidelity = fidelity if has_map else self.settings.fidelity
        size, networks = (self.height, self.width), model.config
        self._fidelity = read_fidelity(fidelity, protect, self.images, size=size, wrap=wrap)
        if has_map or protect is not None:
            if not networks.unet.takes_settings and not networks.autoencoder.lr_fusion:
                self.plan.reporter.note("fidelity and protect: this model has no fidelity, so they change nothing")
            elif not has_map and fidelity == 1.0:
                self.plan.reporter.note("protect: fidelity is 1 everywhere as it is; give a lower one")
        self._mask = None if mask is None else postprocess.read_mask(mask, self.images)
        if self._mask is not None and not model.config.unet.mask and not bool(self._mask.any()):
            self._mask = None
            self.plan.reporter.note("the mask is empty: it acts as none")

    def allocate_result(self) -> Any:
        return self.canvas.empty(*result_size(self.height, self.width, self.settings.scale))

    def runs(self) -> Iterator[Run]:
        """A Run for each group, in order. Where memory runs out a group gets smaller."""
        first, group = 0, min(self.plan.group, self.images)
        while first < self.images:
            prepare = partial(self._prepare, first)
            run, group = retry_smaller(self.plan.model.runtime, group, 1, prepare, "a number of images")
            self.plan.reporter.start_group(first, len(run), self.images)
            first += len(run)
            yield run
            self.plan.reporter.end_group()
            del run  # as its user did, before the next group is on the device

    def _prepare(self, first: int, count: int) -> Run:
        mask = self._mask
        if mask is not None and len(mask) > 1:
            mask = mask[first : first + count]
        colours = postprocess.read_colours(self.canvas.part(first, first + count), self.plan.model.device)
        return Run(
            self.plan, colours, mask, first=first, first_index=self._first_index + first,
            fidelity=self._fidelity.part(first, first + count), restore=self.settings.restore,
        )  # fmt: skip


def _decode_into(out: Any, run: Run, z: Tensor, batch: Batch) -> None:
    """Decodes the latents of a run's images, one after the other, and writes what becomes of them into `out`."""
    # What a mask hides has no colours to go by.
    color_fix = "none" if run.model.config.unet.mask else batch.settings.color_fix
    end = run.first + len(run)
    for image in range(len(z)):
        decoded = run.decode(z, image)
        trim_memory()
        _finish(out[run.first : end], run, batch.canvas.part(run.first, end), image, decoded, color_fix)


def _finish(out: Any, run: Run, canvas: Canvas, image: int, decoded: Store, color_fix: str) -> None:
    """Colour fix, final resize, mask and alpha of one image, in bands of rows that get smaller if memory runs out."""
    lr, mask, size = run.colours[image], run.mask_of(image), (out.shape[1], out.shape[2])

    def attempt(band: int) -> None:
        fixed = postprocess.fix_colour(color_fix, decoded, 0, run.lr[image], run.wrap)  # noise is no colour
        final = resized_rows(fixed, decoded.height, decoded.width, size, run.wrap)
        postprocess.finish_image(canvas, image, lr, final, out, mask=mask, wrap=run.wrap, band=band)

    band = postprocess.count_band_rows(size[1])
    retry_smaller(run.model.runtime, band, postprocess.SMALLEST_BAND, attempt, "bands of rows")


def _check_latents(latents: Tensor, run: Run, images: int) -> None:
    channels, height, width = run.shape[1:]
    if latents.ndim != 4 or latents.shape[1] != channels:
        raise SettingError(
            f"latents of shape {list(latents.shape)}: this model's have {channels} channels; "
            "take those of its own sampler"
        )
    if tuple(latents.shape) != (images, channels, height, width):
        found = f"{latents.shape[0]} x {latents.shape[2]} x {latents.shape[3]}"
        raise SettingError(
            f"latents of {found} cells: this image has {images} x {height} x {width}; "
            "give the image that they were sampled for"
        )
    if not is_finite(latents):
        raise SettingError("the latents have NaN or infinite values: check what made them")
