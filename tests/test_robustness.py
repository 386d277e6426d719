"""What an artist's files and sizes do: small and thin ones, fringes, smooth gradients, seams, grey and black."""

from __future__ import annotations

import io
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import moesr
from moesr.images import postprocess, row_bands
from moesr.images.canvas import as_canvas
from moesr.images.files import Picture, read_image, write_image
from moesr.images.resize import resize_uint8
from moesr.model import SRModel
from tests.image_files import encode, scene, text
from tests.small_models import Largest


@pytest.fixture(scope="module")
def tiny() -> SRModel:
    """The embedded model."""
    return moesr.load(device="cpu", dtype="fp32")


def test_every_small_size(model: SRModel) -> None:
    """Sides from 1 to 24, more than any multiple of a latent, each once as height and once as width; and thin ones."""
    widths = random.Random(0).sample(range(1, 25), 24)
    for height, width in [*zip(range(1, 25), widths), (1, 1), (1, 4000), (4000, 1)]:
        out = moesr.upscale(model, np.full((height, width, 3), 99, np.uint8), steps=1)
        assert out.shape == (height * 4, width * 4, 3), (height, width)


def logo() -> np.ndarray:
    """A red disc with a soft shadow on nothing; the colour under full transparency is garbage, as editors leave it."""
    y, x = np.mgrid[:48, :48]
    disc = np.hypot(y - 20, x - 20) < 12
    shadow = np.clip(1 - np.hypot(y - 26, x - 26) / 18, 0, 1) * 0.6
    alpha = np.where(disc, 1.0, shadow)
    rgb = np.where(disc[..., None], [0.85, 0.1, 0.1], [0.02, 0.02, 0.02])
    rgb = np.where(alpha[..., None] == 0, [0.0, 1.0, 0.0], rgb)
    return (np.concatenate([rgb, alpha[..., None]], axis=-1) * 255).round().astype(np.uint8)


def over(image: np.ndarray, background: tuple[float, float, float]) -> np.ndarray:
    values = image.astype(float) / 255
    return values[..., :3] * values[..., 3:] + np.array(background) * (1 - values[..., 3:])


