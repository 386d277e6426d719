"""Pictures from files: content decides the kind, and nothing is left out without a word."""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from PIL import Image

from ..errors import ImageError, MoESRError, explain, find_reason
from . import colour_profile, exif, png
from .metadata import get_exif, read_metadata
from .picture import Picture, make_picture, round_samples
from .tiff import find_white, has_all_samples, is_tiff, read_texts, read_tiff

_HEIF = ()
if importlib.util.find_spec("pillow_heif"):  # pictures of phones, where the user has installed it
    importlib.import_module("pillow_heif").register_heif_opener()
    _HEIF = ("HEIF",)
READ_SUFFIXES = (
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg", ".pjp", ".mpo", ".webp", ".tif", ".tiff",
    ".bmp", ".dib", ".gif", ".avif", ".avifs", ".pnm", ".ppm", ".pgm", ".pbm",
    *((".heic", ".heif") if _HEIF else ()),
)  # fmt: skip
_AVIF = ("AVIF",) if importlib.util.find_spec("PIL.AvifImagePlugin") else ()  # Pillow from 11.3
READ_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "DIB", "GIF", "PPM", *_AVIF, *_HEIF)
_KINDS = "PNG, JPEG, WebP, TIFF, BMP, GIF, AVIF or PPM"
_TRUNCATED = "get it again (upscale and batch read it as far as it goes with --allow-truncated)"


def read_image(
    source: str | os.PathLike[str] | bytes | BinaryIO, *, name: str = "the picture", allow_truncated: bool = False
) -> Picture:
    """The picture in a file, upright, with alpha, profile, metadata and (PNG, TIFF) all of its 16 bits.

    source: a path, the bytes of a file, or a file open for reading; `name` is what errors call bytes. CMYK is converted
    to sRGB. What a user must know (only the first of several frames was read) is in `notes`. A JPEG or PNG that lacks
    only what follows its pixels is read with a note; one that lacks pixels only if `allow_truncated` is set. Raises
    ImageError for whatever cannot be read.
    """
    label, data = _contents(source, name)
    if not data:
        raise ImageError(f"{label}: the file is empty; get it again")
    with explain_errors(label, data):
        if is_tiff(data):
            try:
                return read_tiff(data, from_pil)
            except ImageError as error:
                raise ImageError(f"{label}: {error}") from error
        try:
            return _decode(data)
        except (OSError, SyntaxError) as error:
            picture = None if isinstance(error, Image.UnidentifiedImageError) else _cut_short(data, allow_truncated)
            if picture is None:
                raise
            if not allow_truncated and not picture.notes:
                raise ImageError(f"{label}: damaged picture, cut short; {_TRUNCATED}") from error
            return picture


def read_upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an opened Pillow image as a viewer shows it; the pixels are not decoded."""
    width, height = image.size
    turned = image.format != "TIFF" and exif.read_orientation(get_exif(image)) >= 5  # Pillow turns a TIFF itself
    return (height, width) if turned else (width, height)


@contextmanager
def explain_errors(name: object, data: bytes = b"") -> Iterator[None]:
    """Whatever goes wrong in the block with the picture of that name is an ImageError, one line that begins with it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's notes on large or slightly odd files; its errors still count
            yield
    except MoESRError:
        raise
    except Image.UnidentifiedImageError as error:
        if is_tiff(data):
            raise ImageError(f"{name}: a kind of TIFF that is not supported; save it with 8 or 16 bits") from error
        if not _AVIF and data[4:12] in (b"ftypavif", b"ftypavis"):
            raise ImageError(f"{name}: this Pillow reads no AVIF; update Pillow, or convert the picture") from error
        if data[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1") and not _HEIF:
            raise ImageError(f"{name}: HEIC needs one more package: pip install pillow-heif; or convert it") from error
        raise ImageError(f"{name}: not a {_KINDS} picture; convert it to one of these") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: too many pixels to open safely; cut the picture into smaller ones") from error
    except MemoryError as error:
        raise ImageError(f"{name}: not enough memory to open it; cut the picture into smaller ones") from error
    except Exception as error:  # damaged files make Pillow raise nearly anything, from KeyError to SyntaxError
        if isinstance(error, OSError) and error.errno is not None:
            raise ImageError(f"{name}: cannot be read ({find_reason(error)}); check the path") from error
        raise ImageError(f"{name}: damaged picture ({find_reason(error)}); get it again or save it anew") from error


def read_text(path: str | os.PathLike[str]) -> dict[str, str]:
    """The texts of a picture by keyword, `metadata.text`, without decoding pixels; none if it cannot be read."""
    try:
        with open(path, "rb") as file:
            if is_tiff(file.read(4)):
                file.seek(0)
                return read_texts(file.read())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=READ_FORMATS) as image:
                return dict(read_metadata(image).text)
    except Exception:  # damaged files make Pillow raise nearly anything
        return {}


def is_cut_short(path: str | os.PathLike[str]) -> bool:
    """True for a PNG, JPEG, WebP or TIFF, as `write_image` makes them, whose end is missing. Raises OSError."""
    with open(path, "rb") as file:
        head = file.read(8)
        if is_tiff(head):
            return not has_all_samples(head + file.read())
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 8))
        end = file.read()
    if head[:4] == b"RIFF":
        return size < 8 + int.from_bytes(head[4:8], "little")
    return not end.endswith(b"IEND\xaeB`\x82" if head[:4] == b"\x89PNG" else b"\xff\xd9")


