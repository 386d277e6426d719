"""Metadata between files: what Pillow found in one kind becomes what another kind can hold."""

from __future__ import annotations

import logging
import re
import struct
from dataclasses import replace
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from . import exif as exif_blocks
from . import png
from .picture import Metadata

#: PNG keyword under which ImageMagick and ExifTool keep IPTC.
IPTC_KEYWORD = "Raw profile type iptc"
_RAW_EXIF = ("Raw profile type exif", "Raw profile type APP1")
_IPTC_RESOURCE = 0x0404
_SEGMENT = 65533  # bytes that a JPEG segment holds
_XMP_HEADER = b"http://ns.adobe.com/xap/1.0/\0"
_XMP_SIZES = {
    "tiff:ImageWidth": 0, "exif:PixelXDimension": 0, "tiff:ImageLength": 1, "exif:PixelYDimension": 1,
}  # fmt: skip

_log = logging.getLogger(__name__)


def read_metadata(image: Image.Image, data: bytes = b"") -> Metadata:
    """The metadata of a loaded Pillow image; data: its file, for what Pillow leaves out."""
    info = image.info
    text = {str(k): v for k, v in info.items() if isinstance(v, str)} if image.format == "PNG" else {}
    exif = exif_blocks.strip_header(get_exif(image))
    resources = info.get("photoshop")
    iptc = _as_bytes(resources.get(_IPTC_RESOURCE)) if isinstance(resources, dict) else b""
    iptc = iptc or extract_iptc(_unhex(text.get(IPTC_KEYWORD, "")))
    xmp = _as_bytes(info.get("xmp")) or text.get(png.XMP_KEYWORD, "").encode()
    text = {k: v for k, v in text.items() if k != png.XMP_KEYWORD and not k.lower().startswith("raw profile type")}
    comment = info.get("comment")
    if isinstance(comment, bytes) and image.format in ("JPEG", "MPO", "GIF"):
        text["Comment"] = comment.decode("utf-8", "replace").rstrip("\0")
    text = {**exif_blocks.read_texts(exif), **text} if exif else text
    turned = exif_blocks.read_orientation(exif) >= 5
    return Metadata(exif, xmp.rstrip(b"\0"), iptc, _find_dpi(image, turned), text, png.read_colour_chunks(data))


def get_exif(image: Image.Image) -> bytes:
    """The EXIF block of an opened Pillow image; not what its XMP says, by which viewers do not turn a picture."""
    raw = (image.info.get(key) for key in _RAW_EXIF)  # of PNGs by ImageMagick, before there was a chunk for it
    return _as_bytes(image.info.get("exif")) or next((_unhex(text) for text in raw if isinstance(text, str)), b"")


def adapt_to_result(metadata: Metadata, width: int, height: int) -> Metadata:
    """The same for an upright picture of that size: orientation 1, sizes updated, thumbnails dropped."""
    exif = exif_blocks.adapt_to_result(metadata.exif, width, height) if metadata.exif else b""
    return replace(metadata, exif=exif, xmp=_adapt_xmp(metadata.xmp, width, height))


def make_png_info(metadata: Metadata) -> PngInfo:
    """The chunks of a PNG, without those that tell colours."""
    info = PngInfo()
    if metadata.dpi:
        x, y = (min(round(value / 0.0254), 2**31 - 1) for value in metadata.dpi)  # per metre
        info.add(b"pHYs", struct.pack(">IIB", x, y, 1))
    texts = dict(metadata.text)
    if metadata.iptc:
        resources = wrap_iptc(metadata.iptc)
        body = "\n".join(resources.hex()[i : i + 72] for i in range(0, 2 * len(resources), 72))
        texts[IPTC_KEYWORD] = f"\niptc\n{len(resources):8d}\n{body}\n"
    for keyword, text in texts.items():
        try:
            if not 1 <= len(keyword.encode("latin-1")) <= 79 or "\0" in keyword:
                raise ValueError(f"keyword {keyword!r}: a PNG takes 1 to 79 characters")
            info.add_text(keyword, text.replace("\0", "").encode("utf-8", "replace").decode())
        except ValueError as error:
            _log.info("a text was left out: %s", error)
    if metadata.xmp:
        info.add_itxt(png.XMP_KEYWORD, metadata.xmp.decode("utf-8", "replace"))
    if metadata.exif:
        info.add(b"eXIf", metadata.exif)
    return info


