"""Files that clients send: only uploads are opened, and only what is a picture of acceptable size is decoded."""

from __future__ import annotations

import io
import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from ..errors import ImageError
from ..images.files import READ_FORMATS, Picture, explain_errors, read_image, read_upright_size
from .limits import Limits

_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(10))}
_LONGEST_NAME = 80


@dataclass(frozen=True)
class Upload:
    """A file that was sent."""

    #: Where it lies.
    path: Path
    #: What its sender calls it, made harmless.
    name: str


def accept(path: str | os.PathLike[str], roots: Sequence[Path], name: str | None = None) -> Upload:
    """The upload at `path`. Raises ImageError if that is no file below one of the `roots`, links resolved."""
    clean = clean_name(name or os.fspath(path))
    real = Path(os.path.realpath(path))
    if not any(real.is_relative_to(os.path.realpath(root)) for root in roots):
        raise ImageError(f"{clean}: no upload of this page; send the file itself")
    if not real.is_file():
        raise ImageError(f"{clean}: the upload is not there any more; send it again")
    return Upload(real, clean)


def read_size(upload: Upload, limits: Limits) -> tuple[int, int]:
    """Width and height as the header says them, upright; the pixels are not decoded.

    Raises ImageError for a file that is too large, no picture, or of too many pixels.
    """
    limits.check_bytes(upload.name, upload.path.stat().st_size if upload.path.is_file() else 0)
    try:
        with explain_errors(upload.name, _read_start(upload)), Image.open(upload.path, formats=READ_FORMATS) as image:
            width, height = image.size
            limits.check_input(upload.name, width, height)
            return read_upright_size(image)
    except ImageError as error:
        raise _without_path(upload, error) from error


def open_picture(upload: Upload, limits: Limits) -> Picture:
    """The picture, after its size was checked. Raises ImageError that calls it by its name, never by its path."""
    read_size(upload, limits)
    try:
        return read_image(upload.path)
    except ImageError as error:
        raise _without_path(upload, error) from error


def shrink(upload: Upload, side: int) -> Image.Image:
    """A picture whose size was checked, upright, RGB, with a long side of at most `side` pixels. Raises ImageError."""
    try:
        with explain_errors(upload.name), Image.open(upload.path, formats=READ_FORMATS) as image:
            image.draft("RGB", (2 * side, 2 * side))  # a JPEG is decoded at a fraction of its size
            small = ImageOps.exif_transpose(image) or image
            small.thumbnail((side, side))
            colours = small.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours).convert("RGB")
    except ImageError as error:
        raise _without_path(upload, error) from error


def draw_thumbnail(upload: Upload, side: int = 96) -> bytes:
    """A small JPEG of a picture whose size was checked. Raises ImageError."""
    buffer = io.BytesIO()
    shrink(upload, side).save(buffer, "JPEG")
    return buffer.getvalue()


def clean_name(name: str) -> str:
    """The last part of a path of any system, without control characters, at most 80 characters long."""
    last = re.split(r"[/\\]", name)[-1]
    # Cf are invisible marks, among them those that turn the direction of text.
    clean = "".join(c for c in last if unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co", "Cn")).strip()
    if len(clean) > _LONGEST_NAME:
        stem, suffix = os.path.splitext(clean)
        clean = stem[: _LONGEST_NAME - len(suffix[:10])] + suffix[:10]
    return clean or "picture"


def safe_stem(name: str) -> str:
    """A file name without suffix that every system takes, made from `name`: letters, digits, and . _ - and space."""
    stem = re.sub(r"[^\w.\- ]", "_", os.path.splitext(clean_name(name))[0]).strip(" .")
    if not stem or stem.split(".")[0].lower() in _RESERVED:
        return f"picture_{stem}".rstrip("_")
    return stem


def _read_start(upload: Upload) -> bytes:
    """The first bytes of a file, by which its kind is named; none if it cannot be read."""
    try:
        with upload.path.open("rb") as file:
            return file.read(64)
    except OSError:
        return b""


def _without_path(upload: Upload, error: ImageError) -> ImageError:
    return ImageError(str(error).replace(str(upload.path), upload.name))
