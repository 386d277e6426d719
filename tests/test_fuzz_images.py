"""Seeded mutations of good pictures: one line of error or a picture, quickly. MOESR_FUZZ sets how many."""

from __future__ import annotations

import io
import os
import time
from pathlib import Path

import numpy as np
from PIL import Image

from moesr.errors import ImageError
from moesr.images import png
from moesr.images.files import read_image

COUNT = int(os.environ.get("MOESR_FUZZ", "250"))


def good() -> list[bytes]:
    """A file of every kind, depth and colour mode that is read."""
    rng = np.random.default_rng(0)
    rgba = Image.fromarray(rng.integers(0, 256, (13, 17, 4), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    saves = [
        (rgba, "PNG", {}),
        (rgba.convert("P"), "PNG", {"transparency": 3}),
        (rgba.convert("1"), "PNG", {}),
        (rgba.convert("RGB"), "JPEG", {"exif": exif}),
        (rgba.convert("CMYK"), "JPEG", {}),
        (rgba.convert("L"), "JPEG", {"progressive": True}),
        (rgba, "WEBP", {"lossless": True}),
        (rgba.convert("RGB"), "WEBP", {"quality": 60}),
        (rgba, "TIFF", {"compression": "tiff_lzw"}),
        (rgba.convert("L"), "TIFF", {"compression": "tiff_deflate"}),
        (rgba.convert("RGB"), "BMP", {}),
    ]
    files = []
    for image, kind, options in saves:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        files.append(buffer.getvalue())
    return [*files, png.encode(rng.integers(0, 65536, (9, 11, 3)).astype(np.uint16))]


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """Bytes overwritten, cut off, cut out, repeated, or with a number made huge."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        at, length = int(rng.integers(len(out))), int(rng.integers(1, 40))
        kind = int(rng.integers(6))
        if kind == 0:
            out[at] = int(rng.integers(256))
        elif kind == 1:
            del out[max(1, at) :]
        elif kind == 2 and len(out) > length + 1:
            del out[at : at + length]
        elif kind == 3:
            out[at:at] = out[at : at + length]
        elif kind == 4:
            out[at : at + 4] = b"\xff\xff\xff\x7f"
        else:
            out[at : at + length] = rng.integers(0, 256, length, np.uint8).tobytes()
    return bytes(out)


def test_mutations_of_pictures(tmp_path: Path) -> None:
    rng, files, errors = np.random.default_rng(11), good(), []
    for i in range(COUNT):
        path = tmp_path / "picture"
        path.write_bytes(mutated(files[i % len(files)], rng))
        start = time.monotonic()
        try:
            picture = read_image(path)
            assert np.isfinite(picture.rgb).all(), i
            assert picture.rgb.ndim == 3, i
            assert 0 <= picture.rgb.min() <= picture.rgb.max() <= 1, i
        except ImageError as error:
            errors.append(str(error))
        assert time.monotonic() - start < 5, i
    assert not any("\n" in line for line in errors)
    assert COUNT / 20 < len(errors) < COUNT * 19 / 20
