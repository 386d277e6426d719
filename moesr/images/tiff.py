"""TIFF: every kind of samples, right or refused by name; and a writer for 8 and 16 bits.

Pillow decodes what it knows well (8 bits per sample and less). For the rest its decompressors are given the samples as
plain bytes, and what the bytes mean is worked out here.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin, TiffTags

from ..errors import ImageError
from . import exif as exif_blocks
from .metadata import extract_iptc
from .picture import Metadata, Picture, make_picture
from .tiff_pages import Page, choose_page, read_directory, read_pages, start_at

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL = 256, 257, 258, 259, 262, 266
_STRIPS, _SAMPLES, _STRIP_ROWS, _STRIP_BYTES, _PLANAR, _PREDICTOR = 273, 277, 278, 279, 284, 317
_X_DPI, _Y_DPI, _DPI_UNIT, _TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES = 282, 283, 296, 322, 323, 324, 325
_EXTRA, _FORMAT, _XMP, _IPTC, _PHOTOSHOP, _ICC, _ORIENTATION = 338, 339, 700, 33723, 34377, 34675, 274
_LARGEST_SAMPLE = 281
#: Tags that say something about the picture, not about how it is stored.
_DESCRIPTIVE = (269, 270, 271, 272, 274, 305, 306, 315, 316, 33432, exif_blocks.HISTORY, *range(40091, 40096))
#: Compressions that keep samples exactly, as Pillow's libtiff knows them.
_LOSSLESS = {1: "none", 5: "LZW", 8: "deflate", 32946: "deflate", 32773: "PackBits", 34925: "LZMA", 50000: "Zstandard"}
_PHOTOMETRICS = {0: "white is zero", 1: "grey", 2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr", 8: "CIELab"}
_FORMATS = {1: "unsigned integer", 2: "signed integer", 3: "floating point", 4: "unsigned integer"}
_STRIP_SIZE = 2**18  # bytes of samples that are compressed together


def is_tiff(data: bytes) -> bool:
    """True if the file begins as a TIFF or BigTIFF."""
    return data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def read_tiff(data: bytes, from_pil: Any) -> Picture:
    """The picture of a TIFF: its first page, or the large one of which that is a thumbnail.

    from_pil: makes a Picture of a Pillow image. Raises ImageError for a kind of samples that has no certain meaning.
    """
    if data[:4] == b"MM\0+":  # of which Pillow 12 cannot read the header
        raise ImageError("a BigTIFF with big-endian numbers is not supported; save it as an ordinary TIFF")
    pages = read_pages(data)
    page, notes = choose_page(pages)
    if page.area > 2 * (Image.MAX_IMAGE_PIXELS or page.area):
        raise Image.DecompressionBombError(f"{page.area} pixels")
    depth, photometric, count = set(page.values(_BITS, (1,))), page.value(_PHOTOMETRIC, 1), page.value(_SAMPLES, 1)
    plain = set(page.values(_FORMAT, (1,))) <= {1, 4} and max(depth) <= 8
    plain = plain or (depth == {12} and count == 1) or (photometric == 5 and depth <= {8, 16})
    if plain and (count == 1 or (page.value(_PLANAR, 1) != 2 and photometric > 1)):
        file = data if page is pages[0] else start_at(data, page.offset)
        with Image.open(io.BytesIO(file), formats=["TIFF"]) as image:
            image.load()
            picture = from_pil(image)
        if depth == {12}:
            picture = replace(picture, rgb=picture.rgb * np.float32(65535 / 4095))
    else:
        picture = _decode(data, page, photometric)
    if 0 in page.values(_EXTRA):
        notes.append("a channel of unknown meaning was left out")
    icc = page.tags.get(_ICC) if photometric not in (5, 8) else None
    notes = [*picture.notes, *notes]
    return replace(picture, icc=icc or None, metadata=_read_metadata(data, page), notes=tuple(notes))


def _decode(data: bytes, page: Page, photometric: int) -> Picture:
    samples = page.value(_SAMPLES, 1)
    bits, formats = set(page.values(_BITS, (1,))), set(page.values(_FORMAT, (1,)))
    compression = page.value(_COMPRESSION, 1)
    names = [f"{'/'.join(map(str, sorted(bits)))} bits", _FORMATS.get(min(formats), "unknown samples")]
    names.append(_PHOTOMETRICS.get(photometric, f"photometric {photometric}"))
    kind = ", ".join([*names, f"compression {_LOSSLESS.get(compression, compression)}"])
    refusal = ImageError(f"a kind of TIFF that is not supported ({kind}); save it with 8 or 16 bits per sample")
    letter = {1: "u", 2: "i", 3: "f", 4: "u"}.get(min(formats))
    wide = {"u": (8, 16, 32, 64), "i": (8, 16, 32), "f": (16, 32, 64)}
    if len(bits) > 1 or len(formats) > 1 or letter is None or min(bits) not in wide[letter]:
        raise refusal
    colours = {0: 1, 1: 1, 2: 3, 5: 4}.get(photometric, 0)
    if not colours or samples < colours or compression not in _LOSSLESS or (photometric == 5 and letter != "u"):
        raise refusal
    order = ">" if data[:2] == b"MM" else "<"
    stored = _read_samples(data, page, np.dtype(f"{order}{letter}{min(bits) // 8}"))
    extras = page.values(_EXTRA, (0,) * (samples - colours)) if samples > colours else ()
    alpha = next((colours + i for i, extra in enumerate(extras) if extra in (1, 2)), None)
    if alpha is not None and alpha >= samples:
        raise refusal
    values, notes = _scale_samples(stored[..., :colours], page, photometric)
    if alpha is not None:
        opacity, _ = _scale_samples(stored[..., alpha : alpha + 1], page, 1)
        if extras[alpha - colours] == 1:  # premultiplied
            values = np.divide(values, opacity, out=np.zeros_like(values), where=opacity > 0).clip(0, 1)
        values = np.concatenate([values, opacity], axis=2)
    if photometric == 5:  # the plain formula, as there is no telling the inks
        black = 1 - values[..., 3:4]
        values = np.concatenate([(1 - values[..., :3]) * black, values[..., 4:]], axis=2)
    depth = 8 if min(bits) == 8 else 16
    return make_picture(values, colours == 1, page.value(_ORIENTATION, 1), bits=depth, notes=tuple(notes))


def _scale_samples(stored: np.ndarray, page: Page, photometric: int) -> tuple[np.ndarray, list[str]]:
    """Samples as float32 in [0, 1], and a line for what had to be assumed."""
    notes = []
    if stored.dtype.kind == "f":
        missing = int((~np.isfinite(stored)).sum())
        if missing:
            stored = np.nan_to_num(stored, posinf=0, neginf=0)
            notes.append(f"{missing} samples that are not numbers were read as 0")
        top, said = find_white(stored)
        notes += said
    else:
        top, notes = _find_largest(stored, page)
    values = (stored / top).astype(np.float32).clip(0, 1)
    return (1 - values if photometric == 0 else values), notes


def _find_largest(stored: np.ndarray, page: Page) -> tuple[float, list[str]]:
    """What is white among whole numbers, and the line that says so if it is not the largest that they can hold.

    The file decides, by a MaxSampleValue of all bits that are used. Where it is silent, samples are read as they are,
    but for those that would all be black: 32 bits and more that hold 8 or 16. Raises ImageError for negative numbers.
    """
    low, high = int(stored.min()), int(stored.max())
    if low < 0:
        raise ImageError(f"a TIFF of signed samples from {low} to {high}, which has no black; shift it to 0 and up")
    top, size, told = int(np.iinfo(stored.dtype).max), stored.dtype.itemsize, page.value(_LARGEST_SAMPLE, 0)
    used = 0
    if high <= told < top and told & (told + 1) == 0:
        used = told.bit_length()
    elif size > 2:
        used = next((bits for bits in (8, 16) if 0 < high < 2**bits), 0)
    if used:
        return 2.0**used - 1, [f"values up to {high} in {8 * size} bits: read as {used} bits per sample"]
    return float(top), []


def find_white(values: np.ndarray) -> tuple[float, list[str]]:
    """What is white among floats, and the line that says so if it is not 1. Raises ImageError if that is uncertain."""
    low, high = float(values.min()), float(values.max())
    if low >= -0.1 and high <= 1.1:  # a little beyond is the overshoot of a resize
        return 1.0, []
    for top in (255, 65535):
        if low >= 0 and top / 16 < high <= top:
            return float(top), [f"floats up to {high:g}: read as 0 to {top}"]
    raise ImageError(f"floats from {low:g} to {high:g}, of which white is not known; scale them to 0 to 1")


def _read_samples(data: bytes, page: Page, dtype: np.dtype[Any]) -> np.ndarray:
    """Samples of a page as stored, [H, W, samples], in the machine's byte order."""
    width, height, count = page.value(_WIDTH, 0), page.value(_HEIGHT, 0), page.value(_SAMPLES, 1)
    planes = count if page.value(_PLANAR, 1) == 2 else 1
    within = count // planes  # samples that lie side by side
    tiled = _TILES in page.tags
    block = page.value(_TILE_WIDTH, 0) if tiled else width
    rows = page.value(_TILE_HEIGHT, 0) if tiled else min(page.value(_STRIP_ROWS, height), height)
    across, down = (-(-side // part) if part > 0 else 0 for side, part in ((width, block), (height, rows)))
    if not across or not down or (tiled and across * block * down * rows > 4 * width * height + 2**20):
        raise ImageError("damaged TIFF: tiles without a size, or larger than the picture; get it again")
    offsets = page.values(_TILES if tiled else _STRIPS)
    lengths = page.values(_TILE_BYTES if tiled else _STRIP_BYTES, (len(data),) * len(offsets))
    if min(len(offsets), len(lengths)) < planes * across * down:
        raise ImageError("damaged TIFF: parts of the picture are missing; get it again")
    out = np.empty((height, width, count), dtype.newbyteorder("="))
    places = itertools.product(range(planes), range(0, height, rows), range(0, width, block))
    for (plane, y, x), offset, length in zip(places, offsets, lengths):
        shape = (rows if tiled else min(rows, height - y), block, within)
        raw = _decompress(data[offset : offset + length], page, shape[0], block * within * dtype.itemsize)
        part = _undo_predictor(raw, page.value(_PREDICTOR, 1), dtype, shape)[: height - y, : width - x]
        out[y : y + rows, x : x + block, plane * within : (plane + 1) * within] = part
    return out


def _decompress(raw: bytes, page: Page, rows: int, row_bytes: int) -> np.ndarray:
    """The decompressed bytes [rows, row bytes] of a strip or tile."""
    compression, fill = page.value(_COMPRESSION, 1), page.value(_FILL, 1)
    if compression in (8, 32946) and fill == 1:
        raw = zlib.decompressobj().decompress(raw, rows * row_bytes)
    elif compression != 1 or fill != 1:  # by Pillow, as the only strip of an 8-bit grey picture
        tags = {
            _WIDTH: row_bytes, _HEIGHT: rows, _BITS: 8, _COMPRESSION: compression, _PHOTOMETRIC: 1, _SAMPLES: 1,
            _FILL: fill, _STRIP_ROWS: rows, _STRIPS: 0, _STRIP_BYTES: len(raw),
        }  # fmt: skip
        image = TiffImagePlugin.TiffImageFile(io.BytesIO(_make_file(tags) + raw))  # so without a limit of pixels
        image.load()
        raw = np.asarray(image).tobytes()
    if len(raw) < rows * row_bytes:
        raise ImageError("damaged TIFF: the samples do not fill the picture; get it again")
    return np.frombuffer(raw, np.uint8, rows * row_bytes).reshape(rows, row_bytes)


def _undo_predictor(raw: np.ndarray, predictor: int, dtype: np.dtype[Any], shape: tuple[int, int, int]) -> np.ndarray:
    """Samples [rows, columns, samples] from their bytes [rows, row bytes]; differences are summed up within rows."""
    if predictor == 3 and dtype.kind == "f":  # of bytes, the highest of all samples first
        sums = np.cumsum(raw.reshape(len(raw), -1, shape[2]), axis=1, dtype=np.uint8)
        raw = sums.reshape(len(raw), dtype.itemsize, -1).swapaxes(1, 2)
        dtype = dtype.newbyteorder(">")
    values = np.frombuffer(raw.tobytes(), dtype).reshape(shape)
    if predictor == 2:
        whole = np.dtype(f"u{dtype.itemsize}")
        native = values.astype(dtype.newbyteorder("="))
        return np.cumsum(native.view(whole), axis=1, dtype=whole).view(native.dtype)
    if predictor not in (1, 3) or (predictor == 3 and dtype.kind != "f"):
        raise ImageError(f"a kind of TIFF that is not supported (predictor {predictor}); save it without compression")
    return values


def _make_file(tags: dict[int, Any], kinds: dict[int, int] | None = None) -> bytes:
    """A TIFF without samples, which follow; positions of strips count from its end. kinds: types of unusual tags."""
    directory = TiffImagePlugin.ImageFileDirectory_v2(b"II*\0\x08\0\0\0")
    directory.tagtype.update({_STRIPS: TiffTags.LONG, _STRIP_BYTES: TiffTags.LONG, **(kinds or {})})
    for tag, value in tags.items():
        directory[tag] = value
    file = io.BytesIO()
    directory.save(file)
    return file.getvalue()


def _read_metadata(data: bytes, page: Page) -> Metadata:
    tags = page.tags
    block = Image.Exif()
    for tag in _DESCRIPTIVE:
        if tag in tags and tag != _ORIENTATION:
            block[tag] = _as_stored(tags[tag])
    for pointer in (exif_blocks.EXIF_IFD, exif_blocks.GPS_IFD):
        with contextlib.suppress(Exception):  # a damaged directory says nothing
            inner = {tag: _as_stored(v) for tag, v in read_directory(data, tags[pointer], pointer).items()}
            block.update({pointer: inner} if inner else {})
    try:
        exif = exif_blocks.strip_header(block.tobytes()) if len(block) else b""
    except Exception:  # values of the wrong type for their tag
        exif = b""
    iptc = tags.get(_IPTC, b"")
    if isinstance(iptc, tuple) and all(isinstance(v, int) for v in iptc):  # many writers call it 32-bit numbers
        iptc = b"".join(v.to_bytes(4, "big" if data[:2] == b"MM" else "little") for v in iptc).rstrip(b"\0")
    iptc = iptc if isinstance(iptc, bytes) else b""
    resources = tags.get(_PHOTOSHOP, b"")
    iptc = iptc or extract_iptc(resources if isinstance(resources, bytes) else b"")
    xmp = tags.get(_XMP, b"")
    xmp = bytes(v for v in xmp) if isinstance(xmp, tuple) else xmp if isinstance(xmp, bytes) else b""
    dpi = exif_blocks.read_dpi(tags)
    dpi = (dpi[1], dpi[0]) if dpi and page.value(_ORIENTATION, 1) >= 5 else dpi
    return Metadata(exif, xmp.rstrip(b"\0"), iptc, dpi, exif_blocks.read_texts(exif) if exif else {})


def has_all_samples(data: bytes) -> bool:
    """False for a TIFF of strips whose end is missing."""
    page = choose_page(read_pages(data))[0]
    ends = [offset + length for offset, length in zip(page.values(_STRIPS), page.values(_STRIP_BYTES))]
    return max(ends, default=0) <= len(data)


def read_texts(data: bytes) -> dict[str, str]:
    """The texts in the EXIF of a TIFF by keyword."""
    return dict(_read_metadata(data, choose_page(read_pages(data))[0]).text)


def _as_stored(value: Any) -> Any:
    """The bytes of a text that is not ASCII, for which Pillow writes question marks; other values as they are."""
    return value.encode("latin-1", "replace") if isinstance(value, str) and not value.isascii() else value


def write_tiff(pixels: np.ndarray, metadata: Metadata, icc: bytes | None) -> bytes:
    """A TIFF of uint8 or uint16 [H, W, C], C = 1 grey, 2 grey + alpha, 3 RGB or 4 RGBA, compressed without loss."""
    height, width, channels = pixels.shape
    colours = 1 if channels < 3 else 3
    rows = max(1, _STRIP_SIZE // pixels[0].nbytes)
    strips = [_compress_rows(pixels[start : start + rows]) for start in range(0, height, rows)]
    positions = np.cumsum([0, *map(len, strips)])
    tags: dict[int, Any] = {
        _WIDTH: width, _HEIGHT: height, _BITS: (8 * pixels.itemsize,) * channels, _COMPRESSION: 8,
        _PHOTOMETRIC: 1 if colours == 1 else 2, _SAMPLES: channels, _STRIP_ROWS: rows, _PLANAR: 1, _PREDICTOR: 2,
        _STRIPS: tuple(map(int, positions[:-1])), _STRIP_BYTES: tuple(map(len, strips)), _ORIENTATION: 1,
        _FORMAT: (1,) * channels,
    }  # fmt: skip
    if channels > colours:
        tags[_EXTRA] = 2
    if metadata.dpi:
        tags |= {_X_DPI: metadata.dpi[0], _Y_DPI: metadata.dpi[1], _DPI_UNIT: 2}
    tags |= {tag: value for tag, value in ((_ICC, icc), (_XMP, metadata.xmp), (_IPTC, metadata.iptc)) if value}
    exif = exif_blocks.add_texts(metadata.exif, metadata.text)
    if exif:
        block = exif_blocks.load_block(exif)
        tags |= {tag: _as_stored(block[tag]) for tag in _DESCRIPTIVE if tag in block and tag != _ORIENTATION}
        for pointer in (exif_blocks.EXIF_IFD, exif_blocks.GPS_IFD):
            if inner := block.get_ifd(pointer):
                tags[pointer] = {tag: _as_stored(value) for tag, value in inner.items()}
    kinds = {_ICC: TiffTags.UNDEFINED, _XMP: TiffTags.BYTE, _IPTC: TiffTags.UNDEFINED}
    return _make_file(tags, kinds) + b"".join(strips)


def _compress_rows(rows: np.ndarray) -> bytes:
    """Rows as differences between neighbours, deflated."""
    rows = np.ascontiguousarray(rows, dtype=rows.dtype.newbyteorder("<"))
    steps = rows.copy()
    steps[:, 1:] -= rows[:, :-1]
    return zlib.compress(steps.tobytes(), 6)
