"""Which expert works at which step, as text and as numbers for pictures."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Plan:
    """The steps of a run in order: timestep, expert, and noise level from 1 (none of the image is left) to 0."""

    timesteps: list[int]
    experts: list[int]
    noise: list[float]

    def text(self) -> str:
        """One line for each expert: its steps and timesteps."""
        lines = [f"{len(self.timesteps)} steps, {len(set(self.experts))} experts at work"]
        first = 1
        for expert, group in itertools.groupby(zip(self.experts, self.timesteps), key=lambda pair: pair[0]):
            times = [t for _, t in group]
            last = first + len(times) - 1
            steps = f"step {first}" if first == last else f"steps {first} to {last}"
            reach = f"t {times[0]}" if first == last else f"t {times[0]} to {times[-1]}"
            lines.append(f"expert {expert}: {steps} ({reach})")
            first = last + 1
        return "\n".join(lines)


def make_plan(sr: Any, steps: int | None, sampler: str) -> Plan:
    """The plan of a run of a super-resolution model; None and "auto" are the model's own."""
    from ..moesr.settings import resolve

    settings = resolve(sr.config, steps=steps, sampler=sampler)
    times = sr.process.timesteps(settings.steps, settings.spacing)
    highest = max(sr.process.s.tolist())
    noise = [sr.process.s[t].item() / highest for t in times]
    return Plan(times, [sr.bank.index(t) for t in times], noise)
