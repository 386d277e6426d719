"""Seeded mutations of good pictures: one line of error or a picture, quickly. MOESR_FUZZ sets how many."""

from __future__ import annotations

import io
import os
import random
import time
from typing import Any

import numpy as np
from PIL import Image

from moesr.errors import ImageError
from moesr.images import png
from moesr.images.files import READ_FORMATS, read_image, read_upright_size
from tests.image_files import encode, scene, tiff
from tests.mutations import mutate

COUNT = int(os.environ.get("MOESR_FUZZ", "480"))


def good() -> list[bytes]:
    """Files of every kind, in all depths, colour modes and layouts."""
    rng = np.random.default_rng(0)
    rgba = Image.fromarray(rng.integers(0, 256, (13, 17, 4), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    saves: list[tuple[str, str, dict[str, Any]]] = [
        ("RGBA", "PNG", {}), ("P", "PNG", {"transparency": 3}), ("1", "PNG", {}), ("RGB", "JPEG", {"exif": exif}),
        ("CMYK", "JPEG", {}), ("L", "JPEG", {"progressive": True}), ("RGBA", "WEBP", {"lossless": True}),
        ("RGB", "WEBP", {"quality": 60}), ("RGBA", "TIFF", {"compression": "tiff_lzw"}),
        ("L", "TIFF", {"compression": "tiff_deflate"}), ("RGB", "BMP", {}),
    ]  # fmt: skip
    files = [encode(rgba.convert(mode), kind, **options) for mode, kind, options in saves]
    files.append(png.encode(rng.integers(0, 65536, (9, 11, 3)).astype(np.uint16)))
    rgb = scene(17, 13)
    deep, frames = rgb.astype(np.uint16) * 257, [Image.fromarray(rgb), Image.fromarray(255 - rgb)]
    files += [
        tiff(deep), tiff(deep, planar=True, deflate=True, predictor=2), tiff(deep, tile=16, order=">"),
        tiff((rgb / 255).astype(np.float32), predictor=3, deflate=True), tiff(65535 - deep[..., 1], 0),
        tiff(np.dstack([rgb, rgb[..., 0]]), extra=(1,), planar=True), tiff(deep[..., 1].astype(np.uint32), 1),
    ]  # fmt: skip
    animated = {"save_all": True, "append_images": frames[1:]}
    files += [encode(frames[0], kind, **animated) for kind in ("TIFF", "WEBP", "GIF")]
    return [*files, encode(frames[0], "AVIF", quality=60), encode(frames[0], "AVIF", **animated)]


def test_mutations_of_pictures() -> None:
    files, rng, errors = good(), random.Random(11), []
    for i in range(COUNT):
        data = files[i % len(files)]
        data = mutate(data, [range(min(len(data), 200))], rng)
        start = time.monotonic()
        try:
            picture = read_image(data)
            assert np.isfinite(picture.rgb).all(), i
            assert 0 <= picture.rgb.min() <= picture.rgb.max() <= 1, i
            assert size_in(data) in (picture.rgb.shape[1::-1], None), i
        except ImageError as error:
            errors.append(str(error))
        assert time.monotonic() - start < 20, i
    assert not any("\n" in line for line in errors)
    assert COUNT / 20 < len(errors) < COUNT * 19 / 20


def size_in(data: bytes) -> tuple[int, int] | None:
    """The size that Pillow reads from the header, None if it reads none; of a TIFF there may be several."""
    if data[:2] in (b"II", b"MM"):
        return None
    try:
        with Image.open(io.BytesIO(data), formats=READ_FORMATS) as image:
            return read_upright_size(image)
    except Exception:
        return None
