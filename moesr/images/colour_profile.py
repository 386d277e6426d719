"""What the numbers of a picture mean: ICC profiles, the colour chunks of a PNG, and the way from both to sRGB."""

from __future__ import annotations

import io
import logging
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from . import png
from .picture import Picture

Curve = Callable[[np.ndarray], np.ndarray]

_log = logging.getLogger(__name__)

# Chromaticities x, y of white, red, green and blue, by their number in ITU-T H.273.
_D65 = (0.3127, 0.3290)
_SRGB = (*_D65, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
_PRIMARIES = {
    1: _SRGB,
    5: (*_D65, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    7: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    9: (*_D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    11: (0.314, 0.351, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    12: (*_D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
}
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_D50 = np.array([0.9642, 1.0, 0.8249])
_GAMMA_OF_SRGB = 45455  # gAMA of 1 / 2.2, which programs write for sRGB
#: Light of a white page in nits, of which HDR pictures hold more (ITU-R BT.2408).
_WHITE_NITS = 203


def is_usable(icc: bytes | None, grey: bool) -> bool:
    """True for a whole profile that can describe pixels of that kind; programs ignore another."""
    icc = icc or b""
    whole = icc[36:40] == b"acsp" and int.from_bytes(icc[:4], "big") <= len(icc)
    return whole and icc[16:20] == (b"GRAY" if grey else b"RGB ")


def build_from_chunks(chunks: bytes, grey: bool) -> bytes | None:
    """The ICC profile that says the same as the colour chunks of a PNG (W3C PNG, section 11.3.2).

    None for sRGB, for nothing said, and for HDR, which no such profile can tell.
    """
    bodies = png.split_chunks(chunks)
    cicp = bodies.get(b"cICP", b"")
    if len(cicp) == 4:
        curve, primaries = _TRANSFERS.get(cicp[1]), _PRIMARIES.get(cicp[0])
        if (cicp[0], cicp[1]) == (1, 13) or curve is None or primaries is None or cicp[1] in _HDR:
            return None
        return _build_profile(primaries, curve, grey)
    if b"sRGB" in bodies:
        return None
    gamma, chroma = bodies.get(b"gAMA", b""), bodies.get(b"cHRM", b"")
    primaries = _SRGB
    if len(chroma) == 32:
        primaries = tuple(value / 100000 for value in struct.unpack(">8I", chroma))
    near_srgb = max(abs(a - b) for a, b in zip(primaries, _SRGB)) < 2e-3
    value = struct.unpack(">I", gamma)[0] if len(gamma) == 4 else _GAMMA_OF_SRGB
    if (near_srgb and abs(value - _GAMMA_OF_SRGB) < 600) or not 1000 < value < 1_000_000:
        return None
    try:
        return _build_profile(primaries, lambda x: x ** (100000 / value), grey)
    except (np.linalg.LinAlgError, ZeroDivisionError, struct.error):
        return None  # primaries that span no colours


def is_hdr(chunks: bytes) -> bool:
    """True for PQ and HLG, whose numbers mean more light than sRGB can hold."""
    cicp = png.split_chunks(chunks).get(b"cICP", b"")
    return len(cicp) == 4 and cicp[1] in _HDR and cicp[0] in _PRIMARIES


def hdr_to_srgb(picture: Picture) -> Picture:
    """An HDR picture as sRGB; what is brighter than white paper becomes white."""
    cicp = png.split_chunks(picture.metadata.colour_chunks)[b"cICP"]
    light = _HDR[cicp[1]](picture.floats().rgb.astype(np.float64)) / _WHITE_NITS
    matrix = np.linalg.inv(_to_xyz(_SRGB)) @ _to_xyz(_PRIMARIES[cicp[0]])
    linear = (light @ matrix.T).clip(0, 1)
    rgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return replace(picture.floats(), rgb=rgb.astype(np.float32), icc=None)


def grey_to_srgb(picture: Picture) -> Picture:
    """A grey picture with a profile of its own as the sRGB grey that looks the same."""
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    try:
        shown = _through_profile(ramp, io.BytesIO(picture.icc or b""))
    except (ImageCms.PyCMSError, OSError) as error:
        _log.debug("unusable profile of a grey picture: %s", error)
        return replace(picture, icc=None)
    levels = np.asarray(shown, np.float32)[0].mean(axis=1) / 255
    rgb = np.interp(picture.floats().rgb, np.arange(256) / 255, levels).astype(np.float32)
    return replace(picture.floats(), rgb=rgb, icc=None)


def to_srgb(image: Image.Image, icc: bytes | None) -> Image.Image:
    """CMYK or Lab to sRGB through its profile; CMYK without a usable profile by the plain formula."""
    try:
        return _through_profile(image, ImageCms.createProfile("LAB") if image.mode == "LAB" else io.BytesIO(icc or b""))
    except (ImageCms.PyCMSError, ImportError, OSError) as error:
        _log.debug("no usable profile in a %s picture: %s", image.mode, error)
        return image.convert("RGB")


def _through_profile(image: Image.Image, profile: Any) -> Image.Image:
    source = ImageCms.ImageCmsProfile(profile)
    converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert converted is not None
    return converted


def _build_profile(primaries: tuple[float, ...], curve: Curve, grey: bool) -> bytes:
    """A version 2 profile of primaries and one curve (ICC.1:2001-04, section 6.3)."""
    values = np.rint(curve(np.linspace(0, 1, 1024)).clip(0, 1) * 65535).astype(">u2")
    trc = b"curv\0\0\0\0" + struct.pack(">I", len(values)) + values.tobytes()
    name = b"from PNG\0"
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(name)) + name + bytes(78),
        b"cprt": b"text\0\0\0\0no copyright\0",
        b"wtpt": _encode_xyz(_D50),
    }
    if grey:
        tags[b"kTRC"] = trc
    else:
        white = _find_white(primaries)
        scale = np.diag((_BRADFORD @ _D50) / (_BRADFORD @ white))
        columns = np.linalg.inv(_BRADFORD) @ scale @ _BRADFORD @ _to_xyz(primaries)
        tags.update({name: _encode_xyz(columns[:, i]) for i, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))})
        tags.update(dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), trc))
    start = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data + b"\0" * (-len(data) % 4)
    size = struct.pack(">I", start + len(body))
    head = size + b"\0\0\0\0\x02\x40\0\0mntr" + (b"GRAY" if grey else b"RGB ") + b"XYZ "
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + _encode_xyz(_D50)[8:]
    return head.ljust(128, b"\0") + table + body


