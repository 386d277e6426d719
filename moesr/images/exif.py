"""EXIF blocks, changed in place: what is not changed keeps its bytes and offsets, which maker notes depend on."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from PIL import Image

ORIENTATION, WIDTH, HEIGHT = 0x0112, 0x0100, 0x0101
MAKE, MODEL = 0x010F, 0x0110
X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT = 282, 283, 296
#: TIFF/EP's history of an image: what was done to it. Our settings stand there, after their keyword.
HISTORY, SETTINGS_KEYWORD = 0x9213, "moesr"
EXIF_IFD, GPS_IFD, USER_COMMENT = 0x8769, 0x8825, 0x9286
_PIXEL_WIDTH, _PIXEL_HEIGHT = 0xA002, 0xA003
_THUMBNAIL, _THUMBNAIL_BYTES = 0x0201, 0x0202
_HEADER = b"Exif\0\0"


def strip_header(exif: bytes) -> bytes:
    """The block without its leading `Exif`; empty if it is none."""
    while exif.startswith(_HEADER):
        exif = exif[len(_HEADER) :]
    return exif if exif[:4] in (b"II*\0", b"MM\0*") else b""


def read_orientation(exif: bytes) -> int:
    """The orientation that a block (with or without `Exif`) tells, 1 to 8; 1 if it tells none."""
    data = strip_header(exif)
    try:
        for tag, kind, _, at in _list_entries(data, _find_first(data)):
            if tag == ORIENTATION and kind in (3, 4):
                value = struct.unpack_from(_find_order(data) + ("H" if kind == 3 else "I"), data, at)[0]
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def adapt_to_result(exif: bytes, width: int, height: int) -> bytes:
    """The block of an upright picture of that size: orientation 1, sizes and resolutions to it, no thumbnail.

    A block that cannot be parsed comes back empty.
    """
    data = bytearray(exif)
    known = {ORIENTATION: 1, WIDTH: width, HEIGHT: height, _PIXEL_WIDTH: width, _PIXEL_HEIGHT: height}
    try:
        order, first = _find_order(exif), _find_first(exif)
        ifds = [first]
        for tag, _, _, at in _list_entries(exif, first):
            if tag == EXIF_IFD:
                ifds.append(struct.unpack_from(order + "I", exif, at)[0])
        for ifd in ifds:
            for tag, _, _, at in _list_entries(exif, ifd):
                if tag in known:
                    struct.pack_into(order + "HHII", data, at - 8, tag, 4, 1, known[tag])
                    if tag == ORIENTATION:  # of type short, as every reader expects
                        struct.pack_into(order + "HHIHH", data, at - 8, tag, 3, 1, 1, 0)
        if read_orientation(exif) >= 5:  # what was across is down
            places = {tag: at for tag, kind, _, at in _list_entries(exif, first) if kind == 5}
            x, y = places.get(X_RESOLUTION), places.get(Y_RESOLUTION)
            if x and y:
                data[x : x + 4], data[y : y + 4] = exif[y : y + 4], exif[x : x + 4]
        return _drop_thumbnail(data, first, order)
    except struct.error:
        return b""


def read_texts(exif: bytes) -> dict[str, str]:
    """Texts in EXIF: `parameters` as A1111 puts it into JPEG, `prompt` and `workflow` as ComfyUI does, our settings."""
    found: dict[str, str] = {}
    try:
        block = load_block(exif)
        comment = block.get_ifd(EXIF_IFD).get(USER_COMMENT)
        if isinstance(comment, bytes) and comment.startswith(b"UNICODE\0"):
            body = comment[8:]
            text = body.decode("utf-16-le" if body[1:2] == b"\0" else "utf-16-be")
            if "Steps: " in text:
                found["parameters"] = text.rstrip("\0")
        for tag in (MAKE, MODEL, HISTORY):
            keyword, _, text = str(block.get(tag, "")).rstrip("\0").partition(":")
            if keyword in ("prompt", "workflow", SETTINGS_KEYWORD):
                found[keyword] = text.encode("latin-1", "replace").decode("utf-8", "replace")
    except Exception:  # EXIF that nobody can parse says nothing; Pillow raises nearly anything
        return found
    return found


def add_texts(
    exif: bytes, text: Mapping[str, str], *, workflow: bool = True, dpi: tuple[float, float] | None = None
) -> bytes:
    """The block with the texts that `texts` reads back; prompt and workflow only where `workflow` is set.

    dpi: a resolution, for kinds of files that have no other place for it. What stands in the block already keeps its
    bytes and its place.
    """
    present = read_texts(exif) if exif else {}
    entries: list[tuple[int, int, bytes]] = []
    for key, tag in (("prompt", MODEL), ("workflow", MAKE), (SETTINGS_KEYWORD, HISTORY)):
        if key in text and text[key] != present.get(key) and (workflow or tag == HISTORY):
            entries.append((tag, 2, f"{key}:{text[key]}\0".encode()))
    comment = b""
    if "parameters" in text and "parameters" not in present:
        comment = b"UNICODE\0" + text["parameters"].encode("utf-16-be")
    exif = exif or b"MM\0*\0\0\0\x08" + bytes(6)
    order = _find_order(exif)
    if dpi and read_resolution(exif) is None:
        x, y = (struct.pack(order + "II", round(value * 10000), 10000) for value in dpi)
        entries += [(X_RESOLUTION, 5, x), (Y_RESOLUTION, 5, y), (RESOLUTION_UNIT, 3, struct.pack(order + "H", 2))]
    try:
        present_tags = {tag: at for tag, _, _, at in _list_entries(exif, _find_first(exif))}
        if comment:
            inner = struct.unpack_from(order + "I", exif, present_tags[EXIF_IFD])[0] if EXIF_IFD in present_tags else 0
            exif, at = _extend(exif, inner, [(USER_COMMENT, 7, comment)])
            entries.append((EXIF_IFD, 4, struct.pack(order + "I", at)))
        keep = (MAKE, MODEL)  # a camera's name is not replaced
        entries = [entry for entry in entries if entry[0] not in keep or entry[0] not in present_tags]
        if entries:
            exif, at = _extend(exif, _find_first(exif), entries)
            exif = exif[:4] + struct.pack(order + "I", at) + exif[8:]
    except struct.error:
        return exif
    return exif if len(exif) > 14 else b""


def _extend(data: bytes, ifd: int, entries: Sequence[tuple[int, int, bytes]]) -> tuple[bytes, int]:
    """The block with a copy of a directory (0: an empty one) and more entries at its end, and where that stands."""
    order = _find_order(data)
    count = struct.unpack_from(order + "H", data, ifd)[0] if ifd else 0
    table = {data[at : at + 2]: data[at : at + 12] for at in range(ifd + 2, ifd + 2 + 12 * count, 12)}
    link = data[ifd + 2 + 12 * count :][:4] if ifd else bytes(4)
    data += b"\0" * (len(data) % 2)
    for tag, kind, value in entries:
        size = len(value) // {2: 1, 3: 2, 4: 4, 5: 8, 7: 1}[kind]
        head = struct.pack(order + "HHI", tag, kind, size)
        if len(value) > 4:
            place, data = struct.pack(order + "I", len(data)), data + value + b"\0" * (len(value) % 2)
        else:
            place = value.ljust(4, b"\0")
        table[head[:2]] = head + place
    body = b"".join(table[tag] for tag in sorted(table, key=lambda tag: struct.unpack(order + "H", tag)))
    return data + struct.pack(order + "H", len(table)) + body + link, len(data)


def read_resolution(exif: bytes) -> tuple[float, float] | None:
    """Pixels per inch that a block tells, horizontal and vertical as stored; None if it tells none."""
    try:
        return read_dpi(load_block(exif))
    except Exception:  # as in `texts`
        return None


def read_dpi(tags: Any) -> tuple[float, float] | None:
    """Pixels per inch by the tags of a directory; None if they tell none. tags: a mapping."""
    factor = {2: 1.0, 3: 2.54}.get(tags.get(RESOLUTION_UNIT, 2), 0.0)
    return check_dpi(tags.get(X_RESOLUTION), tags.get(Y_RESOLUTION), factor)


def check_dpi(x: Any, y: Any, factor: float = 1.0) -> tuple[float, float] | None:
    """Both numbers times the factor; None if they are no resolution."""
    try:
        x, y = float(x) * factor, float(y) * factor
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return (x, y) if 1 < x < 1e6 and 1 < y < 1e6 else None


def load_block(exif: bytes) -> Image.Exif:
    """The block as Pillow's mapping. Raises nearly anything for a damaged one."""
    block = Image.Exif()
    if exif:
        block.load(_HEADER + exif)
    return block


