"""How a run is laid out: tiles by size and model, canvases by room, masks that save work, batches that stream."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import moesr
from moesr import pipeline_run, run_plan
from moesr.canvas_memory import place_canvases
from moesr.config import SwinUNetConfig, UNetConfig
from moesr.images.tile_windows import Blender, crop
from moesr.model import SRModel
from moesr.progress import Event, Reporter
from moesr.run_plan import plan_run
from moesr.tiling import Layout, TileSize, find_masked_cells
from tests.image_files import photo
from tests.small_models import Room

CPU, CARD = torch.device("cpu"), torch.device("cuda")


# ---- tiles and canvases


def test_the_automatic_tile_depends_on_the_picture_unless_it_cannot_fit(nano: Path) -> None:
    sides, notes = [], []
    for free in (2**40, 8 * 2**30, 2 * 2**30, 400 * 2**20, 2**20):
        plan = plan_run(moesr.load(nano, runtime=Room(free)), 500, 400, callback=lambda event: notes.append(event.note))
        sides.append(plan.tiles.side * 4)
        plan.reporter.advance(1)
    assert sides == [768, 768, 768, 192, 64]
    assert notes[:3] == ["", "", ""]
    assert "tiles of 192 instead of 768 pixels" in notes[3]
    assert plan_run(moesr.load(nano, runtime=Room(2**40)), 20, 10).tiles.side * 4 == 80


def test_several_tiles_at_a_time_only_on_a_device_with_room(model: SRModel) -> None:
    def batch(device: torch.device, free: int) -> int:
        room = Room(free)
        return TileSize(
            256, whole=125, smallest=16, multiple=1, config=model.config.autoencoder, device=device, runtime=room,
            free=free, reporter=Reporter(None),
        ).batch()  # fmt: skip

    assert batch(CPU, 2**40) == 1
    assert batch(CARD, 2**40) == 16
    assert batch(CARD, 2**30) == 3
    assert batch(CARD, 2**20) == 1
    assert plan_run(model, 500, 400, tile_batch=5).tile_batch == 5


def test_canvases_lie_on_the_device_while_there_is_room() -> None:
    assert place_canvases(10 * 2**30, CARD, 80 * 2**30) == CARD
    assert place_canvases(10 * 2**30, CARD, 8 * 2**30) == CPU
    assert place_canvases(1, CPU, 0) == CPU


# ---- masks


def test_a_partial_blender_sums_to_one_wherever_a_window_is() -> None:
    layout = Layout((96, 128), UNetConfig(channel_mult=(1, 2, 2, 4)), wrap=False)
    windows = [w for w in layout.grid(48) if (w.y0, w.x0) != (0, 0)][:-2]
    picture = torch.rand(96, 128)
    canvas, covered = torch.zeros(96, 128), torch.zeros(96, 128, dtype=torch.bool)
    blender = Blender(windows, 96, 128, partial=True)
    for window in windows:
        blender.add(canvas, crop(picture, window), window)
        crop(covered, window).fill_(True)
    assert not covered.all()
    assert torch.allclose(canvas, torch.where(covered, picture, 0), atol=1e-5)


def test_tiles_overlap_by_what_is_asked_and_at_most_by_half(model: SRModel) -> None:
    factor, found = model.config.autoencoder.factor, {}
    for asked in ("auto", 8, 32, 4096):
        plan = plan_run(model, 100, 100, tile=128, tile_overlap=asked)
        windows = Layout((104, 104), model.config.unet, False, None, plan.overlap).windows(plan.tiles.side)
        first, second = sorted({w.y0 for w in windows})[:2]
        found[asked] = (first + windows[0].h - second) * factor
    assert 8 <= found[8] <= found["auto"] <= found[32] <= found[4096] <= 64 + 8 * factor
    assert found[8] < 32 <= found[32] < found[4096]

    def stop(event: Event) -> None:
        counts.append(event.tiles)
        raise StopIteration

    counts: list[int] = []
    for asked in ("auto", 4096):
        with pytest.raises(StopIteration):
            moesr.upscale(model, photo(40, 50), tile=64, tile_overlap=asked, callback=stop)
    assert counts[0] < counts[1]


@pytest.mark.parametrize("unet", [UNetConfig(), SwinUNetConfig(latent_size=32)])
def test_tiles_lie_around_the_mask(unet: Any) -> None:
    """A square of a tenth of the picture anywhere takes less than .35 of the work, and all of it is in a tile."""
    side = 512
    whole = sum(w.h * w.w for w in Layout((side, side), unet, wrap=False).windows(192))
    for top, left in ((0, 0), (170, 175), (349, 200), (300, 349)):
        mask = torch.zeros(1, 1, side, side)
        mask[..., top : top + 162, left : left + 162] = 1
        inside = find_masked_cells(mask, (4 * side, 4 * side), (side, side), (side, side))
        windows = Layout((side, side), unet, wrap=False, inside=inside).windows(192)
        covered = torch.zeros(side, side, dtype=torch.bool)
        for window in windows:
            assert window.h % unet.multiple == 0
            assert 0 <= window.y0 <= side - window.h
            crop(covered, window).fill_(True)
        assert covered[inside].all()
        assert sum(w.h * w.w for w in windows) < 0.35 * whole
    assert inside.sum() < 1.15 * 162**2


@pytest.mark.parametrize("wrap", [False, True])
def test_what_a_mask_does_not_touch_is_not_computed(model: SRModel, wrap: bool) -> None:
    image, mask = photo(60, 80), np.zeros((60, 80), np.float32)
    mask[5:12, 50:61] = 1
    counts: dict[str, int] = {}
    for name, given in (("all", None), ("part", mask)):
        events: list[Event] = []
        out = moesr.upscale(model, image, mask=given, tile=96, steps=1, wrap=wrap, callback=events.append)
        counts[name] = len(events)
        assert [e.tile for e in events if e.phase == "decode"][-1] == events[-1].tiles
    assert counts["part"] <= (0.5 if wrap else 0.35) * counts["all"]
    plain = moesr.upscale(model, image, mask=np.full((60, 80), 1e-6, np.float32), tile=96, steps=1, wrap=wrap)
    assert np.abs(out.astype(int) - plain)[60:, :].max() <= 1  # bicubic, far from the mask
    assert np.abs(out.astype(int) - plain)[24:44, 204:240].mean() > 0.5


def test_an_empty_mask_acts_as_none(model: SRModel) -> None:
    notes: list[str] = []
    out = moesr.upscale(
        model, photo(9, 9), steps=1, mask=np.zeros((9, 9)), callback=lambda event: notes.append(event.note)
    )
    assert np.array_equal(out, moesr.upscale(model, photo(9, 9), steps=1))
    assert [note for note in notes if note] == ["the mask is empty: it acts as none"]


# ---- batches


def test_a_long_batch_streams_and_is_what_it_was(model: SRModel, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.from_numpy(np.stack([photo(10, 12, seed) for seed in range(5)])).float() / 255
    mask = torch.ones(5, 10, 12)
    mask[3, :, :6] = 0
    want = moesr.upscale(model, images, steps=2, seed=3, mask=mask)
    latents = moesr.sample_latents(model, images, steps=2, seed=3, mask=mask)
    monkeypatch.setattr(run_plan, "GROUP_BYTES", 30_000)
    events: list[Event] = []
    assert torch.equal(moesr.upscale(model, images, steps=2, seed=3, mask=mask, callback=events.append), want)
    assert {(e.image, e.images) for e in events} == {(1, 5), (3, 5), (5, 5)}
    fractions = [e.fraction for e in events]
    assert fractions == sorted(fractions)
    assert torch.equal(moesr.sample_latents(model, images, steps=2, seed=3, mask=mask), latents)
    assert torch.equal(moesr.decode_latents(model, latents, images, mask=mask), want)


def test_a_batch_that_does_not_fit_gets_smaller_groups(model: SRModel, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.rand(4, 8, 8, 3, generator=torch.Generator().manual_seed(0))
    want = moesr.upscale(model, images, steps=1)
    made, condition = [], pipeline_run.Condition

    def limited(lr: torch.Tensor, *rest: Any) -> Any:
        made.append(len(lr))
        if len(lr) > 2:
            raise MemoryError
        return condition(lr, *rest)

    monkeypatch.setattr(pipeline_run, "Condition", limited)
    assert torch.equal(moesr.upscale(model, images, steps=1), want)
    assert made == [4, 2, 2]
