"""Samplers against diffusers' schedulers (independent code). The published residual-shift loop: test_golden."""

from __future__ import annotations

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from torch import Tensor

from moesr.config import ProcessConfig
from moesr.diffusion.process import Process, from_config
from moesr.diffusion.samplers import SAMPLERS, Noise, Predict, ddim, ddpm, dpmpp_2m, sample
from moesr.errors import SettingError

SHAPE = (2, 3, 6, 5)
BETAS = (torch.linspace(0.0015**0.5, 0.0155**0.5, 1000, dtype=torch.float64) ** 2).numpy()


def noises(count: int) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def start() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(8), dtype=torch.float64)


def fake_network(z: Tensor, t: int) -> Tensor:
    """A deterministic, bounded, t-dependent eps."""
    return torch.tanh(0.7 * z.roll(1, -1) - 0.3 * z) + 0.2 * torch.sin(torch.tensor(t / 100.0)) * z


def predictor(process: Process, y: Tensor | None = None) -> Predict:
    return lambda z, t: process.x0(fake_network(process.scale_input(z, t), t), z, t, y)


def never(i: int) -> Tensor:
    raise AssertionError(f"noise {i} was asked for by a deterministic sampler")


@pytest.fixture(scope="module")
def paper() -> Process:
    return from_config(ProcessConfig())


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-4) -> bool:
    # diffusers keeps its tables in float32, ours are float64: hence the tolerance.
    return (ours - theirs).abs().max().item() <= tolerance * theirs.abs().max().item()


# ---- DDPM and DDIM


def diffusers_ddpm(timesteps: list[int], variance_type: str, noise: Noise, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    scheduler = DDPMScheduler(1000, trained_betas=BETAS, variance_type=variance_type, clip_sample=False)  # type: ignore[arg-type]  # takes arrays
    scheduler.set_timesteps(timesteps=timesteps)
    z = start()
    for i, t in enumerate(timesteps):
        monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, i=i, **__: noise(i))
        z = scheduler.step(fake_network(z, t), t, z).prev_sample  # type: ignore[union-attr]  # never a tuple, as nobody asked for one
    return z


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("steps", [7, 20, 50])
def test_ddpm_equals_diffusers(paper: Process, monkeypatch: pytest.MonkeyPatch, variance: str, steps: int) -> None:
    # diffusers adds noise on the way to the clean end unless the last timestep is 0, so these loops end there.
    timesteps = [*paper.timesteps(steps, "leading"), 0]
    noise = noises(len(timesteps)).__getitem__
    ours = ddpm(predictor(paper), paper, timesteps, start(), noise=noise, variance=variance)
    theirs = diffusers_ddpm(timesteps, f"fixed_{variance}", noise, monkeypatch)
    assert close(ours, theirs)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("spacing", "steps"), [("leading", 10), ("leading", 125), ("trailing", 1), ("trailing", 4)])
def test_ddim_equals_diffusers(paper: Process, eta: float, spacing: str, steps: int) -> None:
    scheduler = DDIMScheduler(
        1000, trained_betas=BETAS, clip_sample=False, set_alpha_to_one=spacing == "trailing", steps_offset=1,
        timestep_spacing=spacing,  # type: ignore[arg-type]  # one of its words
    )  # fmt: skip
    scheduler.set_timesteps(steps)
    noise, z = noises(steps).__getitem__, start()
    timesteps, last = paper.timesteps(steps, spacing), paper.last(steps, spacing)
    assert timesteps == scheduler.timesteps.tolist()
    for i, t in enumerate(timesteps):
        step = scheduler.step(fake_network(z, t), t, z, eta=eta, variance_noise=noise(i) if eta else None)
        z = step.prev_sample  # type: ignore[union-attr]  # never a tuple, as nobody asked for one
    assert close(ddim(predictor(paper), paper, timesteps, start(), noise=noise, last=last, eta=eta), z)


# ---- DPM-Solver++


