"""What travels with a picture: EXIF, XMP, IPTC, resolution, texts, profiles and colour chunks."""

from __future__ import annotations

import io
import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from moesr.images import colour_profile, exif
from moesr.images.files import Picture, read_image, read_text, write_image
from tests.image_files import IPTC, SRGB, encode, phone_photo, png_chunk, scene

KINDS = ("png", "jpg", "webp", "tiff")


def written(picture: Picture, kind: str, **options: Any) -> bytes:
    """The file of a result 4 times as large."""
    large = replace(picture, rgb=picture.rgb.repeat(4, 0).repeat(4, 1))
    if large.alpha is not None:
        large = replace(large, alpha=large.alpha.repeat(4, 0).repeat(4, 1))
    buffer = io.BytesIO()
    write_image(buffer, large, format=kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", KINDS)
def test_everything_that_a_photo_says_travels_to_every_kind(kind: str) -> None:
    source = phone_photo()
    assert b"\xff\xd8\xff\xe0" in source[20:2000]  # the thumbnail
    data = written(read_image(source), kind)
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        assert image.size == (128, 192)
        block = image.getexif()
        inner, place = block.get_ifd(0x8769), block.get_ifd(0x8825)
        assert (block[0x0112], block[0x010F], block[0x013B]) == (1, "ExampleCam", "A. Nonymous")
        assert (inner[0x9003], inner[0x927C]) == ("2021:07:14 10:11:12", b"maker" * 9)
        assert (inner[0xA002], inner[0xA003]) == (128, 192)
        assert 282 not in block or (block[282], block[283]) == pytest.approx((200, 300), abs=0.01)
        assert (place[1], place[2]) == ("N", (10.0, 20.0, 30.0))
        assert image.info["icc_profile"] == SRGB
    again = read_image(data)
    assert again.rgb.shape == (192, 128, 3)  # not turned twice
    assert again.metadata.dpi == pytest.approx((200, 300), abs=0.01)
    assert b'tiff:Orientation="1"' in again.metadata.xmp
    assert b'PixelXDimension="128" dc:title="Holiday"' in again.metadata.xmp
    assert again.metadata.iptc == (b"" if kind == "webp" else IPTC)
    assert bytes(8 * 8) not in exif.adapt_to_result(b"", 1, 1)
    assert encode(Image.new("RGB", (8, 8), "red"), "JPEG")[:200] not in data
    if kind in ("png", "jpg"):
        assert again.metadata.text["Comment"] == "hello"
    bare = read_image(written(read_image(source), kind, metadata=False))
    assert (bare.metadata.exif, bare.metadata.xmp, bare.metadata.iptc, bare.metadata.dpi) == (b"", b"", b"", None)
    assert bare.icc == SRGB


@pytest.mark.parametrize("bits", [8, 16])
def test_texts_of_generated_pictures_travel(bits: int) -> None:
    texts = {"parameters": "a lighthouse\nSteps: 20, Seed: 7 größer als 漢字"}
    texts |= {"prompt": "{}", "workflow": '{"größer": 1}'}
    info = PngInfo()
    for keyword, text in texts.items():
        info.add_text(keyword, text) if keyword != "parameters" else info.add_itxt(keyword, text, zip=True)
    source = read_image(encode(Image.fromarray(scene()), "PNG", pnginfo=info))
    source = replace(source, bits=bits, metadata=source.metadata.with_text({"moesr": "{}"}))
    assert read_image(written(source, "png")).metadata.text == {**texts, "moesr": "{}"}
    for kind in ("jpg", "webp", "tiff"):
        again = read_image(written(source, kind))
        assert texts.items() <= again.metadata.text.items()
        assert texts.items() <= read_image(written(again, "png")).metadata.text.items()  # and back
    long = replace(source, metadata=source.metadata.with_text({"workflow": "x" * 70_000, "Title": "Harbour"}))
    notes = write_image(buffer := io.BytesIO(), long, format="jpg")
    assert [words in line for words, line in zip(("workflow are too long", "Title"), notes)] == [True, True]
    assert read_image(buffer.getvalue()).metadata.text["parameters"] == texts["parameters"]


def test_damaged_texts_are_no_texts(tmp_path: Any) -> None:
    data = encode(Image.fromarray(scene()), "PNG")
    (tmp_path / "endless.png").write_bytes(data[:33] + struct.pack(">I", 2**31 - 1) + b"tEXtmoesr\0x")
    (tmp_path / "other.jpg").write_bytes(b"\xff\xd8 no PNG")
    for name in ("endless.png", "other.jpg", "none.png"):
        assert read_text(tmp_path / name) == {}
    picture = read_image(data)
    assert read_image(written(replace(picture, metadata=picture.metadata.with_text({"k" * 80: "x"})), "png"))


# ---- colours


def in_srgb(data: bytes) -> np.ndarray:
    """What a colour-managed viewer shows, by the profile in the file."""
    with Image.open(io.BytesIO(data)) as image:
        icc = image.info.get("icc_profile")
        image = image.convert("L" if image.mode == "L" else "RGB")
        if not icc:
            return np.asarray(image.convert("RGB")).astype(int)
        source, target = ImageCms.ImageCmsProfile(io.BytesIO(icc)), ImageCms.createProfile("sRGB")
        return np.asarray(ImageCms.profileToProfile(image, source, target, outputMode="RGB")).astype(int)


def linear(rgb: np.ndarray) -> np.ndarray:
    values = rgb / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


@pytest.mark.parametrize("cicp", [False, True])
def test_a_linear_png_looks_the_same_in_every_kind(cicp: bool) -> None:
    chunk = png_chunk(b"cICP", bytes([1, 8, 0, 1])) if cicp else png_chunk(b"gAMA", struct.pack(">I", 100000))
    data = encode(Image.fromarray(np.rint(linear(scene()) * 255).astype(np.uint8)), "PNG")
    source = read_image(data[:33] + chunk + data[33:])
    for kind in ("jpg", "webp", "tiff"):
        assert abs(in_srgb(written(source, kind)).mean() - scene().mean()) < 1.5, kind
    for bits in (8, 16):
        result = written(replace(source, bits=bits), "png")
        assert chunk in result
        assert b"iCCP" not in result
    assert chunk in written(source, "png", metadata=False)


def test_primaries_and_hdr() -> None:
    data = encode(Image.fromarray(scene()), "PNG")
    p3 = struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)
    chunks = png_chunk(b"gAMA", struct.pack(">I", 45455)) + png_chunk(b"cHRM", p3)
    wide = in_srgb(written(read_image(data[:33] + chunks + data[33:]), "tiff"))
    red = scene().reshape(-1, 3)[:, 0].argmax()
    assert wide[::4, ::4].reshape(-1, 3)[red, 0] > scene().reshape(-1, 3)[red, 0] + 5  # a red beyond that of sRGB
    pq = png_chunk(b"cICP", bytes([9, 16, 0, 1]))
    hdr = read_image(data[:33] + pq + data[33:])
    assert pq in written(hdr, "png")
    white = replace(hdr, rgb=np.full((8, 8, 3), 0.5806, np.float32))  # 203 nits
    assert read_image(written(white, "tiff")).rgb.min() > 0.98
    assert read_image(written(replace(hdr, rgb=hdr.rgb * 0), "jpg")).rgb.max() == 0


def test_a_profile_that_does_not_fit_is_converted_or_left_out() -> None:
    grey = Image.fromarray(scene()).convert("L")
    icc = colour_profile._build_profile(colour_profile._SRGB, lambda x: x, True)  # linear light
    shown = in_srgb(encode(grey, "JPEG", icc_profile=icc, quality=95)).mean()
    source = read_image(encode(grey, "JPEG", icc_profile=icc, quality=95))
    assert shown > np.asarray(grey).mean() + 30
    for kind in KINDS:
        assert abs(in_srgb(written(source, kind)).mean() - shown) < 1.5, kind
    assert read_image(encode(grey, "JPEG", icc_profile=SRGB)).icc is None
    assert read_image(encode(Image.fromarray(scene()), "JPEG", icc_profile=icc)).icc is None
    assert read_image(encode(Image.fromarray(scene()), "JPEG", icc_profile=SRGB[:200])).icc is None