@pytest.mark.parametrize("background", [(0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (1.0, 0.0, 0.0)])
def test_a_logo_with_a_soft_shadow_has_no_fringe(tiny: SRModel, background: tuple[float, float, float]) -> None:
    """The colour under full transparency leaves no trace, and composing adds little to what edges overshoot anyway."""
    model, dirty = tiny, logo()
    out = moesr.upscale(model, dirty)
    assert out.shape == (192, 192, 4)
    assert (out[:8, -8:, 3] == 0).all()
    clean = dirty.copy()
    clean[dirty[..., 3] == 0, :3] = (255, 0, 255)
    composed = over(out, background)
    assert np.abs(composed - over(moesr.upscale(model, clean), background)).max() < 1 / 255
    naive = [over(resize_uint8(image, (192, 192)), background) for image in (dirty, clean)]
    assert np.abs(naive[0] - naive[1]).max() > 20 / 255  # a plain resize does leave one
    assert beyond(composed, over(dirty, background)) < 0.06
    opaque = (over(dirty, background) * 255).round().astype(np.uint8)
    assert beyond(moesr.upscale(model, opaque) / 255, opaque / 255) > 0.05  # where the network is left to itself


def beyond(image: np.ndarray, source: np.ndarray) -> float:
    """How far the worst thousandth of the pixels leaves the range of the source's pixels around it."""
    y, x = np.mgrid[:192, :192] // 4
    nearby = np.stack([np.roll(source, (dy, dx), (0, 1)) for dy in range(-2, 3) for dx in range(-2, 3)])
    low, high = nearby.min(0)[y, x], nearby.max(0)[y, x]
    return float(np.quantile(np.maximum(low - image, image - high).clip(0), 0.999))


def test_alpha_stays_exact_where_it_is_flat(model: SRModel) -> None:
    image = np.zeros((24, 24, 4), np.uint8)
    image[:, 12:, 3] = 255
    out = moesr.upscale(model, image, steps=1)
    assert (out[:, :40, 3] == 0).all()
    assert (out[:, 56:, 3] == 255).all()


def test_a_16_bit_gradient_stays_smooth(tiny: SRModel, tmp_path: Path) -> None:
    ramp = np.linspace(0.2, 0.4, 64, dtype=np.float32)
    rgb = np.broadcast_to(ramp[None, :, None], (16, 64, 3))
    write_image(tmp_path / "in.png", Picture(rgb, bits=16))
    picture = read_image(tmp_path / "in.png")
    assert picture.bits == 16
    write_image(tmp_path / "out.png", moesr.upscale(tiny, picture))
    out = read_image(tmp_path / "out.png")
    assert out.bits == 16
    assert len(np.unique(out.rgb)) > 256


@pytest.mark.parametrize(("height", "width"), [(24, 24), (19, 30)])
def test_the_seam_of_a_repeated_texture_is_no_edge(tiny: SRModel, height: int, width: int) -> None:
    """Across the border neighbours differ no more than anywhere else in the picture, along either axis."""
    y, x = np.mgrid[:height, :width]
    waves = np.sin(2 * np.pi * (2 * y / height + 3 * x / width)) + np.cos(2 * np.pi * (5 * y / height - x / width))
    texture = ((waves[..., None] * [0.15, 0.1, 0.05] + 0.5) * 255).round().astype(np.uint8)
    endless, plain = (moesr.upscale(tiny, texture, wrap=wrap, tile=96).astype(float) for wrap in (True, False))
    for axis in (0, 1):
        steps = step_energies(endless, axis)
        assert steps[-1] <= 1.1 * steps[:-1].max()
        assert step_energies(plain, axis)[-1] > 1.5 * steps.max()  # without wrap there is an edge: the measure can tell


def step_energies(image: np.ndarray, axis: int) -> np.ndarray:
    """Mean square of the step from each row (axis 0) or column to the next; the last step is across the border."""
    others = tuple(i for i in range(3) if i != axis)
    return np.square(np.roll(image, -1, axis) - image).mean(axis=others)


def test_a_large_result_needs_no_floats_of_itself(shift_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = moesr.load(shift_model, residency="all")
    monkeypatch.setattr(row_bands, "LARGE", 0)
    monkeypatch.setattr(postprocess, "BAND", 32)
    with Largest(pictures=True) as made:
        out = moesr.upscale(model, np.full((128, 48, 3), 99, np.uint8), steps=1, tile=64)
    assert out.shape == (512, 192, 3)
    assert 0 < made.entries <= out.size / 2


# ---- grey stays grey and black stays black

GREY = {
    "RGB": lambda: text().convert("RGB"),
    "RGBA": lambda: text().convert("RGBA"),
    "palette": lambda: text().convert("1").convert("P"),
    "JPEG": lambda: Image.open(io.BytesIO(encode(text().convert("RGB"), "JPEG", quality=75))),
    "WebP": lambda: Image.open(io.BytesIO(encode(text().convert("RGB"), "WEBP", quality=75))),
}


@pytest.mark.parametrize("name", GREY)
def test_equal_channels_are_found_whatever_the_mode(name: str) -> None:
    image = GREY[name]()
    assert as_canvas(image).neutral == (True,)
    assert as_canvas(np.asarray(image.convert("RGB"))).neutral == (True,)


def test_a_tint_is_colour_and_each_image_of_a_batch_is_seen_by_itself() -> None:
    grey = np.asarray(text().convert("RGB"), np.float32) / 255
    sepia = grey * np.array([1, 0.98, 0.95], np.float32)
    faint = (grey * 255 - np.array([0, 1, 2])).clip(0).astype(np.float32) / 255
    batch = torch.from_numpy(np.stack([grey, sepia, faint]))
    assert as_canvas(batch).neutral == (True, False, False)
    hidden = np.dstack([(grey * 255).astype(np.uint8), np.zeros(grey.shape[:2], np.uint8)])
    hidden[:24, :, 3], hidden[30:, :, 0] = 255, 7  # colour where nothing is seen
    assert as_canvas(hidden).neutral == (True,)
    assert as_canvas(scene()).neutral == (False,)


def test_grey_results_have_equal_channels(tiny: SRModel) -> None:
    grey = np.asarray(text().convert("RGB"))[:24, :32]
    batch = torch.from_numpy(np.stack([grey, scene(32, 24)])).float() / 255
    result = moesr.upscale(tiny, batch, steps=1)
    assert torch.equal(result[0, ..., 0], result[0, ..., 1])
    assert torch.equal(result[0, ..., 0], result[0, ..., 2])
    assert (result[1, ..., 0] - result[1, ..., 2]).abs().max() > 0.2
    picture = moesr.upscale(tiny, read_image(encode(Image.fromarray(grey), "PNG")), steps=1)
    assert picture.rgb.shape == (96, 128, 3)
    assert np.ptp(picture.rgb.astype(int), axis=2).max() == 0
    sepia = (grey * np.array([1, 0.85, 0.65])).astype(np.uint8)
    tint = moesr.upscale(tiny, sepia, steps=1).reshape(-1, 3).mean(0)
    np.testing.assert_allclose(tint, sepia.reshape(-1, 3).mean(0), atol=3)


@pytest.mark.parametrize("value", [0, 1, 128, 254, 255, (230, 51, 26)])
def test_a_constant_stays_what_it_is(tiny: SRModel, value: int | tuple[int, ...]) -> None:
    image = np.full((20, 26, 3), value, np.uint8)
    assert np.abs(moesr.upscale(tiny, image, steps=1).astype(int) - value).max() <= 3
    assert np.abs(moesr.upscale(tiny, image, tile=64).astype(int) - value).max() < 8
    plain = moesr.upscale(tiny, image, steps=1, color_fix="none").astype(int)
    assert np.abs(plain - value).max() <= 9
    inside = np.abs(plain[8:-8, 8:-8] - value).max()
    assert np.abs(plain[:, -8:] - value).max() <= inside + 3  # no stripe at the right, nor below
    assert np.abs(plain[-8:] - value).max() <= inside + 3


@pytest.mark.parametrize("color_fix", ["adain", "wavelet", "none"])
def test_black_around_text_is_black_to_the_borders(tiny: SRModel, color_fix: str) -> None:
    image = np.asarray(text("RGB", ink=(230, 230, 230), paper=(0, 0, 0)).crop((56, 0, 96, 24)))
    image = np.concatenate([image, np.zeros((24, 8, 3), np.uint8)], axis=1)
    image[:, :6], image[:4], image[-4:] = 0, 0, 0
    result = moesr.upscale(tiny, image, steps=2, color_fix=color_fix).astype(int)
    for border in (result[:, -12:], result[-8:], result[:, :8], result[:8]):
        assert border.max() <= (3 if color_fix == "none" else 2)
