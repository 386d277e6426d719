"""Text chunks of a PNG: what made the picture travels inside it."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import BinaryIO

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER_END = len(_SIGNATURE) + 25  # IHDR is always the first chunk, and 25 bytes long

#: Bytes of a text that are believed; more is nobody's settings.
LONGEST = 2**18
_CHUNKS = 4096


def with_text(data: bytes, texts: Mapping[str, str]) -> bytes:
    """The same PNG file with those texts by keyword, right after its header; the pixels are not touched.

    Latin-1 texts become tEXt chunks, which every program reads, others iTXt. Raises ValueError for a keyword that is
    empty, longer than 79 characters or not Latin-1.
    """
    chunks = b"".join(_chunk(keyword, text) for keyword, text in texts.items())
    return data[:_HEADER_END] + chunks + data[_HEADER_END:]


def read_text(path: str | os.PathLike[str]) -> dict[str, str]:
    """The texts of a PNG by keyword; none for a file that is no PNG, is damaged or cannot be read.

    Pixels are skipped, compressed texts are inflated up to LONGEST bytes, longer ones are left out.
    """
    texts: dict[str, str] = {}
    try:
        with open(path, "rb") as file:
            for name, body in _text_chunks(file):
                keyword, text = _parse(name, body)
                texts.setdefault(keyword, text)
    except (OSError, ValueError, zlib.error):
        return texts
    return texts


def _chunk(keyword: str, text: str) -> bytes:
    word = keyword.encode("latin-1")
    if not 1 <= len(word) <= 79:
        raise ValueError(f"keyword {keyword!r}: a PNG takes 1 to 79 characters")
    try:
        name, body = b"tEXt", word + b"\0" + text.encode("latin-1")
    except UnicodeEncodeError:
        name, body = b"iTXt", word + b"\0\0\0\0\0" + text.encode()
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _text_chunks(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    if file.read(8) != _SIGNATURE:
        return
    for _ in range(_CHUNKS):
        head = file.read(8)
        if len(head) < 8 or head[4:] == b"IEND":
            return
        length = int.from_bytes(head[:4], "big")
        if head[4:] in (b"tEXt", b"zTXt", b"iTXt") and length <= LONGEST:
            yield head[4:], file.read(length)
            file.seek(4, os.SEEK_CUR)
        else:
            file.seek(length + 4, os.SEEK_CUR)


def _parse(name: bytes, body: bytes) -> tuple[str, str]:
    keyword, _, rest = body.partition(b"\0")
    if name == b"tEXt":
        return keyword.decode("latin-1"), rest.decode("latin-1")
    if name == b"zTXt":
        return keyword.decode("latin-1"), _inflate(rest[1:]).decode("latin-1")
    packed, rest = rest[:1] == b"\1", rest[2:]
    text = rest.split(b"\0", 2)[-1]
    return keyword.decode("latin-1"), (_inflate(text) if packed else text).decode()


def _inflate(data: bytes) -> bytes:
    inflater = zlib.decompressobj()
    text = inflater.decompress(data, LONGEST)
    if inflater.unconsumed_tail:
        raise ValueError("a text that inflates beyond all measure")
    return text
