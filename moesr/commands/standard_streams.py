"""Standard streams that never decide over the work: what cannot be printed is replaced, what is closed stays silent."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import Any, cast


class TolerantStream:
    """A text stream whose write and flush never raise. After the first failure everything written is dropped."""

    def __init__(self, stream: Any, name: str) -> None:
        self._stream, self._name = stream, name
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # names that the console has no characters for

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except (OSError, ValueError) as error:
            self._give_up(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._give_up(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _give_up(self, error: Exception) -> None:
        # Python would try again at its end, with what is still in the buffer, and turn the exit code into 120.
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)
        # A reader that has gone away (`| head`) has what it wanted.
        if isinstance(error, OSError) and error.errno != errno.EPIPE and self._name == "stdout":
            print(f"note: stdout cannot be written ({error.strerror}); all else is done", file=sys.stderr)


@contextlib.contextmanager
def tolerant_streams() -> Iterator[None]:
    """Within the block sys.stdout and sys.stderr are TolerantStreams; those that were closed lead nowhere."""
    _fill_descriptors()
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w", encoding="utf-8") as null:
        sys.stdout = cast(Any, TolerantStream(before[0] or null, "stdout"))
        sys.stderr = cast(Any, TolerantStream(before[1] or null, "stderr"))
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            sys.stdout, sys.stderr = before


def _fill_descriptors() -> None:
    """Open descriptors 0 to 2 where they are closed: else the next file gets one, and others print into it."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest that is free