def _find_order(data: bytes) -> str:
    return "<" if data[:2] == b"II" else ">"


def _find_first(data: bytes) -> int:
    return struct.unpack_from(_find_order(data) + "I", data, 4)[0]


def _list_entries(data: bytes, ifd: int) -> Iterator[tuple[int, int, int, int]]:
    """(tag, type, count, position of the value) of every entry."""
    order = _find_order(data)
    for i in range(struct.unpack_from(order + "H", data, ifd)[0]):
        at = ifd + 2 + 12 * i
        yield (*struct.unpack_from(order + "HHI", data, at), at + 8)


def _drop_thumbnail(data: bytearray, first: int, order: str) -> bytes:
    """Cut the link to IFD1, and blank the picture that it points to."""
    link = first + 2 + 12 * struct.unpack_from(order + "H", data, first)[0]
    (second,) = struct.unpack_from(order + "I", data, link)
    struct.pack_into(order + "I", data, link, 0)
    if not second:
        return bytes(data)
    values = {tag: struct.unpack_from(order + "I", data, at)[0] for tag, _, _, at in _list_entries(bytes(data), second)}
    start, length = values.get(_THUMBNAIL, 0), values.get(_THUMBNAIL_BYTES, 0)
    if start >= 8 and start + length <= len(data):
        if start + length >= len(data) - 1:
            return bytes(data[:start])
        data[start : start + length] = bytes(length)
    return bytes(data)
