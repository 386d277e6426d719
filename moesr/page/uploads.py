"""Files that clients send: only uploads are opened, and only what is a picture of acceptable size is decoded."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from ..errors import ImageError
from ..images.files import READ_FORMATS, Picture, explain_errors, read_image, read_upright_size
from ..images.write import encode_image
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
    with explain_errors(upload.name), upload.path.open("rb") as file:
        limits.check_bytes(upload.name, file.seek(0, os.SEEK_END))
        file.seek(0)
        with explain_errors(upload.name, file.read(64)), Image.open(file, formats=READ_FORMATS) as image:
            limits.check_input(upload.name, *image.size)
            return read_upright_size(image)


def open_picture(upload: Upload, limits: Limits) -> Picture:
    """The picture, after its size was checked. Raises ImageError that calls it by its name, never by its path."""
    read_size(upload, limits)
    with explain_errors(upload.name):
        return read_image(upload.path.read_bytes(), name=upload.name)


def shrink(upload: Upload, side: int) -> Image.Image:
    """A picture whose size was checked, upright, RGB, with a long side of at most `side` pixels. Raises ImageError."""
    with explain_errors(upload.name), Image.open(upload.path, formats=READ_FORMATS) as image:
        image.draft("RGB", (2 * side, 2 * side))  # a JPEG is decoded at a fraction of its size
        small = ImageOps.exif_transpose(image) or image
        small.thumbnail((side, side))
        colours = small.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours).convert("RGB")


def draw_thumbnail(upload: Upload, side: int = 96) -> bytes:
    """A small JPEG of a picture whose size was checked. Raises ImageError."""
    return encode_image(shrink(upload, side), "JPEG")


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
