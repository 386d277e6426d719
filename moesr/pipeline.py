"""upscale(): LR image -> condition -> latent -> experts -> decoder -> SR image. The one place where the parts meet."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from . import scratch
from .config import AutoencoderConfig
from .diffusion.samplers import Noise, sample
from .diffusion.tiled import tiled
from .errors import NumericsError
from .images import finish as finishing
from .images.assembly import Store, resized_rows
from .images.canvas import Canvas, as_canvas
from .images.condition import Condition
from .images.finish import colours, finish, fix_colour, masked, result_size
from .images.windows import Blender, Window, crop, tile_windows
from .model import SRModel
from .networks.autoencoder import Autoencoder
from .progress import Callback, Event
from .runtime import shrinking, trim_memory
from .settings import check_settings, resolve

log = logging.getLogger(__name__)

R = TypeVar("R")

#: Largest tile that "auto" takes, in output pixels: networks are trained on crops of this order.
LARGEST_TILE = 768
SMALLEST_TILE = 64
#: Largest side of a preview.
LARGEST_PREVIEW = 768
#: Bytes that decoding takes whatever the tile: bands of wide features, distances to codes.
FIXED_MEMORY = 256 * 2**20


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
    fidelity: float | None = None,
    restore: float | str = "auto",
    color_fix: str = "adain",
    tile: int | str = "auto",
    tile_batch: int | str = "auto",
    wrap: bool = False,
    mask: Any = None,
    callback: Callback | None = None,
) -> Any:
    """The image, `scale` times as large (the model's own scale by default), in the kind it was given.

    image: a PIL image, a uint8 array [H, W, C], or a float tensor [B, H, W, C] in [0, 1]; any size. steps, sampler and
    spacing: None and "auto" are the model's own. eta: noise of each step, 0 deterministic to 1 ancestral. seed: noise
    is drawn on the CPU for the whole image from (seed, its index in the batch), or from the seed alone with batch_seed
    "same". fidelity: weight of the LR image in the decoder, 0 generative to 1 faithful. color_fix: adain, wavelet or
    none. tile: largest side of a window of the output in pixels, 0 for none. wrap: opposite borders are neighbours
    (seamless textures). mask [H, W]: where the result counts, elsewhere it is bicubic; models that fill in what is
    missing need it, and see nothing of the image there. restore: how degraded the image is, 0 (clean) to 1, for models
    that take it; "auto" estimates it per image. callback(Event): called before every batch of tiles; what it
    raises stops the run. Raises SettingError, ImageError or NumericsError.
    """
    settings = resolve(
        model.config, scale=scale, steps=steps, sampler=sampler, spacing=spacing, fidelity=fidelity, restore=restore
    )
    check_settings(
        color_fix=color_fix, eta=eta, seed=seed, batch_seed=batch_seed, tile=tile, tile_batch=tile_batch, wrap=wrap
    )
    canvas = as_canvas(image)
    with torch.inference_mode():
        run = Run(model, seen(model, colours(canvas, model.device), mask), wrap, tile, tile_batch, callback)
        z = run.latents(steps, sampler, spacing, eta, seed, batch_seed, settings.fidelity, restore)
        return run.picture(canvas, z, scale, settings.fidelity, color_fix, mask)


def seen(model: SRModel, lr: Tensor, mask: Any) -> Tensor:
    """LR images [B, 3, H, W] as the model's networks see them: with the mask as a fourth channel where they fill in."""
    return masked(lr, mask) if model.config.unet.mask else lr


class Run:
    """One run of a model over a batch: the condition, the tiles, and what the callback is told.

    lr: as `seen` gives it, in [-1, 1]. tile, tile_batch, wrap and callback are those of `upscale`.
    """

    def __init__(
        self, model: SRModel, lr: Tensor, wrap: bool, tile: int | str, tile_batch: int | str, callback: Callback | None
    ) -> None:
        self.model, self.callback, self.wrap, self.lr = model, callback, wrap, lr
        self.factor = model.config.autoencoder.factor
        unet = model.config.unet
        self.multiple, self.alignment = unet.multiple, unet.alignment
        self.condition = Condition(
            lr, model.scale, self.factor, self.multiple, wrap, unet.detail, model.config.lr_resize
        )
        self.smallest = max(SMALLEST_TILE // self.factor, 2 * self.alignment, self.multiple)
        self.tile = self._first_tile(tile)  # in latent cells; only ever shrinks
        self.tile_batch = 1 if tile_batch == "auto" else int(tile_batch)
        self.at = Event("encode", 0, 0, 0, 0, 0, 0)
        self.latest: Tensor | None = None  # predicted x0 of the whole canvas
        self.settings: Tensor | None = None  # restore and fidelity [B, 2], for networks that take them

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the latents, [B, C, h, w]."""
        return (len(self.lr), self.model.config.unet.out_channels, *self.condition.cells)

    def latents(
        self, steps: int | None, sampler: str, spacing: str, eta: float, seed: int, batch_seed: str,
        fidelity: float = 0.0, restore: float | str = "auto",
    ) -> Tensor:  # fmt: skip
        """Clean latents of the batch, [B, C, h, w].

        Networks that take settings are given `restore` and `fidelity`. Their noise is weaker by the fidelity: at 1
        there is none, and the seed does not matter.
        """
        steps = self.model.config.steps if steps is None else steps
        noise = self.noise(generators(seed, batch_seed, len(self.lr)))
        if self.model.config.unet.restore:
            fidelity, draw = min(fidelity, 1.0), noise
            degraded = self._restore(restore)
            self.settings = torch.stack([degraded, torch.full_like(degraded, fidelity)], dim=1)
            noise = lambda i: draw(i).mul_(1 - fidelity)  # noqa: E731  # of the same seed, weaker
        return self.sample(self.encode(), steps, sampler, spacing, eta, noise)

    def picture(
        self, canvas: Canvas, z: Tensor, scale: float | None, fidelity: float, color_fix: str, mask: Any
    ) -> Any:
        """The result in the kind that `canvas` was made of, from latents [B, C, h, w]."""
        sr, lr, wrap = self.decode(z, fidelity), colours(canvas, self.model.device), self.wrap
        if self.model.config.unet.mask:
            color_fix = "none"  # what is hidden has no colours to go by
        size = result_size(canvas, sr, scale)
        trim_memory()

        def attempt(band: int) -> Any:
            fixed = [fix_colour(color_fix, sr, i, lr[i], wrap) for i in range(len(lr))]
            final = [resized_rows(rows, sr.height, sr.width, size, wrap) for rows in fixed]
            return finish(canvas, lr, final, size, mask, wrap, band)

        return shrinking(
            self.model.runtime, finishing.band_rows(size[1]), finishing.SMALLEST_BAND, attempt, "bands of rows"
        )[0]

    def encode(self) -> Tensor | None:
        """y: the latent of the LR image at output size (ResShift, section 3.1), [B, C, h, w]; None if it has no use."""
        if self.model.process.kind != "residual_shift":
            return None
        height, width = self.condition.cells
        images = len(self.lr)
        shape = (images, self.model.config.autoencoder.embed_dim, height, width)

        def attempt(tile: int) -> Tensor:
            windows = self._windows(tile)
            self.at = Event("encode", 0, 0, 0, 0, 0, len(windows) * images, self._preview)
            blender = Blender(windows, height, width)
            out = scratch.zeros(shape, scratch.home(shape, self.model.device))
            with self.model.decoder() as autoencoder:
                for image in range(images):
                    for window in windows:
                        self.model.runtime.check()
                        self._advance(1)
                        latent = autoencoder.encode(self._upsampled(image, window))
                        blender.add(out[image], latent[0].float(), window)
            return out

        return self._shrinking(attempt)

    def _restore(self, restore: float | str) -> Tensor:
        """How degraded each image is, float32 [B]."""
        if restore != "auto":
            return torch.full((len(self.lr),), float(restore), device=self.model.device)
        with self.model.decoder() as autoencoder:
            found = torch.cat([autoencoder.estimate_restore(lr[None, :3].to(self.model.dtype)) for lr in self.lr])
        log.info("restore: %s", ", ".join(f"{value:.2f}" for value in found.tolist()))
        return found

    def noise(self, generators: list[torch.Generator]) -> Noise:
        """Standard normal noise of the whole canvas, drawn anew at every call, with a generator an image."""
        shape = (len(generators), *self.shape[1:])

        def draw(_: int) -> Tensor:
            out = scratch.zeros(shape, torch.device("cpu"))
            for image, generator in zip(out, generators):
                torch.randn(image.shape, generator=generator, out=image)
            return out.to(scratch.home(shape, self.model.device))

        return draw

    def sample(self, y: Tensor | None, steps: int, sampler: str, spacing: str, eta: float, noise: Noise) -> Tensor:
        """A clean latent [B, C, h, w], denoised by the experts in turn (paper, section 3.1).

        noise(-1) is what the start is made of, noise(i) that of step i.
        """
        process, bank = self.model.process, self.model.bank
        settings = resolve(self.model.config, steps=steps, sampler=sampler, spacing=spacing)
        sampler, spacing = settings.sampler, settings.spacing
        timesteps = process.timesteps(steps, spacing)
        bank.start(timesteps)
        trim_memory()  # encoding took memory in other pieces, which this phase could not use
        embedded: dict[int, Tensor] = {}  # the time of the step at work, for all tiles

        def predict_tile(z: Tensor, t: int, windows: Sequence[Window], images: Sequence[int]) -> Tensor:
            self._advance(len(windows))
            z = z.to(self.model.device)
            cond = torch.cat([self.condition.crop(i, w) for i, w in zip(images, windows)])
            shift = None if y is None else torch.cat([_crop(y, i, w) for i, w in zip(images, windows)]).to(z.device)
            x, cond = process.scale_input(z, t).to(self.model.dtype), cond.to(self.model.dtype)
            with bank.stage(t) as expert:
                if t not in embedded:
                    embedded.clear()
                    told = () if self.settings is None else (self.settings,)
                    embedded[t] = cast(Any, expert).embed(torch.tensor([t], device=x.device), x.dtype, *told)
                out = expert(x, embedded[t] if self.settings is None else embedded[t][list(images)], cond)
            return process.x0(out.float(), z, t, shift)

        def predict(z: Tensor, t: int) -> Tensor:
            step = timesteps.index(t) + 1
            expert = bank.index(t)

            def attempt(tile: int) -> Tensor:
                windows = self._windows(tile)
                self.at = Event("sample", step, steps, t, expert, 0, len(windows) * len(z), self._preview)
                return tiled(predict_tile, windows, self.tile_batch, self.model.runtime.check)(z, t)

            x0 = self._shrinking(attempt)
            self.latest = x0
            return x0

        z = process.prior(noise(-1), y, timesteps[0])
        z = sample(
            sampler, predict, process, timesteps, z, eta=eta, noise=noise, last=process.last(steps, spacing), y=y
        )
        return _finite(z, "the sampled latent")

    def decode(self, z: Tensor, fidelity: float) -> Store:
        """The images in about [-1, 1], at the model's scale, of their latents (paper, section 3.3)."""

        def tile(autoencoder: Autoencoder, image: int, window: Window) -> Tensor:
            features = None
            if fidelity or autoencoder.config.lr_skip:
                features = autoencoder.window_features(self._upsampled(image, window))
            return autoencoder.decode(_crop(z, image, window).to(self.model.device), features, fidelity)

        self.latest = z
        trim_memory()
        height, width = (side * self.factor for side in self.condition.cells)
        store = Store(len(z), 3, *self.condition.size, self.model.device)

        def attempt(side: int) -> Store:
            store.reset()
            windows = self._windows(side)
            self.at = Event("decode", 0, 0, 0, 0, 0, len(windows) * len(z), self._preview)
            blender = Blender([w.scaled(self.factor) for w in windows], height, width)
            with self.model.decoder() as autoencoder:
                for image in range(len(z)):
                    make = partial(tile, autoencoder, image)
                    for start, band in self._bands(windows, blender, height, width, make):
                        store.put(image, start, _finite(self.condition.finish(band), "the decoded image"))
            return store

        return self._shrinking(attempt)

    def _bands(
        self, windows: Sequence[Window], blender: Blender, height: int, width: int, make: Callable[[Window], Tensor]
    ) -> Iterator[tuple[int, Tensor]]:
        """Decoded rows from the top, (first row, [3, h, W]), as soon as no tile to come reaches them.

        Only a band of tiles is in memory. With wrap-around the last tiles reach the first rows, so all come at once.
        """
        starts = sorted({w.y0 for w in windows})
        tall = height if self.wrap else windows[0].h * self.factor
        shape = (3, tall, width)
        band = scratch.zeros(shape, scratch.home(shape, self.model.device))
        for start, after in zip(starts, [*starts[1:], None]):
            first = 0 if self.wrap else start * self.factor
            for window in windows:
                if window.y0 != start:
                    continue
                self.model.runtime.check()
                self._advance(1)
                blender.add(band, make(window)[0].float(), window.scaled(self.factor), first)
            if after is None:
                yield first, band
            elif not self.wrap:
                done = (after - start) * self.factor
                yield first, band[:, :done]
                band[:, : tall - done] = band[:, done:].clone()
                band[:, tall - done :] = 0

    def _windows(self, tile: int) -> list[Window]:
        overlap = max(self.alignment, tile // 8)
        return tile_windows(*self.condition.cells, tile, overlap, self.multiple, self.wrap, self.alignment)

    def _upsampled(self, image: int, window: Window) -> Tensor:
        return self.condition.upsampled(image, window).to(self.model.dtype)

    def _shrinking(self, attempt: Callable[[int], R]) -> R:
        smallest = min(self.smallest, self.tile)
        result, self.tile = shrinking(self.model.runtime, self.tile, smallest, attempt)
        return result

    def _first_tile(self, tile: int | str) -> int:
        """Side of a tile in latent cells: as asked, or the largest that fits in half of the free memory."""
        height, width = self.condition.cells
        whole = max(height, width)
        if tile == 0:
            return whole
        if tile == "auto":
            free = self.model.runtime.free_memory(self.model.device)
            tile = largest_tile(self.model.config.autoencoder, self.model.dtype, free)
        cells = int(tile) // self.factor // self.multiple * self.multiple
        return min(whole, max(self.smallest, cells))

    def _advance(self, tiles: int) -> None:
        self.at = replace(self.at, tile=self.at.tile + tiles)
        if self.callback is not None:
            self.callback(self.at)

    def _preview(self) -> Image.Image:
        """The first image so far: colours are an affine map of the latent, fitted to the LR image.

        At latent size; of large latents, every second or further cell.
        """
        cond = self.condition.thumbnail(0)
        fewer = (..., *[slice(None, None, math.ceil(max(cond.shape[1:]) / LARGEST_PREVIEW))] * 2)
        shown = cond[fewer] if self.latest is None else _affine(self.latest[0][fewer], cond[fewer])
        pixels = ((shown.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0)
        return Image.fromarray(pixels.cpu().numpy())


def working_memory(config: AutoencoderConfig, dtype: torch.dtype, tile: int) -> int:
    """Bytes that grow with a tile of that side, in output pixels, while it is decoded, beside the weights.

    Fitted to peaks measured on a CPU in float32 (docs/performance.md); a step of the experts takes less. It promises
    low precision no less: filters, codes and what torch makes of half precision on the way are float32 too.
    """
    return (25 * config.ch * max(dtype.itemsize, 4) // 4 + 1250) * tile**2


def largest_tile(config: AutoencoderConfig, dtype: torch.dtype, free: int) -> int:
    """Side in output pixels of the largest tile that fits in half of the free memory, up to LARGEST_TILE."""
    room = max(0.0, free / 2 - FIXED_MEMORY) / working_memory(config, dtype, 1)
    return min(LARGEST_TILE, int(math.sqrt(room)))


def _crop(canvas: Tensor, image: int, window: Window) -> Tensor:
    return crop(canvas[image : image + 1], window)


def generators(seed: int, batch_seed: str, images: int) -> list[torch.Generator]:
    """A CPU generator for each image, seeded with (seed, image index): noise belongs to the image, not to the batch."""
    keys = [(seed % 2**64, 0 if batch_seed == "same" else i) for i in range(images)]
    words = [int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]) for key in keys]
    return [torch.Generator().manual_seed(word % 2**63) for word in words]


def _affine(latent: Tensor, colours: Tensor) -> Tensor:
    """The colours [3, h, w] that an affine map of the latent's channels predicts, fitted by least squares."""
    channels = latent.float().cpu().flatten(1).T  # [hw, C]
    design = torch.cat([channels, torch.ones(len(channels), 1)], dim=1)
    target = colours.float().cpu().flatten(1).T
    normal = design.T @ design + 1e-4 * len(design) * torch.eye(design.shape[1])
    return (design @ torch.linalg.solve(normal, design.T @ target)).T.view(-1, *latent.shape[1:])


def finite(values: Tensor) -> bool:
    """True if all values [..., C, h, w] are numbers. Plane by plane, since isfinite copies what it is given."""
    return all(bool(torch.isfinite(plane).all()) for plane in values.flatten(0, -3))


def _finite(values: Tensor, what: str) -> Tensor:
    if not finite(values):
        raise NumericsError(f"{what} is not a number everywhere: use --dtype fp32 or bf16, or check the model's files")
    return values