def _encode_xyz(value: np.ndarray) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(float(v) * 65536) for v in value))


def _find_white(primaries: tuple[float, ...]) -> np.ndarray:
    x, y = primaries[:2]
    return np.array([x / y, 1.0, (1 - x - y) / y])


def _to_xyz(primaries: tuple[float, ...]) -> np.ndarray:
    """The matrix from linear RGB to XYZ, relative to the white of the primaries."""
    xy = np.array(primaries[2:]).reshape(3, 2)
    columns = np.stack([xy[:, 0], xy[:, 1], 1 - xy.sum(axis=1)])
    return columns * np.linalg.solve(columns, _find_white(primaries))


def _srgb_light(x: np.ndarray) -> np.ndarray:
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def _bt709_light(x: np.ndarray) -> np.ndarray:
    return np.where(x < 0.081, x / 4.5, ((x + 0.099) / 1.099) ** (1 / 0.45))


def _pq_nits(x: np.ndarray) -> np.ndarray:
    """SMPTE ST 2084."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    power = x ** (1 / m2)
    return 10000 * ((power - c1).clip(0) / (c2 - c3 * power)) ** (1 / m1)


def _hlg_nits(x: np.ndarray) -> np.ndarray:
    """ITU-R BT.2100 HLG on a screen of 1000 nits."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(x <= 0.5, x * x / 3, (np.exp((x - c) / a) + b) / 12)
    luminance = scene @ np.array([0.2627, 0.6780, 0.0593])
    return 1000 * scene * luminance[..., None] ** 0.2


#: Light of a number, by the number of its curve in ITU-T H.273.
_TRANSFERS: dict[int, Curve] = {
    **dict.fromkeys((1, 6, 14, 15), _bt709_light),
    4: lambda x: x**2.2,
    5: lambda x: x**2.8,
    8: lambda x: x,
    13: _srgb_light,
}
_HDR: dict[int, Curve] = {16: _pq_nits, 18: _hlg_nits}
