"""Reading and writing of pictures: every kind right or refused by name, whole or not at all."""

from __future__ import annotations

import base64
import errno
import io
import os
import struct
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from moesr.errors import ImageError, MoESRError, NumericsError, SettingError
from moesr.images import png
from moesr.images.files import READ_SUFFIXES, WRITE_SUFFIXES, Picture, read_image, to_pil, write_image
from tests.image_files import encode, png_chunk, scene, tiff

PICTURE = Picture(np.full((8, 8, 3), 0.5, np.float32))


def pixels(*shape: int, top: int = 255) -> np.ndarray:
    return np.random.default_rng(2).integers(0, top + 1, shape, dtype=np.uint8 if top == 255 else np.uint16)


def levels(picture: Picture) -> np.ndarray:
    return np.rint(picture.floats().rgb * 255).astype(int)


# ---- modes, depths, orientation


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_any_mode_is_read_and_written_back_exactly(tmp_path: Path, mode: str, suffix: str) -> None:
    image = Image.fromarray(pixels(6, 5, 4)).convert(mode)
    image.save(tmp_path / f"in{suffix}")
    picture = read_image(tmp_path / f"in{suffix}")
    assert picture.rgb.dtype == np.float32
    assert picture.grey == (mode in ("1", "L", "LA"))
    write_image(tmp_path / f"out{suffix}", picture)
    with Image.open(tmp_path / f"out{suffix}") as result, Image.open(tmp_path / f"in{suffix}") as source:
        assert result.mode == {"1": "L", "P": source.convert("RGBA").convert(result.mode).mode}.get(mode, mode)
        assert np.array_equal(np.asarray(result.convert("RGBA")), np.asarray(source.convert("RGBA")))


@pytest.mark.parametrize("transparency", [7, (1, 2, 3), bytes(range(0, 256, 32))])
def test_transparent_colour_becomes_alpha(transparency: int | tuple[int, ...] | bytes) -> None:
    image = Image.fromarray(pixels(4, 4, 3))
    image.putpixel((1, 2), (1, 2, 3))
    if not isinstance(transparency, tuple):
        image = image.convert("L") if transparency == 7 else image.quantize(8)
        image.putpixel((1, 2), 7)
    data = encode(image, "PNG", transparency=transparency)
    picture = read_image(data)
    assert picture.alpha is not None
    with Image.open(io.BytesIO(data)) as source:
        assert np.array_equal(np.asarray(to_pil(picture).convert("RGBA")), np.asarray(source.convert("RGBA")))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    upright = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    undo = {
        2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1], 5: np.transpose,
        6: lambda a: np.rot90(a, 1), 7: lambda a: a[::-1, ::-1].T, 8: lambda a: np.rot90(a, -1),  # viewers turn it back
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(undo.get(orientation, np.asarray)(upright))
    files = [encode(Image.fromarray(stored), kind, exif=exif) for kind in ("PNG", "TIFF")]
    files.append(tiff(stored.astype(np.uint16) * 257, 1, orientation=orientation))
    for data in files:
        assert np.array_equal(levels(read_image(data))[..., 0], upright)


def test_orientation_in_xmp_alone_and_broken_exif_turn_nothing() -> None:
    image = Image.fromarray(scene())
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="8"/>'
    assert read_image(encode(image, "JPEG", xmp=xmp)).rgb.shape == (32, 48, 3)
    assert read_image(encode(image, "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")).rgb.shape == (32, 48, 3)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("format", ["png", "tiff"])
def test_16_bits_are_kept(channels: int, format: str) -> None:
    samples = pixels(70, 9, channels, top=65535)
    samples[:40] = (np.arange(9, dtype=np.uint16) * 5000)[None, :, None]  # smooth rows choose other filters
    picture = read_image(png.encode(samples))
    assert (picture.bits, picture.grey) == (16, channels < 3)
    buffer = io.BytesIO()
    write_image(buffer, picture, format=format)
    again = read_image(buffer.getvalue())
    assert again.bits == 16
    assert np.array_equal(again.rgb, picture.rgb)
    if format == "png":
        assert np.array_equal(png.decode(buffer.getvalue()), samples)


def test_png16_interlaced() -> None:
    data = base64.b85decode(
        "iBL{Q4GJ0x0000DNk~Le00004000055CQ-I0m@i5SpWb4XGugsRCt_YVPIf!<>+EL^WmcD)hZUrd9sg{G+54l06~_timbi)Oj7ft=1I"
        "<D;W;lTA{q%|0y*gwX+S7BPpU$y0;nt<2&F2(GR8LMjn>C_&x0V(c?8V@(vV&O5#X(WN&;yBX1*~R*+-Ow00000NkvXXu0mjf"
    )
    wanted = np.arange(60, dtype=np.uint16).reshape(5, 4, 3) * 1093
    assert np.array_equal(np.rint(read_image(data).rgb * 65535), wanted)


