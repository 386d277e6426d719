"""Errors that a user reads: one line that names the thing, the cause and the way out."""

from __future__ import annotations


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
