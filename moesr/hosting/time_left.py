"""How far the run of a picture is and how long it will still take, learned from the phases of earlier runs."""

from __future__ import annotations

import time

from ..progress import PHASES, Event

#: Cost of each phase of a run before anything was measured, in any unit.
_GUESS = {phase: end - start for phase, (start, end) in PHASES.items() if phase != "load"}
_GUESS["save"] = 0.03


#: Seconds that phases take per megapixel of output, by model: those of the last finished run.
Costs = dict[str, dict[str, float]]


class RunClock:
    """The clock of one picture: it sees the events of the run, and learns what a phase took when the last one ends."""

    def __init__(self, costs: Costs, model: str, pixels: int, steps: int) -> None:
        """costs: of earlier runs, for this one to read and to change. pixels: of output. steps: of sampling."""
        self._learned, self._model, self._size, self._steps = costs, model, pixels / 1e6, steps
        known = costs.get(model)  # of sampling: per step
        self._costs = {**_GUESS} if known is None else {**known, "sample": known["sample"] * steps}
        self._took: dict[str, float] = {}
        self._phase = ""
        self._began = self._phase_began = time.monotonic()

    def fraction(self, event: Event) -> float:
        """Fraction of the picture's run that is done at this event, 0 to 1."""
        self._enter(event.phase)
        start, end = PHASES[event.phase]
        inside = (event.fraction - event.done) / event.share  # of a run whose phases take what PHASES says
        inside = (inside - start) / (end - start) if end > start else 0.0
        order = list(_GUESS)
        before = sum(self._costs[phase] for phase in order[: order.index(event.phase)])
        total = sum(self._costs.values())
        return min((before + inside * self._costs[event.phase]) / total, 1.0) if total else 0.0

    def seconds_left(self, fraction: float) -> float | None:
        """Seconds to go at a fraction of the run; None while it is too early to tell."""
        elapsed = time.monotonic() - self._began
        return None if fraction < 0.03 or elapsed < 0.5 else elapsed / fraction * (1 - fraction)

    def finish(self) -> float:
        """The picture is on disk: what was measured counts for the next one. Seconds that it took."""
        self._enter("")
        costs = {phase: self._took.get(phase, 0.0) / self._size for phase in _GUESS}
        self._learned[self._model] = {**costs, "sample": costs["sample"] / self._steps}
        return time.monotonic() - self._began

    def _enter(self, phase: str) -> None:
        if phase != self._phase:
            now = time.monotonic()
            if self._phase:
                self._took[self._phase] = self._took.get(self._phase, 0.0) + now - self._phase_began
            self._phase, self._phase_began = phase, now