@pytest.mark.parametrize("steps", [1, 2, 6, 25])
def test_dpmpp_2m_equals_diffusers(paper: Process, steps: int) -> None:
    scheduler = DPMSolverMultistepScheduler(
        1000, trained_betas=BETAS, algorithm_type="dpmsolver++", solver_order=2, final_sigmas_type="zero"
    )
    timesteps, z = paper.timesteps(steps, "trailing"), start()
    scheduler.set_timesteps(timesteps=timesteps)
    for t in timesteps:
        z = scheduler.step(fake_network(z, t), t, z).prev_sample  # type: ignore[union-attr]  # never a tuple, as nobody asked for one
    assert close(dpmpp_2m(predictor(paper), paper, timesteps, start()), z)


@pytest.mark.parametrize("order", [1, 2])
def test_order_of_convergence_on_a_gaussian(order: int) -> None:
    """x0 ~ N(mean, 0.5^2) has a closed form of E[x0 | z] and of the ODE's path, for the shifted process as well."""
    process = from_config(ProcessConfig(kind="residual_shift", timesteps=1000, predict="x0"))
    y, mean = start().flip(-1), start().flip(-2)

    def predict(z: Tensor, t: int) -> Tensor:
        a, b, s = process.a[t], process.b[t], process.s[t]
        return mean + 0.25 * a / (0.25 * a**2 + s**2) * (z - b * y - a * mean)

    def path(t: int) -> Tensor:
        a, b, s = process.a[t], process.b[t], process.s[t]
        return b * y + a * mean + (0.25 * a**2 + s**2).sqrt() * start()

    def error(stride: int) -> float:
        timesteps = list(range(950, 50, -stride))
        if order == 2:
            z = dpmpp_2m(predict, process, timesteps, path(950), last=50, y=y)
        else:
            z = ddim(predict, process, timesteps, path(950), noise=never, last=50, eta=0.0, y=y)
        return (z - path(50)).abs().max().item()

    assert error(5) < 0.02
    assert 0.75 * 2**order < error(10) / error(5) < 1.5 * 2**order


# ---- the contract of all samplers


def test_noise_is_asked_for_in_order_and_only_where_it_is_added(paper: Process) -> None:
    asked: list[int] = []

    def noise(i: int) -> Tensor:
        asked.append(i)
        return noises(6)[i]

    timesteps = paper.timesteps(6, "trailing")
    sample("ddpm", predictor(paper), paper, timesteps, start(), noise=noise)
    assert asked == [0, 1, 2, 3, 4]  # the sixth step ends clean
    sample("ddim", predictor(paper), paper, timesteps, start(), noise=never, eta=0.0)
    sample("dpmpp_2m", predictor(paper), paper, timesteps, start(), noise=never)


@pytest.mark.parametrize("name", SAMPLERS)
def test_callback_sees_every_step_and_the_state_after_it(paper: Process, name: str) -> None:
    seen: list[tuple[int, int, Tensor]] = []
    timesteps, noise = paper.timesteps(5, "trailing"), noises(5).float().__getitem__

    def note(i: int, t: int, z: Tensor, _: Tensor) -> None:
        seen.append((i, t, z))

    z = sample(name, predictor(paper), paper, timesteps, start().float(), noise=noise, callback=note)
    assert z.dtype == torch.float32
    assert [(i, t) for i, t, _ in seen] == list(enumerate(timesteps))
    assert torch.equal(seen[-1][2], z)
    half = sample(name, predictor(paper), paper, timesteps[:2], start().float(), noise=noise, last=timesteps[2])
    assert torch.equal(seen[1][2], half)


def test_bad_settings_are_named(paper: Process) -> None:
    z = start()
    with pytest.raises(SettingError, match=r"euler.*ddpm, ddpm_large, ddim, dpmpp_2m"):
        sample("euler", predictor(paper), paper, [999], z, noise=never)
    with pytest.raises(SettingError, match=r"eta -0.1"):
        ddim(predictor(paper), paper, [999], z, noise=never, eta=-0.1)
    with pytest.raises(SettingError, match="medium"):
        ddpm(predictor(paper), paper, [999], z, noise=never, variance="medium")
    for timesteps, last in (([1, 500], -1), ([1000], -1), ([500, 0], 0), ([500], -2)):
        with pytest.raises(SettingError, match="fall"):
            ddim(predictor(paper), paper, timesteps, z, noise=never, last=last)
