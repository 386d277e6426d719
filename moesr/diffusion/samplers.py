"""Samplers: pure functions of a predictor, for any process z_t = a_t x0 + b_t y + s_t eps.

Everything here lives on the canvas: a sampler knows nothing of networks, experts, tiles or devices. Coefficients are
float64 numbers, states keep their dtype. `noise(i)` is the standard normal noise of step i (0 is the first to run); it
is asked for in order, and only where a step adds noise. Every step is a sum of canvases with a factor each, added up in
place in a state that the sampler owns and has from `allocate`; callbacks get copies.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import SettingError
from ..settings import SAMPLERS
from .process import CLEAN, Process

Predict = Callable[[Tensor, int], Tensor]  # canvas z, t -> predicted x0
Noise = Callable[[int], Tensor]  # step index -> noise of the whole canvas
Callback = Callable[[int, int, Tensor, Tensor], Any]  # step index, t, z after the step, predicted x0
Allocate = Callable[[Tensor], Tensor]  # an empty canvas like this one


def ddim(
    predict: Predict, process: Process, timesteps: Sequence[int], z: Tensor, *, noise: Noise, last: int = CLEAN,
    eta: float = 1.0, variance: str = "small", y: Tensor | None = None, callback: Callback | None = None,
    allocate: Allocate = torch.empty_like,
) -> Tensor:  # fmt: skip
    """DDIM (arXiv 2010.02502, eq. 12): z_prev = a_prev x0 + b_prev y + sqrt(s_prev^2 - sigma^2) eps + sigma n.

    eps = (z - a_t x0 - b_t y) / s_t and sigma = eta * step_std, for either process. eta 0 is deterministic, eta 1 is
    ancestral sampling with the posterior's mean and variance. variance "large" adds the noise of the paper's eq. 3
    (arXiv 2310.12004) to the same mean. No noise is added on the way to the clean end.
    """
    if not 0.0 <= eta < math.inf:
        raise SettingError(f"eta {eta}: it must be 0 (deterministic) or more, 1 is ancestral sampling")
    if variance not in ("small", "large"):
        raise SettingError(f"variance {variance!r} is unknown: choose small or large")
    a, s = process.a.tolist(), process.s.tolist()
    z = allocate(z).copy_(z)
    for i, (t, prev) in enumerate(_steps(process, timesteps, last)):
        x0 = predict(z, t)
        sigma = eta * process.step_std(t, prev)
        keep = math.sqrt(max(s[prev] ** 2 - sigma**2, 0.0)) / s[t]  # of z, since eps is made of it
        z.mul_(keep).add_(x0, alpha=a[prev] - keep * a[t])
        process.shift_(z, y, t, prev, keep)
        if sigma > 0:
            z.add_(noise(i), alpha=process.step_std(t, prev, large=True) if variance == "large" else sigma)
        if callback is not None:
            callback(i, t, allocate(z).copy_(z), x0)
    return z


def dpmpp_2m(
    predict: Predict, process: Process, timesteps: Sequence[int], z: Tensor, *, last: int = CLEAN,
    y: Tensor | None = None, callback: Callback | None = None, allocate: Allocate = torch.empty_like,
) -> Tensor:  # fmt: skip
    """DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2): second-order, deterministic, on w = z - b y.

    w_prev = s_prev / s_t w - a_prev (e^-h - 1) d with h the step in lambda = log(a / s); d is x0, extrapolated from the
    step before, except on the first step and on the way to the clean end, which are of first order.
    """
    a, s = process.a.tolist(), process.s.tolist()
    before: tuple[Tensor, float] | None = None  # x0 and h of the step before
    z = allocate(z).copy_(z)
    for i, (t, prev) in enumerate(_steps(process, timesteps, last)):
        x0 = predict(z, t)
        h = math.inf if prev == CLEAN else math.log(a[prev] / s[prev]) - math.log(a[t] / s[t])
        keep, toward = s[prev] / s[t], -a[prev] * math.expm1(-h)
        z.mul_(keep)
        process.shift_(z, y, t, prev, keep)
        if before is not None and prev != CLEAN:
            beyond = 0.5 * h / before[1]
            z.add_(x0, alpha=toward * (1 + beyond)).add_(before[0], alpha=-toward * beyond)
        else:
            z.add_(x0, alpha=toward)
        before = (x0, h)
        if callback is not None:
            callback(i, t, allocate(z).copy_(z), x0)
    return z


def sample(
    name: str, predict: Predict, process: Process, timesteps: Sequence[int], z: Tensor, *, noise: Noise,
    eta: float = 1.0, last: int = CLEAN, y: Tensor | None = None, callback: Callback | None = None,
    allocate: Allocate = torch.empty_like,
) -> Tensor:  # fmt: skip
    """Run the sampler called `name` from state z over `timesteps` (high to low) and on to `last`.

    `eta` is for ddim alone. Raises SettingError for an unknown name, listing the known ones, and for timesteps that are
    not descending or not the process's.
    """
    rest: dict[str, Any] = {"last": last, "y": y, "callback": callback, "allocate": allocate}
    if name not in SAMPLERS:
        raise SettingError(f"sampler {name!r} is unknown: choose one of {', '.join(SAMPLERS)}")
    if name == "dpmpp_2m":
        return dpmpp_2m(predict, process, timesteps, z, **rest)
    variance = "large" if name == "ddpm_large" else "small"
    return ddim(
        predict, process, timesteps, z, noise=noise, eta=eta if name == "ddim" else 1.0, variance=variance, **rest
    )


def _steps(process: Process, timesteps: Sequence[int], last: int) -> list[tuple[int, int]]:
    """(t, prev) of every step, checked: each step goes to less noise."""
    steps = list(itertools.pairwise([*timesteps, last]))
    if any(not CLEAN <= prev < t < process.total for t, prev in steps):
        raise SettingError(
            f"timesteps {list(timesteps)}, then {last}: they must fall from below {process.total} to -1 (clean)"
        )
    return steps
