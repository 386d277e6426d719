"""Where a run is: one event for every door, with the fraction that is done and the words for it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

log = logging.getLogger(__name__)

#: Where each phase begins and ends in the run of a picture, as fractions of it.
PHASES = {
    "load": (0.0, 0.0), "encode": (0.0, 0.05), "sample": (0.05, 0.8), "decode": (0.8, 1.0), "steady": (0.8, 0.8),
    "save": (1.0, 1.0),
}  # fmt: skip


@dataclass(frozen=True)
class Event:
    """Sent before every batch of tiles. Counts start at 1; a count of 0 means that there is nothing to count."""

    #: load, encode, sample, decode, steady (frames, after all are decoded) or save.
    phase: str
    #: Denoising step at work, and how many there are.
    step: int = 0
    steps: int = 0
    #: The step's timestep, and the time expert that works there (0 has the least noise).
    t: int = 0
    expert: int = 0
    #: Tile at work in this phase or step, and how many there are, of all pictures that are at work together.
    tile: int = 0
    tiles: int = 0
    #: Draws the first picture so far, small.
    preview: Callable[[], Image.Image] | None = None
    #: First picture at work, and how many the run has.
    image: int = 0
    images: int = 0
    #: Fraction of the run that was done before the pictures at work, and their share of it.
    done: float = 0.0
    share: float = 1.0
    #: One line that the user should read, new since the last event.
    note: str = ""

    @property
    def fraction(self) -> float:
        """Fraction of the whole run that is done, 0 to 1."""
        start, end = PHASES[self.phase]
        inside = max(0, self.tile - 1) / max(self.tiles, 1)
        if self.phase == "sample":
            inside = (max(0, self.step - 1) + inside) / max(self.steps, 1)
        return min(1.0, self.done + self.share * (start + (end - start) * inside))

    @property
    def text(self) -> str:
        """What a status line says: "image 5/16, tile 3/12, step 3/4"; phases without steps by name."""
        parts = [] if self.phase == "sample" else [self.phase]
        if self.images > 1:
            parts.append(f"image {self.image}/{self.images}")
        if self.tiles:
            parts.append(f"tile {self.tile}/{self.tiles}")
        if self.phase == "sample":
            parts.append(f"step {self.step}/{self.steps}")
        return ", ".join(parts)


#: Called with every event; what it raises stops the run.
Callback = Callable[[Event], Any]


def narrow_callback(callback: Callback, start: float, end: float, **counts: int) -> Callback:
    """A callback for a run that is only a part of one: from `start` to `end`, as fractions of the whole.

    counts: what to add to the event's own counts, by name.
    """

    def forward(event: Event) -> None:
        part = end - start
        added = {name: getattr(event, name) + count for name, count in counts.items()}
        callback(replace(event, done=start + event.done * part, share=event.share * part, **added))

    return forward


def estimate_seconds_left(began: float, fraction: float) -> float | None:
    """Seconds to go of work that began at `began` (of time.monotonic); None while it is too early to tell."""
    elapsed = time.monotonic() - began
    return None if fraction < 0.02 or elapsed < 0.5 else elapsed / fraction * (1 - fraction)


class Reporter:
    """Sends the events of a run: it keeps the counts, and notes until the next event takes them along."""

    def __init__(self, callback: Callback | None) -> None:
        self.event = Event("encode")
        self._callback = callback
        self._notes: list[str] = []

    def begin(self, phase: str, **counts: Any) -> None:
        """A phase begins, or one step of it. counts: fields of the event; images and shares stay as they are."""
        kept = self.event
        self.event = Event(phase, image=kept.image, images=kept.images, done=kept.done, share=kept.share, **counts)

    def start_group(self, first: int, count: int, images: int) -> None:
        """`count` of all `images` are at work together, from number `first` (0, 1, ...) on."""
        share = count / images
        self.event = replace(self.event, image=first + 1, images=images, done=first / images, share=share)

    def end_group(self) -> None:
        """Forget the preview, and with it all that the group has on the device."""
        self.event = replace(self.event, preview=None)

    def advance(self, tiles: int) -> None:
        self.event = replace(self.event, tile=self.event.tile + tiles)
        if self._callback is not None:
            notes, self._notes = self._notes, []
            self._callback(replace(self.event, note="; ".join(notes)) if notes else self.event)

    def note(self, line: str) -> None:
        """Something that the user should read. It is logged, and goes with the next event."""
        log.warning("%s", line)
        self._notes.append(line)