def test_cmyk_becomes_rgb_and_loses_its_profile() -> None:
    picture = read_image(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", icc_profile=b"not a profile"))
    assert picture.icc is None
    np.testing.assert_allclose(picture.rgb[4, 4], [1, 0, 0], atol=0.02)


# ---- TIFF

RGB = scene(40, 24)
GREY = RGB[..., 1]
ALPHA = np.zeros(GREY.shape, np.uint8)
ALPHA[6:18, 8:24], ALPHA[:6] = 128, 255
DEEP = RGB.astype(np.uint16) * 257
OPACITY = ALPHA[..., None] / 255

#: What the file is, its bytes, and whether it shows grey; all look like RGB or GREY.
TIFFS: dict[str, tuple[Callable[[], bytes], bool]] = {
    "16": (lambda: tiff(DEEP), False),
    "16 planar": (lambda: tiff(DEEP, planar=True), False),
    "16 planar tiles": (lambda: tiff(DEEP, tile=16, planar=True, order=">"), False),
    "16 white is zero": (lambda: tiff(65535 - DEEP[..., 1], 0), True),
    "8 white is zero + alpha": (lambda: tiff(np.dstack([255 - GREY, ALPHA]), 0, extra=(2,)), True),
    "32": (lambda: tiff(GREY.astype(np.uint32) * 16843009, 1), True),
    "16 bits in 32": (lambda: tiff(GREY.astype(np.uint32) * 257, 1), True),
    "16 signed": (lambda: tiff(GREY.astype(np.int16) * 128, 1), True),
    "12 bits in 16, told, RGB": (lambda: tiff(RGB.astype(np.uint16) * 16, largest=4095), False),
    "float to 1": (lambda: tiff((GREY / 255).astype(np.float32), 1), True),
    "float to 255": (lambda: tiff(GREY.astype(np.float32), 1), True),
    "float to 65535": (lambda: tiff(DEEP.astype(np.float64)), False),
    "float RGB": (lambda: tiff((RGB / 255).astype(np.float32), predictor=3, deflate=True), False),
    "half RGB": (lambda: tiff((RGB / 255).astype(np.float16)), False),
    "grey + alpha 16": (lambda: tiff(np.dstack([GREY, ALPHA]).astype(np.uint16) * 257, 1, extra=(2,)), True),
    "RGBA 16": (lambda: tiff(np.dstack([RGB, ALPHA]).astype(np.uint16) * 257, extra=(2,)), False),
    "RGBA 8, premultiplied": (
        lambda: tiff(np.rint(np.dstack([RGB * OPACITY, ALPHA])).astype(np.uint8), extra=(1,)), False),
    "RGBA 16, premultiplied": (
        lambda: tiff(np.rint(np.dstack([RGB * OPACITY, ALPHA]) * 257).astype(np.uint16), extra=(1,)), False),
    "CMYK 8": (lambda: tiff(np.dstack([255 - RGB, 0 * ALPHA]), 5), False),
    "CMYK 16 planar": (lambda: tiff(np.dstack([65535 - DEEP, 0 * DEEP[..., 0]]), 5, planar=True), False),
}  # fmt: skip


@pytest.mark.parametrize("name", TIFFS)
def test_every_kind_of_tiff_looks_right(name: str) -> None:
    make, grey = TIFFS[name]
    picture = read_image(make())
    assert picture.grey == grey
    assert picture.bits == (8 if name.startswith(("8", "RGBA 8", "CMYK 8")) else 16)
    expected = np.broadcast_to(GREY[..., None], RGB.shape) if grey else RGB
    visible = slice(None) if "premultiplied" not in name else ALPHA > 0
    tolerance = 2 if "premultiplied" in name or "signed" in name else 1
    assert np.abs(levels(picture) - expected.astype(int))[visible].max() <= tolerance
    assert (picture.alpha is not None) == ("alpha" in name or "RGBA" in name)
    if picture.alpha is not None:
        assert np.array_equal(np.rint(picture.alpha * 255), ALPHA)
    assert bool(picture.notes) == any(part in name for part in ("bits in", "float to 255", "float to 65535"))


def test_samples_of_16_bits_are_read_as_they_are() -> None:
    """A picture that uses 12 of 16 bits is dark, unless the file says what is white; that is not guessed."""
    grey, rgb = GREY * np.uint16(16), RGB * np.uint16(16)
    statistics = tiff(grey, 1, largest=int(grey.max()))
    for data, values in ((statistics, grey), (encode(Image.fromarray(grey), "PNG"), grey), (tiff(rgb), rgb)):
        picture = read_image(data)
        assert np.array_equal(np.rint(picture.rgb * 65535), values if values is rgb else np.dstack([grey] * 3))
        assert not picture.notes


REFUSED = {
    "float -3 to 7": lambda: tiff((RGB / 25 - 3).astype(np.float32)),
    "float to 7": lambda: tiff((RGB / 36).astype(np.float32)),
    "signed below 0": lambda: tiff(GREY.astype(np.int16) - 100, 1),
    "16 CIELab": lambda: tiff(DEEP, 8),
    "16 palette": lambda: tiff(DEEP[..., 1], 3),
    "24 bits": lambda: tiff(pixels(8, 9), 1, bits=24),
    "BigTIFF": lambda: b"MM\0+" + tiff(DEEP, order=">")[4:],
}


@pytest.mark.parametrize("name", REFUSED)
def test_tiffs_without_a_certain_meaning_are_refused_by_name(name: str) -> None:
    with pytest.raises(ImageError, match=r"TIFF|floats"):
        read_image(REFUSED[name]())


# ---- frames, pages, kinds


def test_of_several_frames_one_is_read_and_that_is_said() -> None:
    frames = [Image.new("RGB", (24, 16), colour) for colour in ("red", "lime", "blue")]
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True}), ("GIF", {}), ("TIFF", {}), ("AVIF", {})):
        for default in (False, True) if kind == "PNG" else (False,):
            more = {"default_image": True} if default else {}
            data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options, **more)
            picture = read_image(data)
            assert any("only the first of 3" in note for note in picture.notes), kind
            assert levels(picture)[8, 12, 0] > 240, kind
        assert read_image(encode(frames[0], kind)).notes == (), kind


