"""A picture as values, and what travels with it: the types that reading and writing share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

_LUMA = np.array([[0.299], [0.587], [0.114]], np.float32)


@dataclass(frozen=True)
class Metadata:
    """What a file says about its picture, in one form for all kinds of files."""

    exif: bytes = b""
    """EXIF as a TIFF structure, without the leading `Exif`; its orientation counts as applied already."""
    xmp: bytes = b""
    """XMP packet, as XML."""
    iptc: bytes = b""
    """IPTC-IIM records (caption, keywords, credit of press photographs)."""
    dpi: tuple[float, float] | None = None
    """Pixels per inch, horizontal and vertical; None if the file has none."""
    text: Mapping[str, str] = field(default_factory=dict)
    """Text chunks of a PNG by keyword: `parameters`, `prompt`, `workflow`, and our own settings."""
    colour_chunks: bytes = b""
    """Whole PNG chunks gAMA, cHRM, sRGB, cICP and their like, as they stood in the file."""

    def with_text(self, texts: Mapping[str, str]) -> Metadata:
        """The same metadata with these texts added; they replace those of the same keyword."""
        return replace(self, text={**self.text, **texts})


@dataclass(frozen=True)
class Picture:
    """A picture as values: what was in the file, upright, without its container.

    Results may hold rounded samples instead of floats: rgb and alpha in uint8 or uint16, as `bits` says, so that a
    large one needs no floats.
    """

    rgb: np.ndarray
    """float32 [H, W, 3] in [0, 1], straight (not premultiplied) colours."""
    alpha: np.ndarray | None = None
    """float32 [H, W] in [0, 1]; None if the file has none."""
    grey: bool = False
    """The file has one colour channel; then the three of `rgb` are equal."""
    icc: bytes | None = None
    """The ICC profile that `rgb` (or the grey) is in; None for sRGB."""
    bits: int = 8
    """Bits per sample of the file, 8 or 16."""
    metadata: Metadata = field(default_factory=Metadata)
    """What travels from the file to the result."""
    notes: tuple[str, ...] = ()
    """What a user must know about the reading, one line each: "only the first of 12 frames was read"."""

    def floats(self) -> Picture:
        """The same picture with float32 values in [0, 1]."""
        if self.rgb.dtype.kind == "f":
            return self
        top = np.float32(np.iinfo(self.rgb.dtype).max)
        alpha = None if self.alpha is None else self.alpha / top
        return replace(self, rgb=self.rgb / top, alpha=alpha)


def luma(rgb: np.ndarray) -> np.ndarray:
    """The grey [H, W, 1] of colours [H, W, 3] (BT.601)."""
    return rgb @ _LUMA


def lay_on_white(picture: Picture) -> Picture:
    """The picture without alpha, as it looks on white."""
    if picture.alpha is None:
        return picture
    picture = picture.floats()
    assert picture.alpha is not None
    alpha = picture.alpha[..., None]
    return replace(picture, rgb=picture.rgb * alpha + (1 - alpha), alpha=None)


def round_samples(picture: Picture, bits: int) -> np.ndarray:
    """Pixels rounded to nearest, uint8 or uint16 [H, W, C]: C = 1 grey, 2 grey + alpha, 3 RGB, 4 RGBA."""
    if picture.rgb.dtype == (np.uint16 if bits == 16 else np.uint8):
        colours = picture.rgb[..., :1] if picture.grey else picture.rgb
        parts = [colours] if picture.alpha is None else [colours, picture.alpha[..., None]]
        return np.ascontiguousarray(parts[0]) if len(parts) == 1 else np.concatenate(parts, axis=2)
    picture = picture.floats()
    rgb = luma(picture.rgb) if picture.grey else picture.rgb
    values = rgb if picture.alpha is None else np.concatenate([rgb, picture.alpha[..., None]], axis=2)
    top = 2**bits - 1
    values = values * np.float32(top)
    np.rint(values, out=values)
    np.clip(values, 0, top, out=values)
    return values.astype(np.uint16 if bits == 16 else np.uint8)


def make_picture(values: np.ndarray, grey: bool, orientation: int = 1, **fields: object) -> Picture:
    """The Picture of values [H, W, 1 to 4] in [0, 1], colours before alpha, turned upright from an EXIF orientation."""
    values = _turn_upright(values, orientation)
    colours = 1 if grey else 3
    alpha = np.ascontiguousarray(values[..., colours]) if values.shape[2] > colours else None
    rgb = np.ascontiguousarray(np.broadcast_to(values[..., :colours], (*values.shape[:2], 3)))
    return replace(Picture(rgb, alpha, grey), **fields)


def _turn_upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """[H, W, C] as the camera saw it: EXIF 5 to 8 are stored on their side, the others by mirroring alone."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    return values
