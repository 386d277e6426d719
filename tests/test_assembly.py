"""Large pictures in bands: the same as in one piece."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import moesr
from moesr.images import postprocess, row_bands
from moesr.images.colour import adain
from moesr.images.condition import Condition, periodic_resize
from moesr.images.resize import resize
from moesr.images.row_bands import Rows, Store, adain_rows, resized_rows, wavelet_rows
from moesr.images.tile_windows import Window


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)) / 2


def rows_of(image: Tensor) -> Rows:
    return lambda start, stop: image[:, start:stop]


def in_bands(rows: Rows, height: int, band: int) -> Tensor:
    return torch.cat([rows(y, min(y + band, height)) for y in range(0, height, band)], dim=1)


@pytest.mark.parametrize("band", [1, 7, 100])
@pytest.mark.parametrize("size", [(20, 31), (50, 13), (7, 90), (33, 17)])
def test_resized_rows(size: tuple[int, int], band: int) -> None:
    image = noise(3, 33, 17)
    expected = resize(image[None], size)[0]
    torch.testing.assert_close(in_bands(resized_rows(rows_of(image), 33, 17, size), size[0], band), expected)


def test_resized_rows_of_an_endless_texture() -> None:
    image = noise(3, 12, 10)
    rows = resized_rows(rows_of(image), 12, 10, (21, 16), wrap=True)
    torch.testing.assert_close(in_bands(rows, 21, 5), periodic_resize(image[None], (21, 16))[0])


@pytest.mark.parametrize("height", [3, 40, 200])
def test_colour_fixes(height: int) -> None:
    content, style = noise(3, height, 9), noise(3, height, 9).flip(1) * 0.5 + 0.1
    store = Store(1, 3, height, 9, torch.device("cpu"))
    for y in range(0, height, 13):
        store.put(0, y, content[:, y : y + 13])
    fixed = in_bands(adain_rows(store.rows(0), store.moments[0], style), height, 11)
    torch.testing.assert_close(fixed, adain(content[None], style[None])[0], atol=1e-5, rtol=1e-5)
    fixed = in_bands(wavelet_rows(rows_of(content), rows_of(style), height), height, 11)
    whole = wavelet_rows(rows_of(content), rows_of(style), height)(0, height)
    torch.testing.assert_close(fixed, whole, atol=1e-5, rtol=1e-5)


def test_large_pictures_are_stored_in_steps_no_eye_or_file_can_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_bands, "LARGE", 10)
    store, image = Store(1, 3, 8, 9, torch.device("cpu")), noise(3, 8, 9).clamp(-1.9, 1.9)
    store.put(0, 0, image)
    assert (store.rows(0)(0, 8) - image).abs().max() < 1e-4
    assert store._values.dtype == torch.int16


@pytest.mark.parametrize("settings", [{}, {"color_fix": "wavelet", "scale": 3}, {"tile": 64}, {"wrap": True}])
def test_a_whole_run_in_bands(
    nano: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, object], request: pytest.FixtureRequest
) -> None:
    model = moesr.load(nano, residency="all")
    image = (np.random.default_rng(0).random((21, 26, 3)) * 255).astype(np.uint8)
    mask = np.linspace(0, 1, 21 * 26).reshape(21, 26)
    whole = moesr.upscale(model, image, mask=mask, steps=2, **settings)  # type: ignore[arg-type]
    monkeypatch.setattr(postprocess, "BAND", 13)
    monkeypatch.setattr(row_bands, "LARGE", 100)
    banded = moesr.upscale(model, image, mask=mask, steps=2, **settings)  # type: ignore[arg-type]
    assert np.abs(whole.astype(int) - banded.astype(int)).max() <= 1
    assert np.mean(whole == banded) > 0.99


@pytest.mark.parametrize(("scale", "factor"), [(4, 4), (8, 4), (2, 4)])
@pytest.mark.parametrize("wrap", [False, True])
def test_condition_of_a_window_is_the_window_of_the_condition(scale: int, factor: int, wrap: bool) -> None:
    """Resizing the part of the LR image that a window needs equals cutting the window from the resized whole."""
    lr = noise(1, 3, 32, 48).clamp(-1, 1)
    condition = Condition(lr, scale, factor, 8, wrap)
    height, width = condition.cells
    full = (height * factor, width * factor)
    whole = (periodic_resize(lr, full) if wrap else resize(lr, full)).clamp(-1, 1)
    windows = [Window(0, 0, 8, 8), Window(height - 8, width - 8, 8, 8), Window(0, 8, height, 8)]
    if wrap:
        windows += [Window(height - 8, width - 8, 16, 16)]
    for window in windows:
        scaled = window.scaled(factor)
        expected = torch.roll(whole, (-scaled.y0, -scaled.x0), (2, 3))[..., : scaled.h, : scaled.w]
        torch.testing.assert_close(condition.upsampled(0, window), expected, atol=1e-5, rtol=1e-5)
