"""Pictures into files: whole or not at all, with all that travels with them."""

from __future__ import annotations

import io
import os
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from PIL import Image

from ..atomic_files import open_new
from ..errors import ImageError, NumericsError, SettingError, explain
from . import colour_profile, png
from . import metadata as translate
from .picture import Metadata, Picture, lay_on_white, round_samples
from .read import to_pil
from .tiff import write_tiff

WRITE_SUFFIXES = {
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".webp": "WEBP", ".tif": "TIFF",
    ".tiff": "TIFF",
}  # fmt: skip
#: The quality of JPEG and WebP, 1 to 100.
QUALITY = 95
_LARGEST_SIDE = {"PNG": 2**31 - 1, "JPEG": 65500, "WEBP": 16383, "TIFF": 2**31 - 1}


def write_image(
    target: str | os.PathLike[str] | BinaryIO, picture: Picture, *, format: str | None = None,
    quality: int | None = None, metadata: bool = True,
) -> tuple[str, ...]:  # fmt: skip
    """Writes PNG, JPEG (4:4:4), WebP or TIFF; a failed write leaves nothing behind, and the old file as it was.

    target: a path, or a file open for writing. format: png, jpg, webp or tiff; by default what the suffix of the path
    says, PNG if it says nothing. Values are rounded to nearest, to 16 bits where `picture.bits` and the kind (PNG,
    TIFF) have them. quality: 1 to 100, of JPEG and WebP. JPEG has no alpha: the picture is laid on white. metadata:
    False strips all but what tells the colours. Returns one line for each thing that has no place in that kind. Raises
    SettingError for a kind or quality that cannot be, NumericsError for NaN, ImageError where writing fails.
    """
    file = cast("BinaryIO | None", target if hasattr(target, "write") else None)
    path = None if file is not None else Path(cast("str | os.PathLike[str]", target))
    name = path if path is not None else getattr(file, "name", "the picture")
    kind = _kind(path, format)
    quality = QUALITY if quality is None else quality
    if not 1 <= quality <= 100:
        raise SettingError(f"quality {quality}: give 1 to 100")
    height, width = picture.rgb.shape[:2]
    check_size(name, kind, height, width)
    if picture.rgb.dtype.kind == "f" and not np.isfinite(picture.rgb).all():
        raise NumericsError(f"{name}: the picture has NaN or infinite values; it was not written")
    colours = picture.metadata.colour_chunks
    kept = translate.adapt_to_result(picture.metadata, width, height) if metadata else Metadata(colour_chunks=colours)
    with explain(
        ImageError, f"{name}: cannot be written", "check the folder and its space", errors=(OSError, ValueError)
    ):
        data, notes = _encode(replace(picture, metadata=kept), kind, quality)
        if file is not None:
            file.write(data)
        elif path is not None:
            with open_new(Path(os.path.realpath(path)), replaces=True) as part:  # a link keeps pointing to its file
                part.write(data)
    return tuple(notes)


def check_size(name: object, kind: str, height: int, width: int) -> None:
    """Raises ImageError if files of that kind (PNG, JPEG, WEBP, TIFF) hold no pictures as large, in pixels."""
    if max(height, width) > _LARGEST_SIDE[kind]:
        limit = f"{kind} holds at most {_LARGEST_SIDE[kind]} pixels per side"
        raise ImageError(f"{name}: {width} x {height} pixels, {limit}; use .png")


def _kind(path: Path | None, format: str | None) -> str:
    if format is not None:
        kind = WRITE_SUFFIXES.get(f".{format.lower()}")
        if kind is None:
            raise SettingError(f"format {format!r} is unknown: choose png, jpg, webp or tiff")
        return kind
    suffix = path.suffix.lower() if path is not None else ""
    if suffix and suffix not in WRITE_SUFFIXES:
        raise SettingError(f"{path}: cannot write {suffix}; use .png, .jpg, .webp or .tif")
    return WRITE_SUFFIXES[suffix or ".png"]


def _encode(picture: Picture, kind: str, quality: int) -> tuple[bytes, list[str]]:
    kept = picture.metadata
    if kind == "PNG":
        return _png(picture), []
    if colour_profile.is_hdr(kept.colour_chunks):
        picture = colour_profile.hdr_to_srgb(picture)
    if kind == "TIFF":
        data = write_tiff(round_samples(picture, picture.bits), kept, picture.icc)
        return data, translate.name_lost_texts(kept, kind)
    if kind == "WEBP" and picture.grey and picture.icc:  # WebP has no grey, and a grey profile no place in it
        picture = colour_profile.grey_to_srgb(picture)
    image = to_pil(lay_on_white(picture) if kind == "JPEG" else picture)
    image.info.clear()
    options, notes = translate.make_pillow_options(kept, kind)
    options |= {"quality": quality, **({"subsampling": 0} if kind == "JPEG" else {})}
    if picture.icc:
        options["icc_profile"] = picture.icc
    return encode_image(image, kind, **options), [*notes, *translate.name_lost_texts(kept, kind)]


def _png(picture: Picture) -> bytes:
    """A PNG; the colours are told as they were, by chunks or by a profile."""
    pixels = round_samples(picture, picture.bits)
    if picture.bits == 16:
        data = png.encode(pixels)
    else:
        image = to_pil(picture)
        image.info.clear()
        data = encode_image(image, "PNG")
    kept = picture.metadata
    chunks = kept.colour_chunks
    same = colour_profile.build_from_chunks(chunks, picture.grey) == picture.icc or colour_profile.is_hdr(chunks)
    info = translate.make_png_info(kept)
    if picture.icc and not same:
        info.add(b"iCCP", b"ICC Profile\0\0" + zlib.compress(picture.icc))
    return png.insert(data, (chunks if same else b"") + png.join_chunks(chunk[:2] for chunk in info.chunks))


def encode_image(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The file of a Pillow image. options: those of its `save`."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
