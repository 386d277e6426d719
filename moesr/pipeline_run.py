"""Images that are on the device together: encoded, denoised and decoded in tiles, by the plan of their call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from . import canvas_memory
from .diffusion.noise import draw_noise, make_generators
from .diffusion.samplers import Noise, Predict, sample
from .errors import NumericsError
from .images.condition import Condition
from .images.fidelity_map import FAITHFUL, Fidelity
from .images.postprocess import hide_masked
from .images.preview import decode_preview, draw_preview
from .images.row_bands import Store
from .images.tile_windows import Window, crop
from .model import SRModel
from .networks.autoencoder import Autoencoder
from .networks.lr_cleaner import clean_in_parts
from .run_plan import Plan
from .runtime import trim_memory
from .settings import Resolved
from .tiling import Layout, decode_in_tiles, find_masked_cells, predict_in_tiles

#: An estimate of restore below this counts as 0: the input is clean, and adapters need not work.
_CLEAN = 0.1


class Run:
    """Images that work together: their condition, what is computed of it in tiles, and what the callback is told.

    colours: LR images [B, 3, H, W] in [-1, 1] on the model's device. mask: from `read_mask`. first: their number in the
    call's batch. first_index: that of the first one's noise. fidelity: from `read_fidelity`. restore: a number, or
    "auto".
    """

    def __init__(
        self, plan: Plan, colours: Tensor, mask: Tensor | None = None, *, first: int = 0, first_index: int = 0,
        fidelity: Fidelity = FAITHFUL, restore: float | str = "auto",
    ) -> None:  # fmt: skip
        model, unet = plan.model, plan.model.config.unet
        self.plan, self.model, self.colours, self.first = plan, model, colours, first
        self.wrap, self.canvas_device = plan.wrap, plan.canvas_device
        self._first_index = first_index
        self._mask = None if mask is None else mask.to(model.device)
        self.lr = hide_masked(colours, mask) if unet.mask else colours
        self._given_restore = restore
        self.lr = self._clean()  # as networks see it
        self.factor = model.config.autoencoder.factor
        self.condition = Condition(
            self.lr, model.scale, self.factor, unet.multiple, plan.wrap, unet.detail, model.config.lr_resize
        )
        cells = self.condition.cells
        inside = None if mask is None else find_masked_cells(mask, self.condition.size, self.condition.filled, cells)
        self.layout = Layout(cells, unet, plan.wrap, inside, plan.overlap)
        self._latest: Tensor | None = None  # predicted x0 of the whole canvas
        self._fidelity, self._shares = fidelity.levels.expand(-1, len(self)), None
        if fidelity.shares is not None:  # per latent cell, [B, 1, h, w]
            self._shares = self.condition.to_cells(fidelity.shares.to(model.device)).expand(len(self), -1, -1, -1)
        self._settings: Tensor | None = None  # restore and fidelity [levels x B, 2], for networks that take them

    def __len__(self) -> int:
        return len(self.colours)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the latents, [B, C, h, w]."""
        return (len(self), self.model.config.unet.out_channels, *self.condition.cells)

    def mask_of(self, image: int) -> Tensor | None:
        """The mask [1, h, w] of one image; None without one."""
        return None if self._mask is None else self._mask[image % len(self._mask)]

    # ---- from LR images to latents

    def _clean(self) -> Tensor:
        """The LR images without what restore takes away; as they are in models without a cleaner."""
        if not self.model.config.autoencoder.cleaner_channels:
            return self.lr

        def attempt(side: int) -> Tensor:
            images = list(self.lr.split(1))
            with self.model.decoder() as autoencoder:
                for i, restore in enumerate(self.restore):
                    if restore:
                        strength = torch.tensor([restore], device=self.model.device)
                        images[i] = clean_in_parts(
                            autoencoder.cleaner, images[i].to(self.model.dtype), strength, side=side, wrap=self.wrap,
                            check=self.model.runtime.check,
                        ).to(self.lr)  # fmt: skip
            return torch.cat(images)

        return self.plan.tiles.attempt(attempt)

    def sample(self, settings: Resolved) -> Tensor:
        """Clean latents [B, C, h, w].

        Networks that take settings are given `restore` and the fidelity, unless both are 0. Their noise is weaker by
        the fidelity: at 1 there is none, and the seed does not matter.
        """
        indices = range(self._first_index, self._first_index + len(self))
        draw, y = self.noise(make_generators(settings.seed, settings.batch_seed, indices)), self.encode()
        if not self.model.config.unet.takes_settings:
            return self.denoise(y, settings, noise=draw)
        levels, fidelity = len(self._levels), self._levels.flatten().clamp(max=1)
        self.give_settings(fidelity)
        strength = (1 - fidelity).view(-1, 1, 1, 1).to(self.canvas_device)
        y = y if y is None else _repeat(y, levels)
        z = self.denoise(y, settings, noise=lambda i: _repeat(draw(i), levels).mul_(strength))
        return z if self._shares is None else z[: len(self)].lerp(z[len(self) :], self._shares.to(z))

    def give_settings(self, fidelity: Tensor) -> None:
        """Has networks that take settings told `restore` and a fidelity, [levels x B], 0 to 1."""
        pairs = torch.stack([torch.tensor(self.restore).repeat(len(fidelity) // len(self)), fidelity], dim=1)
        self._settings = pairs.to(self.model.device) if bool(pairs.any()) else None

    def encode(self) -> Tensor | None:
        """y: the latent of the LR image at output size (ResShift, section 3.1), [B, C, h, w]; None if it has no use."""
        if self.model.process.kind != "residual_shift":
            return None
        height, width = self.condition.cells
        shape = (len(self), self.model.config.autoencoder.embed_dim, height, width)

        def attempt(side: int) -> Tensor:
            windows = self.layout.windows(side)
            out = canvas_memory.zeros(shape, self.canvas_device)
            if not windows:
                return out
            self.plan.reporter.begin("encode", tiles=len(windows) * len(self), preview=self._preview)
            blender = self.layout.blender(side)
            with self.model.decoder() as autoencoder:
                for image in range(len(self)):
                    for window in windows:
                        self._advance(1)
                        latent = autoencoder.encode(self.condition.upsampled(image, window).to(self.model.dtype))
                        blender.add(out[image], latent[0].float(), window)
            return out

        return self.plan.tiles.attempt(attempt)

    def noise(self, generators: Sequence[torch.Generator]) -> Noise:
        """Noise of the whole canvas, drawn anew at every call, with one generator per image."""
        return lambda _: draw_noise(generators, self.shape[1:], self.canvas_device)

    def denoise(self, y: Tensor | None, settings: Resolved, *, noise: Noise) -> Tensor:
        """A clean latent [B, C, h, w], denoised by the experts in turn (paper, section 3.1).

        noise(-1) is what the start is made of, noise(i) that of step i.
        """
        process = self.model.process
        timesteps = process.timesteps(settings.steps, settings.spacing)
        predict = self.make_predictor(y, timesteps)
        start = noise(-1)
        z = process.prior(start, y, timesteps[0], out=None if y is None else canvas_memory.zeros_like(start))
        z = sample(
            settings.sampler, predict, process, timesteps, z, eta=settings.eta, noise=noise, y=y,
            allocate=canvas_memory.zeros_like, last=process.last(settings.steps, settings.spacing),
        )  # fmt: skip
        if not is_finite(z):
            raise NumericsError(_NOT_FINITE.format("the sampled latent"))
        return z

    def make_predictor(self, y: Tensor | None, timesteps: Sequence[int]) -> Predict:
        """Canvas z [B, C, h, w] and one of the timesteps, which are visited in this order -> predicted x0, in tiles."""
        process, bank, plan = self.model.process, self.model.bank, self.plan
        bank.start(timesteps)
        trim_memory()  # encoding took memory in other pieces, which this phase could not use
        times = torch.tensor(timesteps, device=self.model.device)

        def predict_tiles(z: Tensor, t: int, windows: Sequence[Window], images: Sequence[int]) -> Tensor:
            z = z.to(self.model.device)
            cond = torch.cat([self.condition.crop(i % len(self), w) for i, w in zip(images, windows)])
            shift = None if y is None else torch.cat([_crop(y, i, w) for i, w in zip(images, windows)]).to(z.device)
            x, cond = process.scale_input(z, t).to(self.model.dtype), cond.to(self.model.dtype)
            more = () if self._settings is None else (self._settings[list(images)],)
            with bank.stage(t) as expert:
                out = expert(x, cast(Any, expert).embed(times[timesteps.index(t), None], x.dtype, *more), cond)
            return process.x0(out.float(), z, t, shift)

        def predict(z: Tensor, t: int) -> Tensor:
            def attempt(side: int) -> Tensor:
                windows = self.layout.windows(side)
                if not windows:
                    return canvas_memory.zeros_like(z)
                plan.reporter.begin(
                    "sample", step=timesteps.index(t) + 1, steps=len(timesteps), t=t, expert=bank.index(t),
                    tiles=len(windows) * len(z), preview=self._preview,
                )  # fmt: skip
                return predict_in_tiles(
                    predict_tiles, z, t, windows, tile_batch=plan.tile_batch, blender=self.layout.blender(side),
                    advance=self._advance,
                )  # fmt: skip

            self._latest = plan.tiles.attempt(attempt)
            return self._latest

        return predict

    # ---- from latents to pictures

    def decode(self, z: Tensor, image: int) -> Store:
        """One image in about [-1, 1], at the model's scale, of the latents of all (paper, section 3.3).

        Where a mask leaves tiles out it is the LR image, resized: cheap, and colours are counted over the whole.
        """
        self._latest = z
        trim_memory()
        store = Store(1, 3, *self.condition.size, self.model.device, self.canvas_device)

        def attempt(side: int) -> Store:
            store.reset()
            windows, finite = self.layout.windows(side), []
            self.plan.reporter.begin(
                "decode", tile=image * len(windows), tiles=len(windows) * len(self), preview=self._preview
            )
            with self.model.decoder() as autoencoder:
                for start, band in self._decoded_rows(autoencoder, z, image, side):
                    rows = self.condition.finish(band)
                    finite.extend(torch.isfinite(plane).all() for plane in rows)
                    store.put(0, start, rows)
            if not bool(torch.stack(finite).all()):
                raise NumericsError(_NOT_FINITE.format("the decoded image"))
            return store

        return self.plan.tiles.attempt(attempt)

    def _decoded_rows(self, autoencoder: Autoencoder, z: Tensor, image: int, side: int) -> Iterator[tuple[int, Tensor]]:
        """(first row, rows [3, h, W]) of the decoded image from the top, with the padding of the condition."""
        active = set(self.layout.windows(side))
        grid = self.layout.grid(side)
        if not active:
            yield from self._resized_rows(image, 0, self.condition.cells[0], side)
            return

        lowest, highest = self._levels[0, image].item(), self._levels[-1, image].item()
        decode_tiles = partial(autoencoder.decode, restore=self.restore[image])

        def decode(windows: Sequence[Window]) -> Sequence[Tensor]:
            wanted = [w for w in windows if w in active]
            self._advance(len(wanted))
            pictures: dict[Window, Tensor] = {}
            if wanted:
                features = None
                if highest or autoencoder.config.lr_skip or autoencoder.config.adapter_ranks:
                    large = torch.cat([self.condition.upsampled(image, w) for w in wanted])
                    features = autoencoder.window_features(large.to(self.model.dtype))
                latents = torch.cat([_crop(z, image, w) for w in wanted]).to(self.model.device)
                decoded = decode_tiles(latents, features, lowest)
                shares = [_crop(self._shares, image, w) for w in wanted if self._shares is not None]
                if any(bool(share.any()) for share in shares):
                    share = F.interpolate(torch.cat(shares).to(decoded), decoded.shape[-2:], mode="bilinear")
                    decoded = decoded.lerp(decode_tiles(latents, features, highest), share)
                pictures = dict(zip(wanted, decoded))
            return [pictures[w] if w in pictures else self.condition.upsampled(image, w)[0] for w in windows]

        height, width = self.condition.cells
        top, bottom = min(w.y0 for w in grid), max(w.y0 + w.h for w in grid)
        left, right = (edge * self.factor for edge in (min(w.x0 for w in grid), max(w.x0 + w.w for w in grid)))
        yield from self._resized_rows(image, 0, top, side)
        for start, band in decode_in_tiles(
            decode, grid, height=height, width=width, wrap=self.wrap, tile_batch=self.plan.tile_batch,
            factor=self.factor, canvas_device=self.canvas_device, blender=self.layout.blender(side, self.factor),
        ):  # fmt: skip
            if right - left < width * self.factor and not self.wrap:
                rows = Window(start // self.factor, 0, band.shape[1] // self.factor, width)
                wide = self.condition.upsampled(image, rows)[0].to(band)
                wide[..., left:right] = band[..., left:right]
                band = wide
            yield start, band
        yield from self._resized_rows(image, bottom, height, side)

    def _resized_rows(self, image: int, top: int, bottom: int, side: int) -> Iterator[tuple[int, Tensor]]:
        """Rows of the LR image at output size, between two rows of cells, a band of at most `side` cells at a time."""
        for start in range(top, bottom, side):
            window = Window(start, 0, min(side, bottom - start), self.condition.cells[1])
            yield start * self.factor, self.condition.upsampled(image, window)[0].to(self.canvas_device)

    # ---- tiles

    def _advance(self, tiles: int) -> None:
        self.model.runtime.check()
        if tiles:
            self.plan.reporter.advance(tiles)

    def _preview(self) -> Image.Image:
        height, width = self.condition.filled
        colours = self.condition.thumbnail(0)[:, :height, :width]
        latest = None if self._latest is None else self._latest[0, :, :height, :width]
        if latest is None or not self.model.config.autoencoder.lr_skip:
            return draw_preview(latest, colours)
        with self.model.decoder() as autoencoder:
            return decode_preview(autoencoder, latest, colours)

    @cached_property
    def _levels(self) -> Tensor:
        """Lowest and, of maps, highest fidelity of each image; what is restored has some of its own. [1 or 2, B]"""
        least = self.model.config.restored_fidelity
        if not least:
            return self._fidelity
        return self._fidelity + (1 - self._fidelity).clamp(min=0) * least * torch.tensor(self.restore)

    @cached_property
    def restore(self) -> list[float]:
        """How degraded each image is, 0 to 1: what was set, or an estimate. 0 for networks that do not ask."""
        if self._given_restore != "auto" or not self.model.config.unet.takes_settings:
            return [0.0 if self._given_restore == "auto" else float(self._given_restore)] * len(self)
        values = estimate_restore(self.model, self.lr[:, :3])
        if any(values):
            span = " to ".join(f"{value:.2f}" for value in dict.fromkeys((min(values), max(values))))
            self.plan.reporter.note(f"restore {span}: estimated, since the input is not clean; 0 turns it off")
        return values


def estimate_restore(model: SRModel, lr: Tensor) -> list[float]:
    """How degraded each LR image [B, 3, H, W] in [-1, 1] is, 0 to 1: 0 if it is nearly clean."""
    with model.decoder() as autoencoder:
        found = torch.cat([autoencoder.estimate_restore(x[None].to(model.device, model.dtype)) for x in lr])
    return [value if value >= _CLEAN else 0.0 for value in found.tolist()]


_NOT_FINITE = "{} is not a number everywhere: use --dtype fp32 or bf16, or check the model's files"


def is_finite(values: Tensor) -> bool:
    """True if all values [..., C, h, w] are numbers. Plane by plane, since isfinite copies what it is given."""
    return bool(torch.stack([torch.isfinite(plane).all() for plane in values.flatten(0, -3)]).all())


def _repeat(canvas: Tensor, times: int) -> Tensor:
    return canvas if times == 1 else torch.cat([canvas] * times)


def _crop(canvas: Tensor, image: int, window: Window) -> Tensor:
    return crop(canvas[image : image + 1], window)
