"""Errors that a user reads: one line that names the thing, the cause and the way out.

Hosts show the full name of an error's class; `moesr.SettingError` is what users import, and what fits into a line.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

Kinds = type[Exception] | tuple[type[Exception], ...]


class MoESRError(Exception):
    """Base of all errors that this package raises on purpose."""


class CheckpointError(MoESRError):
    """A weight file is not what was asked for, is incomplete, or cannot be read."""


class ImageError(MoESRError):
    """An image cannot be read, written or processed."""


class SettingError(MoESRError):
    """An option has a value that does not work, or two options contradict each other."""


class NumericsError(MoESRError):
    """A computation gave NaN or infinity where a picture was expected."""


for _kind in (MoESRError, CheckpointError, ImageError, SettingError, NumericsError):
    _kind.__module__ = "moesr"


def format_size(count: float) -> str:
    """Bytes as people read them: 3.65 GB, 289 MB."""
    for unit, factor, digits in (("GB", 1e9, 2), ("MB", 1e6, 0), ("kB", 1e3, 0)):
        if count >= factor:
            return f"{count / factor:.{digits}f} {unit}"
    return f"{count:.0f} bytes"


@contextmanager
def explain(kind: type[MoESRError], what: str, way_out: str, *, errors: Kinds = OSError) -> Iterator[None]:
    """Errors of these kinds that the block raises become one of ours, on one line: "{what} ({reason}); {way_out}"."""
    try:
        yield
    except MoESRError:
        raise
    except errors as error:
        raise kind(f"{what} ({find_reason(error)}); {way_out}") from error


def find_reason(error: BaseException) -> str:
    """What went wrong, on one line: the system's words for it, else the error's own, else its kind."""
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(text.split())[:400] or type(error).__name__