def from_pil(image: Image.Image, data: bytes = b"") -> Picture:
    """The Picture that a Pillow image of any mode shows, turned upright by its EXIF orientation.

    data: its file, for what Pillow loses: bits of a PNG, and colour chunks. Raises ImageError for floats of which white
    is not known.
    """
    image.load()
    orientation = 1 if image.format == "TIFF" else exif.read_orientation(get_exif(image))
    icc = image.info.get("icc_profile")
    icc = icc if isinstance(icc, bytes) else None
    grey, bits, notes = False, 16, []
    if png.is_png16(data):
        values = png.decode(data).astype(np.float32) / np.float32(65535)
        grey = values.shape[2] < 3
    elif image.mode == "F" or image.mode.startswith("I"):
        values, notes = _single_channel(image)
        grey = True
    else:
        image, icc = _to_rgb(image, icc)
        grey, bits = image.mode in ("L", "LA"), 8
        values = np.asarray(image, dtype=np.float32).reshape(image.height, image.width, -1) / np.float32(255)
    metadata = read_metadata(image, data)
    if b"HasExtendedXMP" in metadata.xmp:
        notes.append("of its long XMP the first part travels alone")
    chunks = metadata.colour_chunks
    icc = icc if colour_profile.is_usable(icc, grey) else None  # no program uses one of another kind
    if chunks and (icc is None or b"cICP" in chunks):
        icc = colour_profile.build_from_chunks(chunks, grey) or (icc if colour_profile.is_hdr(chunks) else None)
    return make_picture(values, grey, orientation, icc=icc, bits=bits, metadata=metadata, notes=tuple(notes))


def to_pil(picture: Picture) -> Image.Image:
    """An 8-bit Pillow image, rounded to nearest: mode L, LA, RGB or RGBA, with the ICC profile in `info`."""
    pixels = round_samples(picture, 8)
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    if picture.icc:
        image.info["icc_profile"] = picture.icc
    return image


def _contents(source: str | os.PathLike[str] | bytes | BinaryIO, name: str) -> tuple[object, bytes]:
    """What to call a source in messages, and all its bytes."""
    if isinstance(source, bytes):
        return name, source
    if hasattr(source, "read"):
        file = cast(BinaryIO, source)
        return getattr(file, "name", name), file.read()
    path = Path(cast("str | os.PathLike[str]", source))
    with explain(ImageError, f"{path}: cannot be read", "check the path", errors=(OSError, ValueError)):
        return path, path.read_bytes()


def _decode(data: bytes) -> Picture:
    with Image.open(io.BytesIO(data), formats=READ_FORMATS) as image:
        frames = getattr(image, "n_frames", 1) if image.format != "MPO" else 1  # a preview or gain map of a camera
        image.seek(0)
        picture = from_pil(image, data)
    notes = [f"only the first of {frames} frames was read"] if frames > 1 else []
    return replace(picture, notes=(*picture.notes, *notes))


def _cut_short(data: bytes, allow_truncated: bool) -> Picture | None:
    """A JPEG or PNG that does not load as it is, as far as it goes; None if it is of another kind, or has no pixels.

    There are notes if all pixels are there, or if pixels are missing and `allow_truncated` is set.
    """
    if data[:2] == b"\xff\xd8":
        # libjpeg fills what is missing; other bits in place of the missing ones show whether they would be used.
        data = data.rstrip(b"\xff")  # half of the marker of the end
        ended = _decode(data + b"\xff\xd9")
        other = _decode(data + b"\x5a\xa5" * 4096 + b"\xff\xd9")
        rows = np.flatnonzero((ended.rgb != other.rgb).any(axis=(1, 2)))
        whole, first = not len(rows), int(rows[0]) if len(rows) else 0
        picture = ended
    else:
        repair = png.repair(data)
        if repair is None or not repair[1]:
            return None
        picture = _decode(repair[0])
        first = repair[1]
        whole = first == picture.rgb.shape[0]
        if whole and b"IEND" in data[-16:]:
            whole, first = False, -1  # all rows, but with a wrong checksum
    if whole:
        return replace(picture, notes=(*picture.notes, "the end of the file is missing, all pixels are there"))
    if not allow_truncated:
        return replace(picture, notes=())
    said = "the file is damaged; colours may be wrong" if first < 0 else f"the file is cut short at about row {first}"
    return replace(picture, notes=(*picture.notes, said))


def _to_rgb(image: Image.Image, icc: bytes | None) -> tuple[Image.Image, bytes | None]:
    """The image in mode L, LA, RGB or RGBA, and its profile if that still applies."""
    alpha = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
    if image.mode in ("CMYK", "LAB"):
        return _keep_info(image, colour_profile.to_srgb(image, icc)), None
    mode = ("LA" if alpha else "L") if image.mode in ("1", "L", "LA", "La") else "RGBA" if alpha else "RGB"
    return _keep_info(image, image.convert(mode)), icc


def _keep_info(source: Image.Image, converted: Image.Image) -> Image.Image:
    """The converted image with what the source knows of its file."""
    if converted is not source:
        converted.info = {**source.info}
        converted.format = source.format
    return converted


def _single_channel(image: Image.Image) -> tuple[np.ndarray, list[str]]:
    """Grey with more than 8 bits, float32 [H, W, 1] in [0, 1]: integers of 16 bits (32 if larger occur), or floats."""
    values = np.asarray(image)[..., None]
    if values.dtype.kind == "f":
        values = np.nan_to_num(values.astype(np.float32), posinf=0, neginf=0)
        top, notes = find_white(values)
        return (values / np.float32(top)).clip(0, 1), notes
    top = 65535 if values.max() <= 65535 else 2**31 - 1
    return (values / np.float64(top)).astype(np.float32).clip(0, 1), []
