"""Grey stays grey and black stays black, with the embedded model at its defaults."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

import moesr
from moesr.images.canvas import as_canvas
from moesr.images.files import read_image
from tests.image_files import encode, scene, text


@pytest.fixture(scope="module")
def tiny() -> moesr.SRModel:
    return moesr.load(device="cpu", dtype="fp32")


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


def test_grey_results_have_equal_channels(tiny: moesr.SRModel) -> None:
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


@pytest.mark.parametrize("value", [0, 1, 128, 254, 255])
def test_a_constant_stays_what_it_is(tiny: moesr.SRModel, value: int) -> None:
    image = np.full((20, 26, 3), value, np.uint8)
    assert np.abs(moesr.upscale(tiny, image, steps=1).astype(int) - value).max() <= 3
    plain = moesr.upscale(tiny, image, steps=1, color_fix="none").astype(int)
    assert np.abs(plain - value).max() <= 9
    inside = np.abs(plain[8:-8, 8:-8] - value).max()
    assert np.abs(plain[:, -8:] - value).max() <= inside + 3  # no stripe at the right, nor below
    assert np.abs(plain[-8:] - value).max() <= inside + 3


@pytest.mark.parametrize("color_fix", ["adain", "wavelet", "none"])
def test_black_around_text_is_black_to_the_borders(tiny: moesr.SRModel, color_fix: str) -> None:
    image = np.asarray(text("RGB", ink=(230, 230, 230), paper=(0, 0, 0)).crop((56, 0, 96, 24)))
    image = np.concatenate([image, np.zeros((24, 8, 3), np.uint8)], axis=1)
    image[:, :6], image[:4], image[-4:] = 0, 0, 0
    result = moesr.upscale(tiny, image, steps=2, color_fix=color_fix).astype(int)
    for border in (result[:, -12:], result[-8:], result[:, :8], result[:8]):
        assert border.max() <= (3 if color_fix == "none" else 2)
