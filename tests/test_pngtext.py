"""Texts inside PNG files."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from moesr.images.files import Picture, read, write
from moesr.images.pngtext import LONGEST, read_text

TEXTS = {"moesr": '{"seed": 7}', "Title": "naïve", "Comment": "größer als 漢字 ✓"}


@pytest.mark.parametrize("bits", [8, 16])
def test_texts_come_back_and_pixels_stay(tmp_path: Path, bits: int) -> None:
    picture = Picture(np.random.default_rng(0).random((5, 7, 3), np.float32), bits=bits, icc=b"profile")
    write(tmp_path / "plain.png", picture)
    write(tmp_path / "told.png", picture, text=TEXTS)
    assert read_text(tmp_path / "told.png") == TEXTS
    assert read_text(tmp_path / "plain.png") == {}
    assert np.array_equal(read(tmp_path / "plain.png").rgb, read(tmp_path / "told.png").rgb)
    with Image.open(tmp_path / "told.png") as image:  # checks every checksum
        image.load()
        assert {k: str(v) for k, v in image.info.items() if k in TEXTS} == TEXTS


def test_texts_of_other_programs_are_read(tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text("packed", "x" * 1000, zip=True)
    info.add_itxt("international", "漢字", zip=True)
    Image.new("L", (2, 2)).save(tmp_path / "a.png", pnginfo=info)
    assert read_text(tmp_path / "a.png") == {"packed": "x" * 1000, "international": "漢字"}


def test_bombs_and_damage_are_no_texts(tmp_path: Path) -> None:
    body = b"moesr\0\0" + zlib.compress(b" " * (LONGEST + 1))
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    Image.new("L", (2, 2)).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "bomb.png").write_bytes(data[:33] + chunk + data[33:])
    (tmp_path / "endless.png").write_bytes(data[:33] + struct.pack(">I", 2**31 - 1) + b"tEXt" + b"moesr\0x")
    (tmp_path / "cut.png").write_bytes(data[:35])
    (tmp_path / "other.jpg").write_bytes(b"\xff\xd8 no PNG")
    for name in ("bomb.png", "endless.png", "cut.png", "other.jpg", "none.png"):
        assert read_text(tmp_path / name) == {}, name


@pytest.mark.parametrize("keyword", ["", "k" * 80])
def test_keywords_that_png_does_not_know(tmp_path: Path, keyword: str) -> None:
    with pytest.raises(Exception, match="keyword"):
        write(tmp_path / "a.png", Picture(np.zeros((1, 1, 3), np.float32)), text={keyword: "x"})
    assert not (tmp_path / "a.png").exists()