def test_a_first_page_that_is_a_thumbnail_gives_way_to_the_large_one() -> None:
    small, large = Image.new("RGB", (6, 4)), Image.new("RGB", (24, 16), "lime")
    picture = read_image(encode(small, "TIFF", save_all=True, append_images=[large]))
    assert picture.rgb.shape == (16, 24, 3)
    assert "page 2 of 2" in picture.notes[0]
    data = tiff(RGB)  # now below a first page of 6 x 4 pixels, as cameras write it
    tags = {254: 1, 256: 6, 257: 4, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 4, 279: 24, 330: 8}
    first = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    first = struct.pack("<H", len(tags)) + first + bytes(4)
    picture = read_image(data[:4] + struct.pack("<I", len(data)) + data[8:] + first)
    assert np.array_equal(levels(picture), RGB)
    assert "below page 1" in picture.notes[0]
    other = Image.new("RGB", (30, 90))  # of another shape: a page of its own
    assert read_image(encode(small, "TIFF", save_all=True, append_images=[other])).rgb.shape == (4, 6, 3)


def test_suffixes_are_those_that_work_and_content_decides(tmp_path: Path) -> None:
    for suffix in READ_SUFFIXES:
        kind = Image.registered_extensions().get(suffix, "JPEG")
        (tmp_path / f"in{suffix}").write_bytes(encode(Image.new("RGB", (2, 3)), kind))
        assert read_image(tmp_path / f"in{suffix}").rgb.shape == (3, 2, 3)
    for suffix in ("", *WRITE_SUFFIXES):
        write_image(tmp_path / f"out{suffix}", PICTURE)
        assert read_image(tmp_path / f"out{suffix}").rgb.shape == (8, 8, 3)
    (tmp_path / "lies.jpg").write_bytes(encode(Image.new("RGB", (2, 3)), "AVIF"))
    assert read_image(tmp_path / "lies.jpg").rgb.shape == (3, 2, 3)


# ---- damage


