"""moesr/images: resize, colour, files, alpha."""

from __future__ import annotations

import errno
import io
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageCms

from moesr.errors import ImageError, MoESRError, NumericsError, SettingError
from moesr.images import files, png16
from moesr.images.alpha import fill_transparent
from moesr.images.assembly import wavelet_rows
from moesr.images.colour import Moments, adain, moved
from moesr.images.files import Picture, from_pil, read, to_pil, write
from moesr.images.resize import rescale_uint8, resize, resize_uint8


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


# ---- resize


def imresize_1d(values: np.ndarray, count: int, scale: float) -> np.ndarray:
    """MATLAB's definition, one sample and one tap at a time."""
    result = np.zeros(count)
    stretch = min(scale, 1.0)
    for i in range(count):
        centre = (i + 0.5) / scale - 0.5
        total = 0.0
        for j in range(math.floor(centre - 2 / stretch), math.ceil(centre + 2 / stretch) + 1):
            x = abs(centre - j) * stretch
            weight = 1.5 * x**3 - 2.5 * x**2 + 1 if x <= 1 else -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0
            k = j % (2 * len(values))
            result[i] += weight * values[min(k, 2 * len(values) - 1 - k)]
            total += weight
        result[i] /= total
    return result


SIDES = [(5, 20), (20, 5), (7, 11), (11, 7), (1, 4), (3, 1), (200, 333), (2, 256)]


@pytest.mark.parametrize(("length", "count"), SIDES)
def test_resize_is_matlab_bicubic(length: int, count: int) -> None:
    values = random(length).double()
    expected = torch.from_numpy(imresize_1d(values.numpy(), count, count / length))
    rows = resize(values[None, None, :, None], (count, 1))
    columns = resize(values[None, None, None, :], (1, count))
    torch.testing.assert_close(rows[0, 0, :, 0], expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(columns[0, 0, 0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_resize_keeps_type_and_constant(dtype: torch.dtype) -> None:
    image = torch.full((2, 3, 9, 7), 0.7, dtype=dtype)
    result = resize(image, (4, 31))
    assert result.dtype == dtype
    assert result.shape == (2, 3, 4, 31)
    torch.testing.assert_close(result, torch.full_like(result, 0.7))


def test_resize_overshoots_because_it_does_not_clamp() -> None:
    edge = torch.cat([torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)], dim=3)
    result = resize(edge, (32, 64))
    assert result.min() < -0.01
    assert result.max() > 1.01


def test_uint8_is_rounded_after_each_pass_smaller_scale_first() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 9), dtype=np.uint8)
    columns_first = np.stack([imresize_1d(row, 4, 4 / 9) for row in pixels])
    columns_first = np.rint(columns_first).clip(0, 255)
    expected = np.stack([imresize_1d(column, 30, 2.5) for column in columns_first.T], axis=1)
    expected = np.rint(expected).clip(0, 255).astype(np.uint8)
    assert np.array_equal(resize_uint8(pixels, (30, 4)), expected)
    assert np.array_equal(resize_uint8(np.stack([pixels] * 3, axis=2), (30, 4))[..., 1], expected)


def test_scalar_scale_rounds_sides_up_and_keeps_the_scale() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (10, 10, 3), dtype=np.uint8)
    result = rescale_uint8(pixels, 0.33)
    assert result.shape == (4, 4, 3)
    rows = np.rint(np.stack([imresize_1d(column, 4, 0.33) for column in pixels[..., 0].T], axis=1)).clip(0, 255)
    expected = np.rint(np.stack([imresize_1d(row, 4, 0.33) for row in rows])).clip(0, 255)
    assert np.array_equal(result[..., 0], expected)
    assert not np.array_equal(result, resize_uint8(pixels, (4, 4)))


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
    assert moved(rows, Moments(torch.rand(3, 6, 7)), Moments(torch.rand(3, 2, 2))).device == rows.device


def test_adain_takes_mean_and_unbiased_deviation_of_style() -> None:
    content, style = random(2, 3, 16, 20), 0.3 * random(2, 3, 5, 7, seed=1) + 0.2
    result = adain(content, style)
    for dim in ((0, 0), (1, 2)):
        expected = (content[dim] - content[dim].mean()) / (content[dim].var() + 1e-5).sqrt()
        expected = expected * (style[dim].var() + 1e-5).sqrt() + style[dim].mean()
        torch.testing.assert_close(result[dim], expected)


