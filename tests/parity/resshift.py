"""The residual-shift process: its arrays, its marginal and posterior, and the kinds of prediction."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moesr.config import ProcessConfig
from moesr.diffusion.process import CLEAN, Process, residual_shift
from moesr.diffusion.samplers import ddim

from .case import Case
from .sampling import posterior_mean

PREDICTIONS = {"xstart": "x0", "epsilon": "eps", "epsilon_scale": "eps_scale", "residual": "residual"}


class Chain:
    """A recorded process, perhaps respaced: ours, and which of its timesteps the chain keeps, ascending."""

    def __init__(self, values: dict[str, Any], predict: str | None = None) -> None:
        assert values["schedule_name"] == "exponential", f"schedule {values['schedule_name']!r} is unknown"
        total, kept = values["steps"], values["timestep_respacing"] or values["steps"]
        same = {name: values[name] for name in ("kappa", "min_noise_level", "etas_end", "normalize_input")}
        predict, power = PREDICTIONS[predict or values["predict_type"]], values["schedule_kwargs"]["power"]
        self.config = ProcessConfig("residual_shift", total, predict, power=power, **same)
        self.process: Process = residual_shift(self.config, latent=values["latent_flag"])
        self.kept = self.process.timesteps(kept, "leading")[::-1]
        self.before = [CLEAN, *self.kept[:-1]]

    def variance(self) -> Tensor:
        """Of the posterior, at every step of the chain."""
        steps = zip(self.kept, self.before)
        return torch.tensor([self.process.step_std(t, prev) ** 2 for t, prev in steps], dtype=torch.float64)

    def clipped(self) -> Tensor:
        """The same, the first entry (0) replaced by the second."""
        variance = self.variance()
        return torch.cat([variance[1:2], variance[1:]])

    def step(self, z: Tensor, x0: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
        """One ancestral step of every sample of a batch from its own place `t` in the chain to the one before."""
        none = torch.zeros_like(z)

        def one(i: int) -> Tensor:
            k = int(t[i])
            drawn = (none if noise is None else noise)[i : i + 1]
            known = x0[i : i + 1]
            run = {"last": self.before[k], "noise": lambda _: drawn, "y": none[:1]}  # y has no part in such a step
            return ddim(lambda *_: known, self.process, [self.kept[k]], z[i : i + 1], **run)

        return torch.cat([one(i) for i in range(len(z))])


def configs(case: Case) -> dict[str, Any]:
    """The processes that cases name by a tag: those of the project's own cases, and those of the case's folder."""
    own = Path(__file__).parents[1] / "golden" / "resshift"
    files = [folder / "schedule_values.json" for folder in (own, case.folder)]
    lists = [json.loads(file.read_text()) for file in files if file.exists()]
    return {tag: record["config"] for records in lists for tag, record in records.items()}


def schedule(case: Case) -> None:
    for tag, record in case.meta["cases"].items():
        chain = Chain(record["config"])
        process, kept = chain.process, chain.kept
        case.expect(f"{tag}: timesteps", kept, record["timestep_map"])
        case.expect(f"{tag}: number of steps", len(kept), record["num_timesteps"])
        eta, before = process.b[kept], process.b[chain.before]
        coefficient = torch.stack([posterior_mean(process, t, prev) for t, prev in zip(kept, chain.before)])
        clipped = chain.clipped()
        values = {
            "sqrt_etas": eta.sqrt(), "etas": eta, "etas_prev": before, "alpha": eta - before,
            "posterior_variance": chain.variance(), "posterior_variance_clipped": clipped,
            "posterior_log_variance_clipped": clipped.log(), "posterior_mean_coef1": coefficient[:, 1],
            "posterior_mean_coef2": coefficient[:, 0], "weight_loss_mse": 0.5 / clipped * coefficient[:, 0] ** 2,
            "input_scale_std": process.divisor[kept], "prior_std": process.s[kept[-1:]],
        }  # fmt: skip
        for key, value in values.items():
            case.compare(f"{tag}.{key}", value)
            if key in record:
                listed = torch.tensor(record[key], dtype=torch.float64)
                case.expect(f"{tag}: {key} in the json", torch.allclose(value, listed, rtol=1e-10, atol=0), True)


def steps(case: Case) -> None:
    known = configs(case)
    for tag in case.tags(r"(.+)\.x0"):
        chain = Chain(known[tag])
        process = chain.process
        x0, y, noise, guess = (case.inputs[f"{tag}.{k}"] for k in ("x0", "y", "noise", "pred_x0"))
        place = case.inputs[f"{tag}.t"]
        t = torch.tensor(chain.kept)[place]
        z = process.add_noise(x0, y, noise, t)
        shape = (len(x0), 1, 1, 1)
        values = {
            "q_mean": process.add_noise(x0, y, torch.zeros_like(x0), t),
            "q_var": (process.s[t] ** 2).view(shape).expand_as(x0),
            "x_t": z,
            "post_mean": chain.step(z, x0, place),
            "post_var": chain.variance()[place].view(shape).expand_as(x0),
            "post_logvar_clipped": chain.clipped().log()[place].view(shape).expand_as(x0),
            "model_in": process.scale_input(z, t),
            "model_t": t,
            "x_prev": chain.step(z, guess, place, case.inputs[f"{tag}.step_noise"]),
            "x_prev_clip": chain.step(z, guess.clamp(-1, 1), place, case.inputs[f"{tag}.step_noise_clip"]),
            "prior_sample": process.prior(noise, y, chain.kept[-1]),
        }
        for key, value in values.items():
            case.compare(f"{tag}.{key}", value)


def predictions(case: Case) -> None:
    """Tags are kinds of prediction; the note says which process."""
    total = re.findall(r"T=(\d+)", case.meta["note"])[0]
    config = configs(case)[f"T{total}"]
    for tag in case.tags(r"(.+)\.x_t"):
        chain = Chain(config, tag)
        z, y, out, t = (case.inputs[f"{tag}.{k}"] for k in ("x_t", "y", "model_out", "t"))
        x0 = chain.process.x0(out, z, t, y)
        case.compare(f"{tag}.pred_xstart", x0)
        case.compare(f"{tag}.mean", chain.step(z, x0, t))
        variance = chain.variance()[t].view(len(z), 1, 1, 1)
        case.compare(f"{tag}.variance", variance.expand_as(z))
