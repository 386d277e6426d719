"""What each way to be faster costs in quality: the default model on photographs, one setting after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ...diffusion.experts import All
from ..benchmark import Benchmark, Case
from ..suite import Suite

#: The long run that fewer steps are held against, and the numbers of steps that are tried.
LONG = {"sampler": "ddpm", "steps": 200}
STEPS = (4, 6, 8, 12, 16, 25, 50)
#: A setting is as good as the long run if its LPIPS is no more than this share above it.
NEAR = 0.01


@dataclass(frozen=True)
class Setting:
    """A way to run a model: the dtype it is loaded in, and settings of `upscale`."""

    name: str
    dtype: str = "fp32"
    options: dict[str, Any] = field(default_factory=dict)


def settings(device: torch.device, steps: Sequence[int] = STEPS) -> list[Setting]:
    """All that are measured: precision, tiles, and fewer steps after the long run that they are compared with."""
    low = ["bf16"] if device.type == "cpu" else ["bf16", "fp16"]
    return [
        Setting("as it is, fp32"),
        *(Setting(name, name) for name in low),
        Setting("tiles of 256", options={"tile": 256}),
        Setting(f"ddpm, {LONG['steps']} steps", options=dict(LONG)),
        *(Setting(f"dpmpp_2m, {n} steps", options={"sampler": "dpmpp_2m", "steps": n}) for n in steps),
    ]


def measured(
    source: str, cases: Sequence[Case], suite: Suite, device: torch.device, ways: Sequence[Setting]
) -> Iterator[dict[str, Any]]:
    """A row a setting: its name, the mean seconds of an image, and the means of the metrics (None where not there).

    Raises what `load` and `upscale` raise for settings that are wrong.
    """
    from ...model import load
    from ...pipeline import upscale

    models: dict[str, Any] = {}
    for way in ways:
        if way.dtype not in models:
            models[way.dtype] = load(source, dtype=way.dtype, device=device)
        model = models[way.dtype]
        options = {"tile": 0, **way.options}
        if options["tile"] == 0 and not isinstance(model.bank.residency, All):
            options["tile"] = "auto"  # too large for this machine to be run whole
        benchmark = Benchmark(suite, model.scale, lambda lr, m=model, o=options: upscale(m, lr, **o))
        for _ in benchmark.run(cases):
            pass
        mean = benchmark.mean()
        yield {"name": way.name, "seconds": mean.seconds, **mean.values}


def fewest(rows: Sequence[dict[str, Any]], metric: str = "lpips_alex") -> str | None:
    """The name of the fastest row of `dpmpp_2m` whose LPIPS is within NEAR of the long run's; None if there is none."""
    long = next((row for row in rows if row["name"].startswith(LONG["sampler"] + ",")), None)
    if long is None or long.get(metric) is None:
        return None
    limit = long[metric] * (1 + NEAR)
    near = [row for row in rows if row["name"].startswith("dpmpp_2m") and (row.get(metric) or limit + 1) <= limit]
    return min(near, key=lambda row: row["seconds"])["name"] if near else None