def damaged() -> dict[str, bytes]:
    """Files that look like pictures, and are not."""
    cases = {"empty.png": b"", "text.png": b"hello", "text.jpg": b"\xff\xd8\xff\xe0 no jpeg", "head.tif": b"II*\0"}
    for kind in ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "AVIF"):
        data = encode(Image.fromarray(pixels(64, 64, 3)), kind)
        cases[f"half.{kind.lower()}"] = data[: len(data) // 2]
    deep = png.encode(pixels(32, 32, 3, top=65535))
    cases["half16.png"] = deep[: len(deep) // 2]
    cases["half16.tif"] = tiff(DEEP)[:-2000]
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    cases["bomb.png"] = deep[:8] + png_chunk(b"IHDR", header) + deep[33:]
    cases["bomb.tif"] = tiff(DEEP).replace(struct.pack("<HHII", 257, 4, 1, 24), struct.pack("<HHII", 257, 4, 1, 2**30))
    return cases


@pytest.mark.parametrize("name", damaged())
def test_unreadable_is_one_line_that_names_the_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(damaged()[name])
    with pytest.raises(ImageError) as error:
        read_image(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    for path in (tmp_path, tmp_path / "missing.png", tmp_path / "nul\0.png"):
        with pytest.raises(ImageError, match="cannot be read"):
            read_image(path)


@pytest.mark.parametrize("kind", ["JPEG", "progressive JPEG", "PNG"])
def test_a_file_that_is_cut_short(kind: str) -> None:
    """It is read where only its end is missing; otherwise as far as it goes, if that is wanted."""
    options = {"progressive": kind.startswith("prog")} if "JPEG" in kind else {}
    data = encode(Image.fromarray(scene(120, 90)), kind.split()[-1], **options)
    for cut in (1, 2) if options else (12,):
        picture = read_image(data[:-cut])
        assert np.array_equal(picture.rgb, read_image(data).rgb)
        assert any("all pixels are there" in note for note in picture.notes) == bool(options)
    part = data[: int(len(data) * 0.6)]
    with pytest.raises(ImageError, match="--allow-truncated"):
        read_image(part)
    picture = read_image(part, allow_truncated=True)
    row = int(picture.notes[0].rpartition("at about row ")[2])
    assert picture.rgb.shape == (90, 120, 3)
    if not options:
        assert 20 < row < 70
        assert np.array_equal(picture.rgb[:row], read_image(data).rgb[:row])


# ---- writing


def test_writing_rounds_to_nearest_and_clips(tmp_path: Path) -> None:
    values = np.array([-3.0, 0.49, 0.51, 99.4, 99.6, 254.6, 300.0], np.float32)
    rgb = np.repeat(values[None, :, None] / 255, 3, axis=2)
    write_image(tmp_path / "out.png", Picture(rgb))
    assert levels(read_image(tmp_path / "out.png"))[0, :, 0].tolist() == [0, 0, 1, 99, 100, 255, 255]
    write_image(tmp_path / "out.png", Picture(rgb, bits=16))
    assert np.rint(read_image(tmp_path / "out.png").rgb[0, 3, 0] * 65535) == np.rint(99.4 * 257)


def test_jpeg_is_full_colour_on_white(tmp_path: Path) -> None:
    rgb = np.zeros((16, 16, 3), np.float32)
    rgb[:, ::2, 0] = 1  # columns of red: gone if colour were halved
    alpha = np.ones((16, 16), np.float32)
    alpha[8:] = 0
    write_image(tmp_path / "out.jpg", Picture(rgb, alpha))
    result = read_image(tmp_path / "out.jpg").rgb
    assert result[:6, ::2, 0].min() - result[:6, 1::2, 0].max() > 0.8
    assert result[10:].min() > 0.95
    write_image(tmp_path / "small.jpg", Picture(rgb, alpha), quality=20)
    assert (tmp_path / "small.jpg").stat().st_size < (tmp_path / "out.jpg").stat().st_size


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    (tmp_path / "out.png").write_bytes(b"old")
    monkeypatch.setattr(os, step, Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(ImageError, match="No space left"):
        write_image(tmp_path / "out.png", PICTURE)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("out.png", b"old")]


def test_write_refuses(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    cases: list[tuple[str, Picture, int, type[MoESRError]]] = [
        ("out.gif", PICTURE, 95, SettingError),
        ("out.jpg", PICTURE, 101, SettingError),
        ("out.webp", Picture(np.zeros((1, 16384, 3), np.float32)), 95, ImageError),
        ("out.png", Picture(np.full((2, 2, 3), np.nan, np.float32)), 95, NumericsError),
        ("folder.png", PICTURE, 95, ImageError),
    ]
    for name, picture, quality, kind in cases:
        with pytest.raises(kind, match="quality" if quality > 100 else name):
            write_image(tmp_path / name, picture, quality=quality)
    with pytest.raises(SettingError, match="png, jpg, webp or tiff"):
        write_image(io.BytesIO(), PICTURE, format="gif")
    assert [p.name for p in tmp_path.iterdir()] == ["folder.png"]


def test_written_file_has_ordinary_permissions_and_a_link_stays(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    (tmp_path / "link.png").symlink_to(tmp_path / "target.png")
    write_image(tmp_path / "link.png", PICTURE)
    assert (tmp_path / "link.png").is_symlink()
    assert (tmp_path / "target.png").stat().st_mode == (tmp_path / "plain").stat().st_mode
