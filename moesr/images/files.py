"""Pictures on disk: read without losing alpha, depth or orientation, written whole or not at all."""

from __future__ import annotations

import io
import logging
import os
import secrets
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from ..errors import ImageError, MoESRError, NumericsError, SettingError
from . import png16
from .pngtext import with_text

READ_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
WRITE_SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
READ_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")
_LARGEST_SIDE = {"PNG": 2**31 - 1, "JPEG": 65500, "WEBP": 16383}
_LUMA = np.array([[0.299], [0.587], [0.114]], np.float32)
_ORIENTATION_TAG = 0x0112

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Picture:
    """A picture as values: what was in the file, upright, without its container.

    rgb float32 [H, W, 3] in [0, 1], straight colours; alpha float32 [H, W] in [0, 1], or None if the file had none;
    grey: the file had one colour channel (then the three of rgb are equal); icc: the profile that rgb (or the grey)
    is in, None for sRGB; bits a sample of the file, 8 or 16. Results may hold rounded samples instead of floats: rgb
    and alpha in uint8 or uint16, as `bits` says, so that a large one needs no floats.
    """

    rgb: np.ndarray
    alpha: np.ndarray | None = None
    grey: bool = False
    icc: bytes | None = None
    bits: int = 8

    def floats(self) -> Picture:
        """The same picture with float32 values in [0, 1]."""
        if self.rgb.dtype.kind == "f":
            return self
        top = np.float32(np.iinfo(self.rgb.dtype).max)
        alpha = None if self.alpha is None else self.alpha / top
        return replace(self, rgb=self.rgb / top, alpha=alpha)


def luma(rgb: np.ndarray) -> np.ndarray:
    """The grey [H, W, 1] of colours [H, W, 3] (BT.601)."""
    return rgb @ _LUMA


def read(path: str | os.PathLike[str]) -> Picture:
    """Reads a PNG, JPEG, WebP, TIFF or BMP upright, with its alpha, profile and (PNG, grey TIFF) all of its 16 bits.

    RGB TIFF with 16 bits is read with 8. CMYK is converted to sRGB. Of several frames the first is read.
    Raises ImageError for whatever cannot be read.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        raise ImageError(f"{path}: cannot be read ({_reason(error)}); check the path") from error
    if not data:
        raise ImageError(f"{path}: the file is empty; get it again")
    with explained(path), Image.open(io.BytesIO(data), formats=READ_FORMATS) as image:
        image.load()
        samples = png16.decode(data) if png16.is_png16(data) else None
        return from_pil(image, samples)


@contextmanager
def explained(name: str | os.PathLike[str]) -> Iterator[None]:
    """Whatever goes wrong in the block with the picture of that name is an ImageError, one line that begins with it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's notes on large or slightly odd files; its errors still count
            yield
    except MoESRError:
        raise
    except Image.UnidentifiedImageError as error:
        raise ImageError(f"{name}: not a PNG, JPEG, WebP, TIFF or BMP picture; convert it to one of these") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: too many pixels to open safely; cut the picture into smaller ones") from error
    except MemoryError as error:
        raise ImageError(f"{name}: not enough memory to open it; cut the picture into smaller ones") from error
    except Exception as error:  # damaged files make Pillow raise nearly anything, from KeyError to SyntaxError
        if isinstance(error, OSError) and error.errno is not None:
            raise ImageError(f"{name}: cannot be read ({_reason(error)}); check the path") from error
        raise ImageError(f"{name}: damaged picture ({_reason(error)}); get it again or save it anew") from error


def from_pil(image: Image.Image, samples: np.ndarray | None = None) -> Picture:
    """The Picture that a Pillow image of any mode shows, turned upright by its EXIF orientation.

    samples: the same pixels with all their 16 bits, uint16 [H, W, 1 to 4], where Pillow's own have lost some.
    """
    image.load()
    orientation = _orientation(image)
    icc = image.info.get("icc_profile") or None
    grey, bits = False, 16
    if samples is not None:
        values = samples.astype(np.float32) / np.float32(65535)
        grey = values.shape[2] < 3
    elif image.mode == "F" or image.mode.startswith("I"):
        values = _single_channel(image)
        grey = True
    else:
        image, icc = _to_rgb(image, icc)
        grey, bits = image.mode in ("L", "LA"), 8
        values = np.asarray(image, dtype=np.float32).reshape(image.height, image.width, -1) / np.float32(255)
    values = _upright(values, orientation)
    colours = 1 if grey else 3
    alpha = np.ascontiguousarray(values[..., colours]) if values.shape[2] > colours else None
    rgb = np.ascontiguousarray(np.broadcast_to(values[..., :colours], (*values.shape[:2], 3)))
    return Picture(rgb, alpha, grey, icc, bits)


def to_pil(picture: Picture) -> Image.Image:
    """An 8-bit Pillow image, rounded to nearest: mode L, LA, RGB or RGBA, with the ICC profile in `info`."""
    samples = _samples(picture, 8)
    image = Image.fromarray(samples[..., 0] if samples.shape[2] == 1 else samples)
    if picture.icc:
        image.info["icc_profile"] = picture.icc
    return image


