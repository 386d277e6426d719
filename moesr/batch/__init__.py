"""Thousands of pictures: one job on this machine or on many, which loses nothing and goes on where it ended.

A job is a manifest (names of all results, planned before the work), a journal (what became of each picture) and an
engine (processes of this machine, or Ray Data). Rows are addresses, never pixels.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from .job import Report, batch

__all__ = ["Report", "batch"]


class _CallableModule(ModuleType):
    """`moesr.batch` is the function of the public API, and Python gives that name to this package too."""

    def __call__(self, *arguments: Any, **options: Any) -> Report:
        return batch(*arguments, **options)


sys.modules[__name__].__class__ = _CallableModule
