"""How a page tells how long a run will still take."""

from __future__ import annotations

import pytest

import moesr
from moesr.service.pace import Pace


def test_pace_learns_what_phases_take(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("moesr.service.pace.time.monotonic", lambda: now[0])
    pace = Pace()

    def run() -> list[float]:
        """A model that encodes for 1 s, takes 2 s a step and decodes for 3 s; two megapixels of two tiles."""
        clock, shares = pace.run("m", 2e6, 2), []
        for phase, step, seconds in (("encode", 0, 1), ("sample", 1, 2), ("sample", 2, 2), ("decode", 0, 3)):
            for tile in (1, 2):
                shares.append(clock.at(moesr.Event(phase, step, 2, 0, 0, tile, 2)))
                now[0] += seconds / 2
        shares.append(clock.saving())
        left = clock.left(0.5)
        clock.finished()
        return [*shares, left or -1]

    first, second = run(), run()
    assert first[:9] == sorted(first[:9])
    assert second == pytest.approx([0, 1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 13 / 16, 1, 8])
