"""Pictures, and as bytes of files of many kinds, made here."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageCms, ImageDraw, ImageFont

from moesr.images.metadata import wrap_iptc

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><d tiff:Orientation="6" exif:PixelXDimension="48" dc:title="Holiday"/>'
IPTC = b"\x1c\x02\x78\x00\x05hello\x1c\x02\x50\x00\x04Anna"


def scene(width: int = 48, height: int = 32) -> np.ndarray:
    """A smooth coloured scene with an edge and a little texture, uint8 [H, W, 3]."""
    y, x = np.mgrid[0:height, 0:width]
    rgb = np.stack([60 + 150 * x / width, 90 + 100 * y / height, 200 - 120 * x / width + 20 * np.sin(y / 3)], axis=2)
    rgb[(x - width * 0.6) ** 2 + (y - height * 0.5) ** 2 < (height * 0.3) ** 2] = (220, 70, 40)
    return np.clip(np.rint(rgb + np.random.default_rng(1).normal(0, 3, rgb.shape)), 0, 255).astype(np.uint8)


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth colours with some noise, uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 16
    waves = np.stack([np.sin(y + k) * np.cos(x * (k + 1) / 2) for k in range(3)], axis=-1)
    return ((waves * 0.35 + 0.5 + rng.normal(0, 0.03, waves.shape)) * 255).clip(0, 255).astype(np.uint8)


def planes(pixels: np.ndarray) -> torch.Tensor:
    """float32 [1, 3, H, W] in [0, 1] of uint8 [H, W, 3]."""
    return torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255


def text(mode: str = "L", ink: Any = 0, paper: Any = 255) -> Image.Image:
    """A few lines of small text."""
    image = Image.new(mode, (96, 48), paper)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(11)
    for i, line in enumerate(("The quick brown", "jumps 0123456")):
        draw.text((3, 3 + 20 * i), line, font=font, fill=ink)
    return image


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The bytes of the file that Pillow writes."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def phone_photo() -> bytes:
    """A JPEG as a phone writes it: on its side, with everything, a maker note and a thumbnail."""
    block = Image.Exif()
    block[0x010F], block[0x0112], block[0x013B], block[0x0100] = "ExampleCam", 6, "A. Nonymous", 48
    inner = block.get_ifd(0x8769)
    inner[0x9003], inner[0xA002], inner[0xA003], inner[0x927C] = "2021:07:14 10:11:12", 48, 32, b"maker" * 9
    block.get_ifd(0x8825).update({1: "N", 2: (10.0, 20.0, 30.0)})
    data = bytearray(block.tobytes()[6:])
    thumbnail = encode(Image.new("RGB", (8, 8), "red"), "JPEG")
    first = struct.unpack_from(">I", data, 4)[0]
    link = first + 2 + 12 * struct.unpack_from(">H", data, first)[0]
    struct.pack_into(">I", data, link, len(data))
    data += struct.pack(">HHHIIHHIII", 2, 0x201, 4, 1, len(data) + 30, 0x202, 4, 1, len(thumbnail), 0) + thumbnail
    segment = b"Photoshop 3.0\0" + wrap_iptc(IPTC)
    extra = b"\xff\xed" + struct.pack(">H", len(segment) + 2) + segment
    return encode(Image.fromarray(scene()), "JPEG", exif=b"Exif\0\0" + data, xmp=XMP, icc_profile=SRGB, dpi=(300, 200),
                 comment=b"hello", extra=extra)  # fmt: skip


def png_chunk(name: bytes, body: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def tiff(pixels: np.ndarray, photometric: int = 2, *, planar: bool = False, extra: tuple[int, ...] = (),
         orientation: int = 1, order: str = "<", predictor: int = 1, deflate: bool = False, tile: int = 0,
         bits: int = 0, largest: int = 0) -> bytes:  # fmt: skip
    """A TIFF by the letter of the standard (TIFF 6.0): [H, W] or [H, W, C] of any type, in strips or square tiles.

    largest: its MaxSampleValue.
    """
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    height, width, channels = pixels.shape
    planes = [pixels[..., i : i + 1] for i in range(channels)] if planar else [pixels]
    side_y, side_x = (tile, tile) if tile else (height, width)
    blocks = []
    for plane in planes:
        for y in range(0, height, side_y):
            for x in range(0, width, side_x):
                block = np.zeros((side_y, side_x, plane.shape[2]), pixels.dtype)
                part = plane[y : y + side_y, x : x + side_x]
                block[: part.shape[0], : part.shape[1]] = part
                blocks.append(_stored(block, order, predictor, deflate))
    kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    tags: dict[int, tuple[int, list[int]]] = {
        256: (4, [width]), 257: (4, [height]), 258: (3, [bits or 8 * pixels.itemsize] * channels),
        259: (3, [8 if deflate else 1]), 262: (3, [photometric]), 274: (3, [orientation]), 277: (3, [channels]),
        284: (3, [2 if planar else 1]), 317: (3, [predictor]), 339: (3, [kind] * channels),
    }  # fmt: skip
    if largest:
        tags[281] = (3, [largest] * channels)
    if extra:
        tags[338] = (3, list(extra))
    if tile:
        tags |= {322: (3, [tile]), 323: (3, [tile])}
    else:
        tags[278] = (4, [height])
    tags |= {324 if tile else 273: (4, [0] * len(blocks)), 325 if tile else 279: (4, [len(b) for b in blocks])}
    start = 8 + 2 + 12 * len(tags) + 4
    start += sum(size for kind, values in tags.values() if (size := len(values) * (2 if kind == 3 else 4)) > 4)
    tags[324 if tile else 273] = (4, [start + sum(map(len, blocks[:i])) for i in range(len(blocks))])
    entries, outside, at = b"", b"", 8 + 2 + 12 * len(tags) + 4
    for tag, (kind, values) in sorted(tags.items()):
        body = struct.pack(f"{order}{len(values)}{'H' if kind == 3 else 'I'}", *values)
        if len(body) > 4:
            body, outside = struct.pack(order + "I", at + len(outside)), outside + body
        entries += struct.pack(order + "HHI", tag, kind, len(values)) + body.ljust(4, b"\0")
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HIH", 42, 8, len(tags))
    return head + entries + bytes(4) + outside + b"".join(blocks)


def _stored(block: np.ndarray, order: str, predictor: int, deflate: bool) -> bytes:
    """A strip or tile: differences between neighbours (2, or 3 by the bytes of floats), in the byte order asked for."""
    if predictor == 2:
        whole = block.view(f"u{block.itemsize}")
        block = np.concatenate([whole[:, :1], whole[:, 1:] - whole[:, :-1]], axis=1)
    if predictor == 3:
        rows, step = block.shape[0], block.shape[2]
        planes = np.ascontiguousarray(block.astype(block.dtype.newbyteorder(">"))).view(np.uint8)
        planes = planes.reshape(rows, -1, block.itemsize).swapaxes(1, 2).reshape(rows, -1)
        steps = planes.copy()
        steps[:, step:] -= planes[:, :-step]
        body = steps.tobytes()
    else:
        body = block.astype(f"{order}{block.dtype.kind}{block.itemsize}").tobytes()
    return zlib.compress(body) if deflate else body