def write(
    path: str | os.PathLike[str],
    picture: Picture,
    *,
    bits: int | None = None,
    quality: int = 95,
    text: Mapping[str, str] | None = None,
) -> None:
    """Writes PNG, JPEG (4:4:4) or WebP by the suffix of path, PNG if it has none; a failed write leaves nothing behind.

    Values are rounded to nearest. bits: 8 or 16 (PNG only); by default as in `picture`, if the format can.
    JPEG has no alpha: the picture is laid on white. An existing file is replaced in one step, at the end. text: chunks
    of a PNG by keyword; other formats do without. Raises SettingError for a suffix or depth that cannot be,
    NumericsError for NaN, ImageError where writing fails.
    """
    path = Path(path)
    kind = WRITE_SUFFIXES.get(path.suffix.lower() or ".png")
    if kind is None:
        raise SettingError(f"{path}: cannot write {path.suffix}; use .png, .jpg or .webp")
    if bits not in (None, 8, 16) or (bits == 16 and kind != "PNG"):
        raise SettingError(f"{path}: {bits} bits a sample cannot be written to {kind}; use 8, or 16 with .png")
    height, width = picture.rgb.shape[:2]
    if max(height, width) > _LARGEST_SIDE[kind]:
        limit = f"{kind} holds at most {_LARGEST_SIDE[kind]} pixels a side"
        raise ImageError(f"{path}: {width} x {height} pixels, {limit}; use .png")
    if picture.rgb.dtype.kind == "f" and not np.isfinite(picture.rgb).all():
        raise NumericsError(f"{path}: the picture has NaN or infinite values; it was not written")
    try:
        data = _encode(picture, kind, bits or picture.bits, quality)
        _replace(path, with_text(data, text) if text and kind == "PNG" else data)
    except (OSError, ValueError) as error:
        raise ImageError(f"{path}: cannot be written ({_reason(error)}); check the folder and its space") from error


def _encode(picture: Picture, kind: str, bits: int, quality: int) -> bytes:
    if kind == "PNG" and bits == 16:
        return png16.encode(_samples(picture, 16), picture.icc)
    image = to_pil(on_white(picture) if kind == "JPEG" else picture)
    options: dict[str, Any] = {
        "PNG": {},
        "JPEG": {"quality": quality, "subsampling": 0},
        "WEBP": {"quality": quality},
    }[kind]
    if picture.icc:
        options["icc_profile"] = picture.icc
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _replace(path: Path, data: bytes) -> None:
    """Puts data at path in one step, through a temporary file beside it that is gone whatever happens."""
    path = Path(os.path.realpath(path))  # a link keeps pointing to the file it names
    partial = path.with_name(f".moesr-{secrets.token_hex(8)}.part")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    """What went wrong, on one line."""
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(text.split()) or type(error).__name__


def _samples(picture: Picture, bits: int) -> np.ndarray:
    """Pixels as integers, uint8 or uint16 [H, W, C], C = 1 grey, 2 grey + alpha, 3 RGB, 4 RGBA."""
    if picture.rgb.dtype == (np.uint16 if bits == 16 else np.uint8):
        colours = picture.rgb[..., :1] if picture.grey else picture.rgb
        parts = [colours] if picture.alpha is None else [colours, picture.alpha[..., None]]
        return np.ascontiguousarray(parts[0]) if len(parts) == 1 else np.concatenate(parts, axis=2)
    picture = picture.floats()
    rgb = luma(picture.rgb) if picture.grey else picture.rgb
    values = rgb if picture.alpha is None else np.concatenate([rgb, picture.alpha[..., None]], axis=2)
    top = 2**bits - 1
    values = values * np.float32(top)
    np.rint(values, out=values)
    np.clip(values, 0, top, out=values)
    return values.astype(np.uint16 if bits == 16 else np.uint8)


def on_white(picture: Picture) -> Picture:
    """The picture without alpha, as it looks on white."""
    if picture.alpha is None:
        return picture
    picture = picture.floats()
    assert picture.alpha is not None
    alpha = picture.alpha[..., None]
    return Picture(picture.rgb * alpha + (1 - alpha), None, picture.grey, picture.icc)


def _to_rgb(image: Image.Image, icc: bytes | None) -> tuple[Image.Image, bytes | None]:
    """The image in mode L, LA, RGB or RGBA, and its profile if that still applies."""
    alpha = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
    if image.mode in ("CMYK", "LAB"):
        return _to_srgb(image, icc), None
    if image.mode in ("1", "L", "LA", "La"):
        return image.convert("LA" if alpha else "L"), icc
    return image.convert("RGBA" if alpha else "RGB"), icc


def _to_srgb(image: Image.Image, icc: bytes | None) -> Image.Image:
    """CMYK or Lab to sRGB through its profile; CMYK without a usable profile by the plain formula."""
    try:
        lab = image.mode == "LAB"
        source = ImageCms.createProfile("LAB") if lab else ImageCms.ImageCmsProfile(io.BytesIO(icc or b""))
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, ImportError, OSError) as error:
        _log.debug("no usable profile in a %s picture: %s", image.mode, error)
        converted = None
    return converted or image.convert("RGB")


def _single_channel(image: Image.Image) -> np.ndarray:
    """Grey with more than 8 bits, float32 [H, W, 1] in [0, 1]: integers of 16 bits (32 if larger occur), or floats."""
    values = np.asarray(image)[..., None]
    if values.dtype.kind == "f":
        return np.nan_to_num(values.astype(np.float32)).clip(0, 1)
    top = 65535 if values.max() <= 65535 else 2**31 - 1
    return (values / np.float64(top)).astype(np.float32).clip(0, 1)


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception as error:  # EXIF that nobody can parse says nothing; the pixels are fine
        _log.debug("unreadable EXIF: %s", error)
        return 1


def _upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """[H, W, C] as the camera saw it: EXIF 5 to 8 are stored on their side, the others by mirroring alone."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    return values