def wavelet(content: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
    """The colour fix of a whole picture [3, H, W]."""
    rows = wavelet_rows(lambda a, b: content[:, a:b], lambda a, b: style[:, a:b], content.shape[1])
    return rows(0, content.shape[1])


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
    content, style = random(1, 3, 1, 1), random(1, 3, 1, 1, seed=1)
    torch.testing.assert_close(adain(content, style), style)
    torch.testing.assert_close(wavelet(content[0], style[0]), style[0])


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


def test_one_visible_pixel_colours_everything() -> None:
    rgb, alpha = random(1, 3, 33, 1), torch.zeros(1, 1, 33, 1)
    alpha[0, 0, 12, 0] = 1 / 255
    torch.testing.assert_close(fill_transparent(rgb, alpha), rgb[:, :, 12:13].expand_as(rgb))


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_constant_alpha_changes_nothing(value: float) -> None:
    rgb = random(1, 3, 5, 5)
    assert fill_transparent(rgb, torch.full((1, 1, 5, 5), value)) is rgb


# ---- files


def pixels(*shape: int, top: int = 255) -> np.ndarray:
    return np.random.default_rng(2).integers(0, top + 1, shape, dtype=np.uint8 if top == 255 else np.uint16)


def same(a: Image.Image, b: Image.Image) -> bool:
    return np.array_equal(np.asarray(a.convert("RGBA")), np.asarray(b.convert("RGBA")))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_any_mode_is_read_and_written_back_exactly(tmp_path: Path, mode: str, suffix: str) -> None:
    image = Image.fromarray(pixels(6, 5, 4)).convert(mode)
    image.save(tmp_path / f"in{suffix}")
    picture = read(tmp_path / f"in{suffix}")
    assert picture.rgb.dtype == np.float32
    assert picture.grey == (mode in ("1", "L", "LA"))
    write(tmp_path / "out.png", picture)
    with Image.open(tmp_path / "out.png") as result, Image.open(tmp_path / f"in{suffix}") as source:
        assert result.mode == {"1": "L", "P": source.convert("RGBA").convert(result.mode).mode}.get(mode, mode)
        assert same(result, source)


@pytest.mark.parametrize("transparency", [7, (1, 2, 3), bytes(range(0, 256, 32))])
def test_transparent_colour_becomes_alpha(tmp_path: Path, transparency: int | tuple[int, ...] | bytes) -> None:
    image = Image.fromarray(pixels(4, 4, 3))
    image.putpixel((1, 2), (1, 2, 3))
    if not isinstance(transparency, tuple):
        image = image.convert("L") if transparency == 7 else image.quantize(8)
        image.putpixel((1, 2), 7)
    image.save(tmp_path / "in.png", transparency=transparency)
    picture = read(tmp_path / "in.png")
    assert picture.alpha is not None
    with Image.open(tmp_path / "in.png") as source:
        assert same(to_pil(picture), source)


def test_cmyk_becomes_rgb_and_loses_its_profile(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "in.jpg", icc_profile=b"not a profile")
    picture = read(tmp_path / "in.jpg")
    assert picture.icc is None
    np.testing.assert_allclose(picture.rgb[4, 4], [1, 0, 0], atol=0.02)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    upright = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    undo = {
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: np.transpose,
        6: lambda a: np.rot90(a, 1),  # the viewer turns it clockwise
        7: lambda a: a[::-1, ::-1].T,
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(undo.get(orientation, np.asarray)(upright))
    for name in ("in.png", "in.tiff"):
        Image.fromarray(stored).save(tmp_path / name, exif=exif)
        assert np.array_equal(np.asarray(to_pil(read(tmp_path / name))), upright), name


def test_broken_exif_does_not_matter(tmp_path: Path) -> None:
    Image.fromarray(pixels(4, 4, 3)).save(tmp_path / "in.png", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert read(tmp_path / "in.png").rgb.shape == (4, 4, 3)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png16_keeps_all_bits(tmp_path: Path, channels: int) -> None:
    samples = pixels(70, 9, channels, top=65535)
    samples[:40] = (np.arange(9, dtype=np.uint16) * 5000)[None, :, None]  # smooth rows choose other filters
    (tmp_path / "in.png").write_bytes(png16.encode(samples))
    picture = read(tmp_path / "in.png")
    assert picture.bits == 16
    assert picture.grey == (channels < 3)
    write(tmp_path / "out.png", picture)
    assert np.array_equal(png16.decode((tmp_path / "out.png").read_bytes()), samples)
    with Image.open(tmp_path / "out.png") as image:  # a foreign decoder agrees
        image.load()
        high = np.asarray(image.convert("RGBA"))[..., 0] if channels > 1 else np.asarray(image) >> 8
    assert np.abs(high.astype(int) - (samples[..., 0] >> 8)).max() <= 1


def adam7(samples: np.ndarray) -> bytes:
    """An interlaced 16-bit RGB PNG with the Paeth filter on every row, by the letter of the standard."""
    raw = b""
    passes = ["0088", "4088", "0448", "2044", "0224", "1022", "0112"]  # x0, y0, dx, dy
    for x0, y0, dx, dy in (map(int, digits) for digits in passes):
        part = np.ascontiguousarray(samples[y0::dy, x0::dx], ">u2")
        if not part.size:
            continue
        rows = part.view(np.uint8).reshape(len(part), -1).astype(int)
        padded = np.pad(rows, ((1, 0), (6, 0)))
        for y, row in enumerate(rows):
            raw += b"\x04"
            for x, value in enumerate(row):
                a, b, c = padded[y + 1, x], padded[y, x + 6], padded[y, x]
                guess = min((a, b, c), key=lambda n: abs(a + b - c - n))
                raw += bytes([(value - guess) % 256])
    height, width, _ = samples.shape
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 1)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(b)) + n + b + struct.pack(">I", zlib.crc32(n + b)) for n, b in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


def test_png16_interlaced(tmp_path: Path) -> None:
    samples = pixels(9, 11, 3, top=65535)
    (tmp_path / "in.png").write_bytes(adam7(samples))
    assert np.array_equal(np.rint(read(tmp_path / "in.png").rgb * 65535), samples)


def test_grey_tiff_and_float_keep_depth(tmp_path: Path) -> None:
    samples = pixels(4, 5, top=65535)
    Image.fromarray(samples).save(tmp_path / "in.tiff")
    picture = read(tmp_path / "in.tiff")
    assert picture.bits == 16
    assert np.array_equal(np.rint(picture.rgb[..., 2] * 65535), samples)
    values = random(4, 5).numpy()
    assert np.array_equal(from_pil(Image.fromarray(values)).rgb[..., 0], values)


def test_writing_rounds_to_nearest_and_clips(tmp_path: Path) -> None:
    levels = np.array([-3.0, 0.49, 0.51, 99.4, 99.6, 254.6, 300.0], np.float32)
    rgb = np.repeat(levels[None, :, None] / 255, 3, axis=2)
    write(tmp_path / "out.png", Picture(rgb))
    assert read(tmp_path / "out.png").rgb[0, :, 0] * 255 == pytest.approx([0, 0, 1, 99, 100, 255, 255])
    write(tmp_path / "out.png", Picture(rgb), bits=16)
    assert np.rint(read(tmp_path / "out.png").rgb[0, 3, 0] * 65535) == np.rint(99.4 * 257)


def test_jpeg_is_full_colour_on_white(tmp_path: Path) -> None:
    rgb = np.zeros((16, 16, 3), np.float32)
    rgb[:, ::2, 0] = 1  # columns of red: gone if colour were halved
    alpha = np.ones((16, 16), np.float32)
    alpha[8:] = 0
    write(tmp_path / "out.jpg", Picture(rgb, alpha))
    result = read(tmp_path / "out.jpg").rgb
    assert result[:6, ::2, 0].min() - result[:6, 1::2, 0].max() > 0.8
    assert result[10:].min() > 0.95


def test_webp_keeps_alpha_and_every_format_keeps_icc(tmp_path: Path) -> None:
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture = Picture(random(8, 8, 3).numpy(), random(8, 8, seed=1).numpy(), icc=icc)
    for name, bits in (("a.png", 8), ("b.png", 16), ("c.jpg", 8), ("d.webp", 8)):
        write(tmp_path / name, picture, bits=bits)
        result = read(tmp_path / name)
        assert result.icc == icc, name
        assert result.bits == bits, name
        assert (result.alpha is None) == (name == "c.jpg"), name


def damaged() -> dict[str, bytes]:
    """Files that look like pictures, and are not."""
    cases = {"empty.png": b"", "text.png": b"hello", "text.jpg": b"\xff\xd8\xff\xe0 no jpeg"}
    image = Image.fromarray(pixels(64, 64, 3))
    for kind in ("png", "jpeg", "webp", "tiff", "bmp"):
        buffer = io.BytesIO()
        image.save(buffer, kind)
        cases[f"half.{kind}"] = buffer.getvalue()[: len(buffer.getvalue()) // 2]
    deep = png16.encode(pixels(32, 32, 3, top=65535))
    cases["half16.png"] = deep[: len(deep) // 2]
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    cases["bomb.png"] = deep[:12] + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + deep[33:]
    return cases


@pytest.mark.parametrize("name", damaged())
def test_unreadable_is_one_line_that_names_the_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(damaged()[name])
    with pytest.raises(ImageError) as error:
        read(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_and_directory(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.png", tmp_path / "nul\0.png"):
        with pytest.raises(ImageError, match="cannot be read"):
            read(path)


def test_random_damage_is_always_an_image_error(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    image = Image.fromarray(pixels(24, 24, 4))
    failures = 0
    for kind in ("png", "jpeg", "webp", "tiff", "bmp"):
        buffer = io.BytesIO()
        (image.convert("RGB") if kind == "jpeg" else image).save(buffer, kind)
        for _ in range(40):
            data = np.frombuffer(buffer.getvalue(), np.uint8).copy()
            data[generator.integers(0, min(len(data), 200), 6)] = generator.integers(0, 256, 6)
            (tmp_path / "in").write_bytes(data.tobytes())
            try:
                read(tmp_path / "in")
            except ImageError:
                failures += 1
    assert failures > 50


PICTURE = Picture(np.full((8, 8, 3), 0.5, np.float32))


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["write", "replace"])
def test_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, step: str
) -> None:
    (tmp_path / "out.png").write_bytes(b"old")

    def fail(path: object, *_: object) -> None:
        Path(str(path)).touch()
        raise error

    monkeypatch.setattr(*((Path, "write_bytes") if step == "write" else (os, "replace")), fail)
    with pytest.raises(ImageError if isinstance(error, OSError) else KeyboardInterrupt) as caught:
        write(tmp_path / "out.png", PICTURE)
    assert [p.name for p in tmp_path.iterdir()] == ["out.png"]
    assert (tmp_path / "out.png").read_bytes() == b"old"
    if isinstance(error, OSError):
        assert "No space left" in str(caught.value)


def test_write_refuses(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    cases: list[tuple[str, Picture, int | None, type[MoESRError]]] = [
        ("out.gif", PICTURE, None, SettingError),
        ("out.jpg", PICTURE, 16, SettingError),
        ("out.png", PICTURE, 12, SettingError),
        ("out.webp", Picture(np.zeros((1, 16384, 3), np.float32)), None, ImageError),
        ("out.png", Picture(np.full((2, 2, 3), np.nan, np.float32)), None, NumericsError),
        ("missing/out.png", PICTURE, None, ImageError),
        ("folder.png", PICTURE, None, ImageError),
    ]
    for name, picture, bits, kind in cases:
        with pytest.raises(kind, match=name):
            write(tmp_path / name, picture, bits=bits)
    assert [p.name for p in tmp_path.iterdir()] == ["folder.png"]


def test_written_file_has_ordinary_permissions_and_a_link_stays(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    (tmp_path / "link.png").symlink_to(tmp_path / "target.png")
    write(tmp_path / "link.png", PICTURE)
    assert (tmp_path / "link.png").is_symlink()
    assert (tmp_path / "target.png").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_suffixes_are_those_that_work(tmp_path: Path) -> None:
    for suffix in files.READ_SUFFIXES:
        Image.new("RGB", (2, 3)).save(tmp_path / f"in{suffix}")
        assert read(tmp_path / f"in{suffix}").rgb.shape == (3, 2, 3)
    for suffix in ("", *files.WRITE_SUFFIXES):
        write(tmp_path / f"out{suffix}", PICTURE)
        assert read(tmp_path / f"out{suffix}").rgb.shape == (8, 8, 3)
