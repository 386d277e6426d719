"""Frames as a stream: the same results as a batch, memory that stays, and motion that is followed."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import moesr
from moesr import run_plan
from moesr.errors import ImageError, SettingError
from moesr.frames import steady_frames
from moesr.images.motion import Steadier, estimate_motion, warp
from moesr.model import SRModel
from moesr.progress import Event, narrow_callback


@pytest.fixture(scope="module")
def model(nano: Path) -> SRModel:
    return moesr.load(nano, residency="all")


def photo(height: int, width: int, shift: float = 0.0) -> Tensor:
    """A smooth pattern [H, W, 3] in [0, 1] that moves to the left by `shift` pixels."""
    y, x = torch.meshgrid(torch.arange(height) / 7, (torch.arange(width) + shift) / 9, indexing="ij")
    return torch.stack([torch.sin(3 * y + k) * torch.cos(2 * x + y * k) for k in range(3)], dim=-1) * 0.4 + 0.5


def test_a_stream_is_the_batch(model: SRModel, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = torch.stack([photo(9, 11, k) for k in range(5)])
    want = moesr.upscale(model, frames, steps=2, seed=3)
    monkeypatch.setattr(run_plan, "GROUP_BYTES", 30_000)  # two at a time
    events: list[Event] = []
    read: list[int] = []

    def play() -> Iterator[Tensor]:
        for index, frame in enumerate(frames):
            read.append(index)
            yield frame

    results = moesr.upscale_frames(model, play(), steps=2, seed=3)
    assert torch.equal(next(results), want[0])
    assert read == [0, 1]  # no more than a group
    assert torch.equal(torch.stack(list(results)), want[1:])

    list(moesr.upscale_frames(model, list(frames), steps=2, callback=events.append))
    assert {(e.image, e.images) for e in events} == {(1, 5), (3, 5), (5, 5)}
    assert (fractions := [e.fraction for e in events]) == sorted(fractions)
    assert fractions[-1] > 0.9


def test_a_batch_that_is_steadied_afterwards_is_the_stream(model: SRModel) -> None:
    frames = torch.stack([torch.cat([photo(24, 32, k / 4), torch.ones(24, 32, 1)], dim=-1) for k in range(3)])
    want = torch.stack(list(moesr.upscale_frames(model, frames, steps=1, batch_seed="same", steady=0.5)))
    results, events = moesr.upscale(model, frames, steps=1, batch_seed="same"), list[Event]()
    assert (results - want)[1:].abs().max() > 0.01
    steady_frames(frames, results, 0.5, narrow_callback(events.append, 0.5, 1))
    assert torch.allclose(results, want, atol=1e-6)
    assert [e.text for e in events] == ["steady, image 1/3", "steady, image 2/3", "steady, image 3/3"]
    assert [e.done for e in events] == pytest.approx([1 / 2, 2 / 3, 5 / 6])


def test_each_frame_comes_back_as_it_came_and_may_have_another_size(model: SRModel) -> None:
    pixels = (photo(8, 9) * 255).byte().numpy()
    frames: list[Any] = [Image.fromarray(pixels).convert(mode) for mode in ("RGB", "L", "RGBA", "LA")]
    frames += [pixels, pixels[..., 0], photo(8, 9).double(), photo(12, 8)]
    results = list(moesr.upscale_frames(model, frames, steps=1, batch_seed="same"))
    for frame, result in zip(frames, results):
        batch = frame[None] if isinstance(frame, Tensor) else frame
        want = moesr.upscale(model, batch, steps=1)
        assert type(result) is type(want)
        if isinstance(result, Image.Image):
            assert result.mode == want.mode
        assert np.array_equal(np.asarray(result), np.asarray(want[0] if isinstance(frame, Tensor) else want))
    assert results[6].dtype == torch.float64


def test_what_is_wrong_is_one_line(model: SRModel) -> None:
    wrong: list[dict[str, Any]] = [
        {"steps": 0}, {"steady": 1.0}, {"colour": "none"}, {"mask": np.ones((2, 8, 9))}, {"first_index": 3},
    ]  # fmt: skip
    for settings in wrong:
        with pytest.raises(SettingError):  # before the first frame
            moesr.upscale_frames(model, [], **settings)
    with pytest.raises(SettingError, match="first_index -1"):
        moesr.upscale(model, photo(8, 9)[None], first_index=-1)
    with pytest.raises(ImageError, match="single image"):
        moesr.upscale_frames(model, photo(8, 9))
    results = moesr.upscale_frames(model, [photo(8, 9), photo(8, 9), photo(8, 9) * torch.nan], steps=1)
    assert (next(results).shape, next(results).shape) == ((32, 36, 3), (32, 36, 3))
    with pytest.raises(ImageError, match=r"frame 3: .*NaN"):
        next(results)


def test_memory_is_flat_and_nothing_is_left_of_a_stream_that_is_closed(shift_model: str) -> None:
    model, alive = moesr.load(shift_model), weakref.WeakSet[Tensor]()

    def play() -> Iterator[Tensor]:
        for k in range(1000):
            frame = photo(8, 12, k / 4)
            alive.add(frame)
            yield frame

    results = moesr.upscale_frames(model, play(), steps=1, scale=16, steady=0.5)
    sizes, frames = [], []
    for _ in zip(range(48), results):
        sizes.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20)
        frames.append(len(alive))
    assert max(sizes[17:]) - sizes[17] < 5  # MiB; those 31 results are 9
    assert max(frames) <= run_plan.LARGEST_GROUP + 1
    results.close()  # type: ignore[attr-defined]
    gc.collect()
    assert not alive


def test_motion_is_found_and_followed() -> None:
    old, new = (photo(48, 64, shift).permute(2, 0, 1)[None] for shift in (0, 1.3))
    motion = estimate_motion(new.mean(1, keepdim=True), old.mean(1, keepdim=True))
    inside = motion[0, :, 8:-8, 8:-8]
    assert (inside - torch.tensor([1.3, 0.0]).view(2, 1, 1)).abs().mean() < 0.1
    assert (new - warp(old, motion))[..., 8:-8, 8:-8].abs().mean() < 0.01


def test_steady_lowers_flicker_and_lets_changes_through() -> None:
    generator = torch.Generator().manual_seed(0)
    frames = [photo(32, 48, k / 4).permute(2, 0, 1)[None] for k in range(6)]
    clean = [photo(64, 96, k / 2).permute(2, 0, 1)[None] for k in range(6)]  # what moves by twice as many pixels
    noisy = [x + 0.05 * torch.randn(x.shape, generator=generator) for x in clean]
    steadier = Steadier(0.5)
    steadied = [steadier.steady(frame, x) for frame, x in zip(frames, noisy)]
    errors = [(a - b).abs().mean().item() for a, b in zip(steadied, clean)]
    assert errors[0] == pytest.approx((noisy[0] - clean[0]).abs().mean().item())
    assert max(errors[3:]) < 0.75 * errors[0]
    cut = torch.rand(frames[0].shape, generator=generator)
    first = steadier.steady(cut, noisy[0])
    assert (first - noisy[0]).abs().mean() < 0.01
    stands = steadier.steady(cut, noisy[1])  # mixed as it is, not resampled
    assert torch.allclose(stands, noisy[1].lerp(first.clamp(0, 1), 0.5), atol=1e-3)