def make_pillow_options(metadata: Metadata, kind: str) -> tuple[dict[str, Any], list[str]]:
    """What Pillow is told when it saves JPEG or WEBP, and one line for each thing that has no place there."""
    options: dict[str, Any] = {}
    notes = []
    webp = kind == "WEBP"
    dpi = metadata.dpi if webp else None
    exif = exif_blocks.add_texts(metadata.exif, metadata.text, dpi=dpi)
    if kind == "JPEG" and len(exif) + 6 > _SEGMENT:
        exif = exif_blocks.add_texts(metadata.exif, metadata.text, workflow=False)
        notes.append("prompt and workflow are too long for a JPEG and were left out; use .png")
    if kind == "JPEG" and len(exif) + 6 > _SEGMENT:
        exif = metadata.exif
        notes[:] = ["the generation parameters are too long for a JPEG and were left out; use .png"]
        if len(exif) + 6 > _SEGMENT:
            exif = b""
            notes.append("the EXIF is too long for a JPEG and was left out; use .png or .tif")
    if exif:
        options["exif"] = b"Exif\0\0" + exif
    if webp:
        if metadata.xmp:
            options["xmp"] = metadata.xmp
        if metadata.iptc:
            notes.append("IPTC has no place in a WebP and was left out; use .jpg, .png or .tif")
        return options, notes
    segments = []
    if metadata.xmp:
        segments.append((b"\xff\xe1", _XMP_HEADER + metadata.xmp, "XMP"))
    if metadata.iptc:
        segments.append((b"\xff\xed", b"Photoshop 3.0\0" + wrap_iptc(metadata.iptc), "IPTC"))
    for marker, body, name in segments:
        if len(body) > _SEGMENT:
            notes.append(f"the {name} is too long for a JPEG and was left out; use .png or .tif")
        else:
            options["extra"] = options.get("extra", b"") + marker + struct.pack(">H", len(body) + 2) + body
    if metadata.dpi:
        options["dpi"] = tuple(min(max(round(value), 1), 65535) for value in metadata.dpi)
    if comment := metadata.text.get("Comment", "").encode()[:_SEGMENT]:
        options["comment"] = comment
    return options, notes


def name_lost_texts(metadata: Metadata, kind: str) -> list[str]:
    """The line that names the texts for which JPEG, WEBP or TIFF have no place; none if all have one."""
    places = {"parameters", "prompt", "workflow", "Software", exif_blocks.SETTINGS_KEYWORD}
    lost = [keyword for keyword in metadata.text if keyword not in places | ({"Comment"} if kind == "JPEG" else set())]
    return [f"no place in {kind} for the texts {', '.join(lost)[:80]}; use .png"] if lost else []


def extract_iptc(resources: bytes) -> bytes:
    """The IPTC records within Photoshop's image resources; empty if there are none."""
    at = 0
    while resources[at : at + 4] == b"8BIM" and at + 12 <= len(resources):
        (number,) = struct.unpack_from(">H", resources, at + 4)
        at += 6 + (resources[at + 6] + 2) // 2 * 2
        if at + 4 > len(resources):
            break
        (length,) = struct.unpack_from(">I", resources, at)
        if number == _IPTC_RESOURCE:
            return resources[at + 4 : at + 4 + length]
        at += 4 + (length + 1) // 2 * 2
    return b""


def wrap_iptc(iptc: bytes) -> bytes:
    """Photoshop's image resources that hold IPTC records alone."""
    return b"8BIM" + struct.pack(">HHI", _IPTC_RESOURCE, 0, len(iptc)) + iptc + b"\0" * (len(iptc) % 2)


def _adapt_xmp(xmp: bytes, width: int, height: int) -> bytes:
    try:
        text = xmp.decode()
    except UnicodeDecodeError:
        return xmp  # UTF-16 packets are rare, and hold no pixels
    values = {"tiff:Orientation": 1, **{name: (width, height)[axis] for name, axis in _XMP_SIZES.items()}}
    for name, value in values.items():
        text = re.sub(rf'({name}\s*=\s*["\'])\d+', rf"\g<1>{value}", text)
        text = re.sub(rf"(<{name}>\s*)\d+", rf"\g<1>{value}", text)
    text = re.sub(r"<(\w+:Thumbnails)\b.*?</\1>", "", text, flags=re.DOTALL)
    # The rest of a long packet stands in segments of its own, which are not read.
    return re.sub(r'\s*xmpNote:HasExtendedXMP\s*=\s*["\'][^"\']*["\']', "", text).encode()


def _find_dpi(image: Image.Image, turned: bool) -> tuple[float, float] | None:
    """Pixels per inch; None if the file has none, as JPEG without a unit, where Pillow makes some up."""
    dpi = image.info.get("dpi")
    made_up = image.format in ("JPEG", "MPO") and image.info.get("jfif_unit", 0) not in (1, 2) and dpi == (72, 72)
    found = None if made_up else exif_blocks.check_dpi(*dpi) if dpi else exif_blocks.read_resolution(get_exif(image))
    return (found[1], found[0]) if found and turned else found


def _unhex(text: str) -> bytes:
    """The bytes of a "raw profile" text: a name, a length, and hexadecimal lines."""
    try:
        return bytes.fromhex("".join(text.split("\n")[3:]))
    except ValueError:
        return b""


def _as_bytes(value: object) -> bytes:
    return bytes(value) if isinstance(value, (bytes, bytearray)) else value.encode() if isinstance(value, str) else b""
