"""Whether a file on the disk is the weight file that is wanted, and all of it, without reading a tensor."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

from .wrong import what_it_is


def problem(path: Path, size: int | None, sha256: str | None, suffix: str | None = None) -> str | None:
    """Why a file is not the one that is wanted, in words; None if it is, as far as is known.

    size, sha256: None if unknown. Then the file's beginning and its own table of contents have to do.
    """
    try:
        length = path.stat().st_size
        with path.open("rb") as file:
            reason = stranger(file.read(512), suffix or path.suffix)
        if reason:
            return reason
        if size is not None and length != size:
            return f"{length} bytes instead of {size}"
        if sha256 is not None:
            found = _digest(path)
            return None if found == sha256 else f"its SHA-256 is {found[:12]}... instead of {sha256[:12]}..."
        return None if _ends_as_it_should(path, suffix or path.suffix) else "the end of the file is missing"
    except OSError as error:
        return f"it cannot be read ({error.strerror or error})"


def stranger(head: bytes, suffix: str) -> str | None:
    """What a file is, by its first bytes, if it is not a weight file of that suffix; else None."""
    if suffix == ".safetensors":
        if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 27:
            return None
    elif head.startswith((b"PK\x03\x04", b"\x80")):
        return None
    # What follows the semicolon is advice for a file that a user gave; here the caller knows better.
    return what_it_is(Path(f"download{suffix}"), head, len(head)).split("; ")[0]


def as_size(count: int) -> str:
    """Bytes as people read them: 3.65 GB, 289 MB."""
    for unit, factor, digits in (("GB", 1e9, 2), ("MB", 1e6, 0), ("kB", 1e3, 0)):
        if count >= factor:
            return f"{count / factor:.{digits}f} {unit}"
    return f"{count} bytes"


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _ends_as_it_should(path: Path, suffix: str) -> bool:
    """Whether the file is as long as its own table of contents says; old pickles have none and pass."""
    with path.open("rb") as file:
        head = file.read(8)
        if suffix != ".safetensors":
            return zipfile.is_zipfile(path) if head.startswith(b"PK") else True
        length = int.from_bytes(head, "little")
        try:
            entries = json.loads(file.read(length))
            end = max((e["data_offsets"][1] for k, e in entries.items() if k != "__metadata__"), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
            return False
    return path.stat().st_size == 8 + length + end
