"""moesr/images: resize, colour, alpha; large pictures in bands are the same as in one piece."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import moesr
from moesr.errors import ImageError, SettingError
from moesr.images import postprocess, row_bands
from moesr.images.alpha import fill_transparent
from moesr.images.colour import Moments, match_moments
from moesr.images.condition import Condition, periodic_resize
from moesr.images.resize import resize, resize_uint8
from moesr.images.row_bands import Rows, resized_rows, wavelet_rows
from moesr.images.tile_windows import Window


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def rows_of(image: Tensor) -> Rows:
    return lambda start, stop: image[:, start:stop]


def in_bands(rows: Rows, height: int, band: int) -> Tensor:
    return torch.cat([rows(y, min(y + band, height)) for y in range(0, height, band)], dim=1)


# ---- resize


@pytest.mark.parametrize(("length", "count"), [(1, 4), (3, 1), (2, 256), (200, 333)])
def test_resize_mirrors_at_borders_however_small_the_picture_is(length: int, count: int) -> None:
    rows = random(1, 1, length, 1).double()
    mirrored = resize(torch.cat([rows, rows.flip(2)], dim=2), (2 * count, 1))[:, :, :count]
    torch.testing.assert_close(resize(rows, (count, 1)), mirrored)
    torch.testing.assert_close(resize(rows.mT, (1, count)), mirrored.mT)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_resize_keeps_type_and_constant(dtype: torch.dtype) -> None:
    image = torch.full((2, 3, 9, 7), 0.7, dtype=dtype)
    result = resize(image, (4, 31))
    assert result.dtype == dtype
    assert result.shape == (2, 3, 4, 31)
    torch.testing.assert_close(result, torch.full_like(result, 0.7))


def test_resize_refuses_what_has_no_pixels() -> None:
    with pytest.raises(SettingError):
        resize(torch.zeros(1, 3, 4, 4), (0, 4))
    with pytest.raises(ImageError):
        resize(torch.zeros(1, 3, 0, 4), (4, 4))
    with pytest.raises(ImageError):
        resize_uint8(np.zeros((4, 4), np.float32), (2, 2))


# ---- colour


def test_colours_move_on_the_device_where_the_rows_are() -> None:
    """Statistics come from bands in system memory, rows from the device's: here one that has no numbers."""
    rows = torch.empty(3, 4, 5, device="meta")
    assert match_moments(rows, Moments(torch.rand(3, 6, 7)), Moments(torch.rand(3, 2, 2))).device == rows.device


def wavelet(content: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
    """The colour fix of a whole picture [3, H, W], in bands."""
    rows = wavelet_rows(rows_of(content), rows_of(style), content.shape[1])
    return in_bands(rows, content.shape[1], 11)


def test_wavelet_is_the_dilated_pyramid() -> None:
    line = torch.tensor([1.0, 2.0, 1.0])
    kernel = (torch.outer(line, line) / 16).expand(3, 1, 3, 3)

    def low(image: torch.Tensor) -> torch.Tensor:
        for level in range(5):
            padded = F.pad(image, (2**level,) * 4, mode="replicate")
            image = F.conv2d(padded, kernel, groups=3, dilation=2**level)
        return image

    content, style = random(3, 40, 9), random(3, 40, 9, seed=1)
    torch.testing.assert_close(wavelet(content, style), content - low(content[None])[0] + low(style[None])[0])


def test_colour_fix_of_one_pixel_is_the_style() -> None:
    content, style = random(3, 1, 1), random(3, 1, 1, seed=1)
    torch.testing.assert_close(match_moments(content, Moments(content), Moments(style)), style)
    torch.testing.assert_close(wavelet(content, style), style)


# ---- alpha


def test_transparent_pixels_take_colours_of_their_neighbours() -> None:
    rgb, alpha = torch.zeros(1, 3, 21, 30), torch.zeros(1, 1, 21, 30)
    rgb[:, :, :, :10] = torch.tensor([1.0, 0.5, 0.25]).view(1, 3, 1, 1)
    rgb[:, :, :, 20:] = torch.tensor([0.0, 0.25, 0.75]).view(1, 3, 1, 1)
    alpha[..., :10] = 1
    alpha[..., 20:] = 0.5
    result = fill_transparent(rgb, alpha)
    assert torch.equal(result[..., :10], rgb[..., :10])
    assert torch.equal(result[..., 20:], rgb[..., 20:])
    torch.testing.assert_close(result[0, :, :, 10], rgb[0, :, :, 9], rtol=0, atol=0.1)
    torch.testing.assert_close(result[0, :, :, 19], rgb[0, :, :, 20], rtol=0, atol=0.1)
    assert (result[0, 0].diff(dim=1) <= 1e-6).all()  # from one colour to the other, without a dark hole between


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_constant_alpha_changes_nothing(value: float) -> None:
    rgb = random(1, 3, 5, 5)
    assert fill_transparent(rgb, torch.full((1, 1, 5, 5), value)) is rgb


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)) / 2


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


@pytest.mark.parametrize("settings", [{}, {"color_fix": "wavelet", "scale": 3}, {"tile": 64}, {"wrap": True}])
def test_a_whole_run_in_bands(
    shift_model: str, monkeypatch: pytest.MonkeyPatch, settings: dict[str, object], request: pytest.FixtureRequest
) -> None:
    model = moesr.load(shift_model, residency="all")
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
