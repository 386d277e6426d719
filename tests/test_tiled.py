"""Windows, blending, and the tiled predictor: exact where it can be, equal to the untiled one where it should be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from moesr.errors import SettingError
from moesr.images.tile_windows import Blender, Window, crop, plan_windows
from moesr.tiling import predict_in_tiles

pytestmark = pytest.mark.usefixtures("seeded")

# height, width, tile, overlap, multiple
SIZES = [(64, 64, 32, 8, 8), (104, 40, 48, 16, 8), (37, 91, 24, 7, 1), (16, 72, 16, 15, 1), (80, 80, 32, 0, 8)]


def identity(z: Tensor, t: int, windows: Sequence[Window], images: Sequence[int]) -> Tensor:
    return z


# ---- geometry


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize(("height", "width", "tile", "overlap", "multiple"), SIZES)
def test_windows_cover_with_the_overlap_asked_for(
    height: int, width: int, tile: int, overlap: int, multiple: int, wrap: bool
) -> None:
    windows = plan_windows(height, width, tile, overlap, multiple, wrap)
    assert len({(window.h, window.w) for window in windows}) == 1
    assert windows[0].h <= min(tile, height)
    assert windows[0].w <= min(tile, width)
    assert windows[0].y0 == windows[0].x0 == 0
    for starts, size, side in (
        (sorted({window.y0 for window in windows}), windows[0].h, height),
        (sorted({window.x0 for window in windows}), windows[0].w, width),
    ):
        assert all(start % multiple == 0 for start in starts) or side <= tile
        following = [*starts[1:], side + starts[0]] if wrap else starts[1:]
        steps = [after - start for start, after in zip(starts, following)]
        assert all(0 < step <= size - min(overlap, size // 2 if side <= tile else overlap) for step in steps)
        assert max(steps, default=0) - min(steps, default=0) <= multiple
        if not wrap:
            assert starts[-1] + size == side
        if side <= tile:
            assert size == side
            continue
        assert size % multiple == 0
        # As few windows as the largest tiles need, and each as small as that many can be.
        fewest = math.ceil(side / (tile - overlap)) if wrap else math.ceil((side - overlap) / (tile - overlap))
        assert len(starts) == fewest
        reach = (size - multiple - overlap) * fewest + (0 if wrap else overlap)
        assert reach < side
    assert len(windows) == len({window.y0 for window in windows}) * len({window.x0 for window in windows})


def test_wrap_puts_the_border_inside_of_a_window_even_for_one_tile() -> None:
    assert plan_windows(32, 16, 64, 8, 8, wrap=True) == [
        Window(0, 0, 32, 16), Window(0, 8, 32, 16), Window(16, 0, 32, 16), Window(16, 8, 32, 16),
    ]  # fmt: skip
    assert plan_windows(8, 8, 64, 8, 8, wrap=True)[-1] == Window(4, 4, 8, 8)


def test_impossible_geometry_is_named() -> None:
    with pytest.raises(SettingError, match=r"50.*multiple of 8"):
        plan_windows(64, 50, 32, 8, 8)
    with pytest.raises(SettingError, match=r"overlap of 32.*tile of 32"):
        plan_windows(64, 64, 32, 32)
    with pytest.raises(SettingError, match="overlap -1"):
        plan_windows(64, 64, 32, -1)
    with pytest.raises(SettingError, match="do not cover"):
        Blender([Window(0, 0, 8, 8), Window(0, 10, 8, 8)], 8, 18)
    with pytest.raises(SettingError, match="full grid"):
        Blender(plan_windows(16, 16, 8, 0)[:3], 16, 16)


def test_crop_goes_around_the_border() -> None:
    canvas = torch.arange(30.0).reshape(1, 1, 5, 6)
    assert torch.equal(crop(canvas, Window(1, 2, 3, 4)), canvas[..., 1:4, 2:6])
    around = crop(canvas, Window(3, 4, 4, 5))
    assert torch.equal(around, canvas.roll((-3, -4), (-2, -1))[..., :4, :5])


# ---- blending


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("factor", [1, 4])
@pytest.mark.parametrize(("height", "width", "tile", "overlap", "multiple"), SIZES)
def test_tiles_cut_from_a_picture_give_it_back(
    height: int, width: int, tile: int, overlap: int, multiple: int, factor: int, wrap: bool
) -> None:
    windows = [w.scaled(factor) for w in plan_windows(height, width, tile, overlap, multiple, wrap)]
    picture = torch.randn(2, 3, height * factor, width * factor)
    blender = Blender(windows, *picture.shape[-2:])
    canvas, weights = torch.zeros_like(picture), torch.zeros(picture.shape[-2:])
    for window in windows:
        assert blender.weight(window).min().item() > 0
        blender.add(canvas, crop(picture, window), window)
        blender.add(weights, torch.ones(window.h, window.w), window)
    assert torch.allclose(weights, torch.ones_like(weights), rtol=0, atol=1e-6)
    assert (canvas - picture).abs().max().item() <= 1e-6 * picture.abs().max().item()


def test_weights_are_smooth_inside_flat_at_true_borders_and_faint_at_seams() -> None:
    windows = plan_windows(32, 96, 48, 16)
    blender = Blender(windows, 32, 96)
    first, middle = blender.weight(windows[0]), blender.weight(windows[1])
    assert torch.equal(first, first[:1].expand_as(first))  # one row of windows: no ramp up and down
    assert torch.equal(first[0, :24], torch.ones(24))
    assert middle[0, 0].item() < 1e-5
    assert middle[0, -1].item() < 1e-5
    rise = first[0].diff()
    assert bool((rise <= 0).all())
    assert rise.abs().max().item() < 0.2


# ---- the tiled predictor


def convolutions(padding_mode: Literal["zeros", "circular"]) -> nn.Module:
    torch.manual_seed(3)
    layers: list[nn.Module] = [nn.Conv2d(3, 8, 3, padding=1, padding_mode=padding_mode), nn.SiLU()]
    return nn.Sequential(*layers, nn.Conv2d(8, 3, 3, padding=1, padding_mode=padding_mode)).eval()


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(64, 96), (40, 40), (24, 88)])
def test_a_network_that_sees_less_than_the_margin_is_as_if_untiled(height: int, width: int) -> None:
    network, z = convolutions("zeros"), torch.randn(2, 3, height, width)
    windows = plan_windows(height, width, 32, 12, 8)
    assert len(windows) > 1
    x0 = predict_in_tiles(lambda z, *_: network(z), z, 5, windows, tile_batch=2)
    assert torch.allclose(x0, network(z), rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("height", "width", "tile"), [(64, 96, 32), (32, 32, 32), (16, 64, 48)])
def test_wrap_makes_the_border_a_place_like_any_other(height: int, width: int, tile: int) -> None:
    network, z = convolutions("zeros"), torch.randn(1, 3, height, width)
    ring = convolutions("circular")  # the same weights; its padding is the true continuation
    windows = plan_windows(height, width, tile, 12, 8, wrap=True)
    x0 = predict_in_tiles(lambda z, *_: network(z), z, 5, windows, tile_batch=3)
    assert torch.allclose(x0, ring(z), rtol=0, atol=1e-5)
    assert not torch.allclose(network(z), ring(z), rtol=0, atol=1e-2)


def test_predictor_is_told_which_window_of_which_image_it_gets() -> None:
    z = torch.arange(2 * 3 * 48 * 32.0).reshape(2, 3, 48, 32)
    windows = plan_windows(48, 32, 24, 8, 8)
    seen: list[tuple[int, Window]] = []
    sizes: list[int] = []

    def predict(tiles: Tensor, t: int, where: Sequence[Window], images: Sequence[int]) -> Tensor:
        assert t == 123
        for tile, window, image in zip(tiles, where, images):
            assert torch.equal(tile, crop(z[image], window))
        seen.extend(zip(images, where))
        sizes.append(len(tiles))
        return tiles

    advanced: list[int] = []
    predict_in_tiles(predict, z, 123, windows, tile_batch=5, advance=advanced.append)
    assert sorted(seen, key=str) == sorted(((image, window) for image in (0, 1) for window in windows), key=str)
    jobs = 2 * len(windows)
    assert sizes == [5] * (jobs // 5) + [jobs % 5] * (jobs % 5 > 0)
    assert advanced == sizes


def test_one_window_of_the_whole_canvas_is_passed_through() -> None:
    z, advanced = torch.randn(2, 3, 16, 24), []

    def predict(tiles: Tensor, t: int, where: Sequence[Window], images: Sequence[int]) -> Tensor:
        assert list(where) == [Window(0, 0, 16, 24)] * 2
        assert list(images) == [0, 1]
        return tiles

    windows = plan_windows(16, 24, 64, 8)
    assert predict_in_tiles(predict, z, 1, windows, tile_batch=2, advance=advanced.append) is z
    assert advanced == [2]
    assert torch.equal(predict_in_tiles(identity, z, 1, windows, tile_batch=1), z)


def test_what_advance_raises_stops_the_run() -> None:
    def cancel(_: int) -> None:
        raise InterruptedError

    for tile in (16, 64):
        windows, z = plan_windows(32, 32, tile, 8), torch.zeros(1, 3, 32, 32)
        with pytest.raises(InterruptedError):
            predict_in_tiles(lambda *_: pytest.fail("ran on"), z, 1, windows, tile_batch=1, advance=cancel)


def test_half_precision_is_blended_in_float32() -> None:
    z = torch.randn(1, 3, 32, 32).half()
    windows = plan_windows(32, 32, 16, 15)
    x0 = predict_in_tiles(identity, z, 1, windows, tile_batch=4)
    assert x0.dtype == torch.float16
    assert torch.allclose(x0.float(), z.float(), rtol=1e-3, atol=1e-4)
