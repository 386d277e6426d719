"""How far a run is and how long it will still take, learned from the phases of the runs before."""

from __future__ import annotations

import time

from ..progress import Event

#: Before anything was measured: encoding, a step of sampling, decoding, finishing, as shares of a run of 12 steps.
_GUESS = {"encode": 0.05, "sample": 0.06, "decode": 0.2, "save": 0.03}


class Pace:
    """What the phases of whole runs took, by model, for a million pixels of output. One for each worker."""

    def __init__(self) -> None:
        self._costs: dict[str, dict[str, float]] = {}

    def run(self, model: str, pixels: float, steps: int) -> Run:
        """The clock of one picture of so many pixels of output and steps."""
        return Run(self._costs, model, max(pixels / 1e6, 1e-6), steps)


class Run:
    """The clock of one picture. Phases are told as they begin; what they took is learned when the last one ends."""

    def __init__(self, known: dict[str, dict[str, float]], model: str, size: float, steps: int) -> None:
        self._known, self._model, self._size = known, model, size
        self._costs = known.get(model, _GUESS)
        self._took: dict[str, float] = {}
        self._steps = steps
        self._phase = ""
        self._began = self._since = time.monotonic()

    def at(self, event: Event) -> float:
        """The share of the picture that is done when the pipeline sends `event`, 0 to 1."""
        self._enter(event.phase)
        inside = (event.tile - 1) / max(event.tiles, 1)
        if event.phase == "sample":
            return self._share("encode", self._costs["sample"] * (event.step - 1 + inside))
        before = () if event.phase == "encode" else ("encode", "sample")
        return self._share(*before, self._costs[event.phase] * inside)

    def saving(self) -> float:
        """The share that is done when all is decoded."""
        self._enter("save")
        return self._share("encode", "sample", "decode", 0.0)

    def finished(self) -> None:
        """The picture is on disk: what was measured counts for the next one."""
        self._enter("")
        self._known[self._model] = {phase: self._took.get(phase, 0.0) / self._size for phase in _GUESS}

    def left(self, share: float) -> float | None:
        """Seconds to go at a share of the picture; None while it is too early to tell."""
        elapsed = time.monotonic() - self._began
        return None if share < 0.03 or elapsed < 0.5 else elapsed / share * (1 - share)

    def _share(self, *parts: str | float) -> float:
        """The given phases and cost, of all phases."""
        done = sum(self._cost(part) if isinstance(part, str) else part for part in parts)
        total = sum(map(self._cost, _GUESS))
        return min(done / total, 1.0) if total else 0.0

    def _cost(self, phase: str) -> float:
        return self._costs[phase] * (self._steps if phase == "sample" else 1)

    def _enter(self, phase: str) -> None:
        if phase == self._phase:
            return
        now = time.monotonic()
        if self._phase:
            self._took[self._phase] = (now - self._since) / (self._steps if self._phase == "sample" else 1)
        self._phase, self._since = phase, now
