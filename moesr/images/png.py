"""PNG: chunks, and 16 bits per sample, which Pillow reads and writes for grey only."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}  # PNG colour type -> samples per pixel
_COLOUR_TYPE = {channels: kind for kind, channels in _CHANNELS.items()}
XMP_KEYWORD = "XML:com.adobe.xmp"
_ROWS = 64  # rows filtered at a time: bounds the memory
_HEADER_END = len(_SIGNATURE) + 25  # IHDR is always the first chunk, and 25 bytes long
#: Chunks that say which colours the numbers mean, and nothing else.
_COLOUR_CHUNKS = (b"gAMA", b"cHRM", b"sRGB", b"cICP", b"mDCV", b"cLLI")


def is_png16(data: bytes) -> bool:
    """True if the file is a PNG with 16 bits a sample."""
    return data[:8] == _SIGNATURE and data[12:16] == b"IHDR" and data[24:25] == b"\x10"


def decode(data: bytes) -> np.ndarray:
    """All 16 bits of a PNG for which `is_png16` holds: uint16 [H, W, C], C = 1 grey, 2 grey + alpha, 3 RGB, 4 RGBA.

    A transparent colour (tRNS) becomes an alpha channel. Interlaced files too. Checksums and trailing damage are not
    looked at: let Pillow load the file first. Raises ValueError, struct.error or zlib's errors for damaged data.
    """
    width, height, _, kind, _, _, interlace = struct.unpack(">IIBBBBB", data[16:29])
    channels = _CHANNELS[kind]
    chunks = list(_list_chunks(data))
    pixels = b"".join(body for name, body in chunks if name == b"IDAT")
    samples = _unpack(pixels, width, height, channels, interlace)
    key = next((body for name, body in chunks if name == b"tRNS"), None)
    if key is None or channels not in (1, 3):
        return samples
    colour = np.frombuffer(key[: 2 * channels], ">u2")
    opaque = (samples != colour).any(axis=2, keepdims=True)
    return np.concatenate([samples, opaque * np.uint16(65535)], axis=2)


def encode(samples: np.ndarray) -> bytes:
    """A PNG file of uint16 [H, W, C] with C = 1 grey, 2 grey + alpha, 3 RGB or 4 RGBA."""
    height, width, channels = samples.shape
    header = struct.pack(">IIBBBBB", width, height, 16, _COLOUR_TYPE[channels], 0, 0, 0)
    packer = zlib.compressobj(6)
    pixels = [packer.compress(_filter_rows(samples[y : y + _ROWS])) for y in range(0, height, _ROWS)]
    body = b"".join([*pixels, packer.flush()])
    return _SIGNATURE + join_chunks([(b"IHDR", header), (b"IDAT", body), (b"IEND", b"")])


def insert(data: bytes, chunks: bytes) -> bytes:
    """The same file with whole chunks right after its header."""
    return data[:_HEADER_END] + chunks + data[_HEADER_END:]


def join_chunks(chunks: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Whole chunks in a row, of names and bodies."""
    return b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


def read_colour_chunks(data: bytes) -> bytes:
    """The whole chunks that tell colours, as they stand; empty if the file has none or is no PNG."""
    if data[:8] != _SIGNATURE:
        return b""
    return join_chunks(chunk for chunk in _list_chunks(data) if chunk[0] in _COLOUR_CHUNKS)


def split_chunks(chunks: bytes) -> dict[bytes, bytes]:
    """Bodies by name of whole chunks in a row."""
    return dict(_list_chunks(_SIGNATURE + chunks))


def repair(data: bytes) -> tuple[bytes, int] | None:
    """A PNG that is cut or has wrong checksums as one that loads, and how many rows of it are there.

    Missing pixels are 0. None if the header is not there, or the picture is interlaced: then nothing can be told.
    """
    if data[:8] != _SIGNATURE or data[12:16] != b"IHDR" or len(data) < _HEADER_END:
        return None
    width, height, depth, kind, _, _, interlace = struct.unpack(">IIBBBBB", data[16:29])
    if interlace or kind not in (*_CHANNELS, 3) or not width or not height:
        return None
    stride = 1 + (width * depth * _CHANNELS.get(kind, 1) + 7) // 8
    if stride * height > 2**31:
        return None
    chunks = list(_list_chunks(data))
    inflater, pixels, size = zlib.decompressobj(), bytearray(), stride * height
    packed = b"".join(body for name, body in chunks if name == b"IDAT")
    for start in range(0, len(packed), 4096):  # what stands before a fault is kept
        try:
            pixels += inflater.decompress(packed[start : start + 4096], size - len(pixels))
        except zlib.error:
            break
        if len(pixels) >= size:
            break
    kept = [chunk for chunk in chunks if chunk[0] in (b"PLTE", b"tRNS", b"iCCP", *_COLOUR_CHUNKS)]
    body = zlib.compress(pixels.ljust(size, b"\0"), 1)
    return data[:_HEADER_END] + join_chunks([*kept, (b"IDAT", body), (b"IEND", b"")]), len(pixels) // stride


def _unpack(pixels: bytes, width: int, height: int, channels: int, interlace: int) -> np.ndarray:
    """Inflated and unfiltered by Pillow's decoder, whose pixel formats take one byte of a sample: so in two halves."""
    size = (width, height)
    if channels == 2:  # 4 bytes per pixel: the same to the decoder as 8-bit RGBA
        halves = np.asarray(Image.frombytes("RGBA", size, pixels, "zip", "RGBA", interlace))
        high, low = halves[..., 0::2], halves[..., 1::2]
    else:  # big-endian samples: read as big-endian gives the high byte, read as little-endian the low byte
        mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
        little = "L;16" if channels == 1 else f"{mode};16L"
        high = np.asarray(Image.frombytes(mode, size, pixels, "zip", f"{mode};16B", interlace))
        low = np.asarray(Image.frombytes(mode, size, pixels, "zip", little, interlace))
    samples = high.astype(np.uint16) << 8 | low
    return samples.reshape(height, width, channels)


def _list_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    start = len(_SIGNATURE)
    while start + 8 <= len(data):
        length, name = struct.unpack(">I4s", data[start : start + 8])
        yield name, data[start + 8 : start + 8 + length]
        start += length + 12


def _filter_rows(samples: np.ndarray) -> bytes:
    """Rows [h, W, C] as bytes, each after the number of its filter: Sub, the difference from the pixel on the left."""
    rows = np.ascontiguousarray(samples, dtype=">u2").view(np.uint8).reshape(len(samples), -1)
    step = 2 * samples.shape[2]
    left = np.pad(rows, ((0, 0), (step, 0)))[:, :-step]
    return np.pad(rows - left, ((0, 0), (1, 0)), constant_values=1).tobytes()
