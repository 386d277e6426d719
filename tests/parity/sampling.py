"""The schedule of DDPM, the steps that are taken of it, and sampling over time experts."""

from __future__ import annotations

import itertools
import re
from typing import Any

import torch
from torch import Tensor

from moesr.config import ProcessConfig, uniform_stages
from moesr.diffusion.experts import All, ExpertBank
from moesr.diffusion.process import CLEAN, Process, from_config
from moesr.diffusion.samplers import ddim
from moesr.errors import SettingError

from . import recipe
from .case import Case
from .unet import averaged_unet

SAMPLER = 1e-4
FLOAT32 = 1e-5


def buffers(case: Case) -> None:
    """The 13 arrays that LDM checkpoints carry, from ours."""
    told = dict(re.findall(r"(linear_\w+) ([\d.]+)", case.meta["description"]))
    size = len(case.outputs["betas"])
    start, end = float(told["linear_start"]), float(told["linear_end"])
    process = from_config(ProcessConfig(timesteps=size, linear_start=start, linear_end=end))
    a, s, before = process.a[:size], process.s[:size], process.a.roll(1)[:size]  # entry -1 is clean, before t = 0
    alpha = (a / before) ** 2
    variance = torch.tensor([process.step_std(t, t - 1) ** 2 for t in range(size)], dtype=torch.float64)
    coefficient = torch.stack([posterior_mean(process, t, t - 1) for t in range(size)])  # of x0, of z
    vlb = (1 - alpha) ** 2 / (2 * variance * alpha * s**2)
    vlb[0] = vlb[1]
    values = {
        "betas": 1 - alpha, "alphas_cumprod": a**2, "alphas_cumprod_prev": before**2, "sqrt_alphas_cumprod": a,
        "sqrt_one_minus_alphas_cumprod": s, "log_one_minus_alphas_cumprod": 2 * s.log(),
        "sqrt_recip_alphas_cumprod": 1 / a, "sqrt_recipm1_alphas_cumprod": s / a, "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(), "posterior_mean_coef1": coefficient[:, 0],
        "posterior_mean_coef2": coefficient[:, 1], "lvlb_weights": vlb,
    }  # fmt: skip
    for key, value in values.items():
        case.compare(key, value)
    for key, total in case.meta.get("sums", {}).items():
        case.expect(f"sum of {key}", values[key].sum().item(), total, rtol=FLOAT32)


def posterior_mean(process: Process, t: int, prev: int) -> Tensor:
    """What one ancestral step without noise takes of the predicted x0 and of the state: float64 [2]."""
    x0, z = torch.eye(2, dtype=torch.float64)
    nothing = torch.zeros_like(z)  # y has no part in such a step
    return ddim(lambda *_: x0, process, [t], z, last=prev, noise=lambda _: nothing, y=nothing)


def schedule(case: Case) -> None:
    """Timesteps, experts and coefficients of a run, and how many steps every count gives."""
    case.needs_tensors = False
    process = from_config(ProcessConfig())
    asked = int(re.findall(r"\d+", case.name)[-1])
    _schedule(case, process, case.meta["schedule"], asked, case.meta["eta"], stages=4)
    for count, record in case.meta.get("step_counts", {}).items():
        _count(case, process, int(count), record)
    for count in case.meta.get("exact_counts", []):
        want = list(range(0, process.total, process.total // count))[::-1]
        case.expect(f"{count} steps", process.timesteps(count, "leading"), [t + 1 for t in want])
    for low, high in case.meta.get("step_counts_that_crash_IndexError", []):
        for count in range(low, high + 1):  # we run as many as asked
            case.expect(f"{count} steps", len(set(process.timesteps(count, "leading"))), count)


def _schedule(
    case: Case, process: Process, steps: list[dict[str, Any]], asked: int, eta: float, stages: int
) -> list[int]:
    """Hold a recorded run's steps against ours; returns its timesteps."""
    assert steps, f"{case.name}: no steps were recorded"
    timesteps = [step["t"] for step in steps]
    case.expect("indices", [step["index"] for step in steps], list(range(len(steps)))[::-1])
    if len(steps) == asked:  # the reference runs another number for most counts
        case.expect("timesteps", timesteps, process.timesteps(asked, "leading"))
        if asked >= 20:
            case.expect("timesteps by default", timesteps, process.timesteps(asked))
    bank = ExpertBank(uniform_stages(process.total, stages), All([]))
    pairs = itertools.pairwise([*timesteps, process.last(asked, "leading")])
    for step, (t, prev) in zip(steps, pairs, strict=True):
        case.expect(f"expert of {t}", bank.index(t), step["expert"])
        values = {
            "a_t": process.a[t].item() ** 2,
            "a_prev": process.a[prev].item() ** 2,
            "sqrt_one_minus_at": process.s[t].item(),
            "sigma_t": eta * process.step_std(t, prev),
        }
        for key, value in values.items():
            case.expect(f"{key} at {t}", value, step[key], rtol=FLOAT32)
    return timesteps


def _count(case: Case, process: Process, count: int, record: dict[str, Any]) -> None:
    if not 1 <= count <= process.total:
        try:
            ours: object = process.timesteps(count, "leading")
        except SettingError:
            ours = SettingError
        case.expect(f"{count} steps", ours, SettingError)
        return
    timesteps = process.timesteps(count, "leading")
    case.expect(f"{count} steps", len(set(timesteps)), count)
    if record.get("steps_run") != count:
        return  # the reference runs another number, or crashes
    bank = ExpertBank(uniform_stages(process.total, len(record["per_expert"])), All([]))
    work = {i: len(steps) for i, steps in bank.plan(timesteps)}
    case.expect(f"{count} steps: first", timesteps[0], record["t_first"])
    case.expect(f"{count} steps: last", timesteps[-1], record["t_last"])
    case.expect(f"{count} steps: per expert", [work.get(i, 0) for i in range(len(bank))], record["per_expert"])
    case.expect(f"{count} steps: noisiest expert", max(work), record["max_expert"])


@torch.no_grad()
def sampler(case: Case) -> None:
    """Runs from recorded x_T and noises, at every state that was recorded."""
    experts = [
        averaged_unet(case.config, recipe.weights(case.meta["weights"], e["salt"], e.get("gain")))
        for e in case.meta["experts"]
    ]
    eta, asked = case.meta["eta"], case.meta["steps"]
    process = from_config(ProcessConfig())
    timesteps = _schedule(case, process, case.meta["schedule"], asked, eta, len(experts))
    bank = ExpertBank(uniform_stages(process.total, len(experts)), All(experts))
    last = process.last(asked, "leading")
    case.expect("state that the last step ends in", last, 0 if asked < process.total else CLEAN)
    condition = case.inputs["cond"]

    def predict(z: Tensor, t: int) -> Tensor:
        with bank.stage(t) as network:
            out = network(torch.cat([z, condition], dim=1), torch.full((len(z),), t))
        return process.x0(out, z, t)

    def compare(i: int, t: int, z: Tensor, x0: Tensor) -> None:
        for key, value in ((f"x_after_step{i:03d}", z), (f"pred_x0_step{i:03d}", x0)):
            if key in case.outputs:
                case.compare(key, value, rtol=SAMPLER)

    run: dict[str, Any] = {"noise": lambda i: case.inputs["noise"][i], "last": last, "callback": compare}
    z = case.inputs["x_T"]
    case.compare("latent", ddim(predict, process, timesteps, z, eta=eta, **run), rtol=SAMPLER)
