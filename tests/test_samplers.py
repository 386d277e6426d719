"""The processes, their timesteps, and samplers against diffusers' schedulers. Published runs of them: test_golden."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from torch import Tensor

from moesr.config import ProcessConfig
from moesr.diffusion.process import Process, from_config
from moesr.diffusion.samplers import Predict, ddim, dpmpp_2m, sample
from moesr.errors import SettingError

pytestmark = pytest.mark.usefixtures("seeded")
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


@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpm_equals_diffusers(paper: Process, monkeypatch: pytest.MonkeyPatch, variance: str) -> None:
    # diffusers adds noise on the way to the clean end unless the last timestep is 0, so these loops end there.
    timesteps = [*paper.timesteps(20, "leading"), 0]
    noise, z = noises(len(timesteps)).__getitem__, start()
    scheduler = DDPMScheduler(1000, trained_betas=BETAS, variance_type=f"fixed_{variance}", clip_sample=False)  # type: ignore[arg-type]  # takes arrays
    scheduler.set_timesteps(timesteps=timesteps)
    for i, t in enumerate(timesteps):
        monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, i=i, **__: noise(i))
        z = scheduler.step(fake_network(z, t), t, z).prev_sample  # type: ignore[union-attr]  # never a tuple, as nobody asked for one
    assert close(ddim(predictor(paper), paper, timesteps, start(), noise=noise, variance=variance), z)


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


def test_bad_settings_are_named(paper: Process) -> None:
    z = start()
    with pytest.raises(SettingError, match=r"euler.*ddpm, ddpm_large, ddim, dpmpp_2m"):
        sample("euler", predictor(paper), paper, [999], z, noise=never)
    with pytest.raises(SettingError, match=r"eta -0.1"):
        ddim(predictor(paper), paper, [999], z, noise=never, eta=-0.1)
    with pytest.raises(SettingError, match="medium"):
        ddim(predictor(paper), paper, [999], z, noise=never, variance="medium")
    for timesteps, last in (([1, 500], -1), ([1000], -1), ([500, 0], 0), ([500], -2)):
        with pytest.raises(SettingError, match="fall"):
            ddim(predictor(paper), paper, timesteps, z, noise=never, last=last)


def shift15(predict: str = "x0") -> ProcessConfig:
    return ProcessConfig(kind="residual_shift", timesteps=15, predict=predict)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "auto"])
@pytest.mark.parametrize("config", [ProcessConfig(), shift15()], ids=["ddpm", "shift15"])
def test_every_count_gives_exactly_that_many_steps(config: ProcessConfig, spacing: str) -> None:
    process = from_config(config)
    for steps in range(1, process.total + 1):
        timesteps = process.timesteps(steps, spacing)
        run = [*timesteps, process.last(steps, spacing)]
        assert len(timesteps) == steps
        assert all(high > low for high, low in itertools.pairwise(run))
        assert timesteps[0] < process.total
        assert timesteps[-1] >= 0
        if spacing == "trailing":
            assert timesteps[0] == process.total - 1
            assert run[-1] == -1


def test_trailing_and_auto(paper: Process) -> None:
    assert paper.timesteps(4, "trailing") == [999, 749, 499, 249]
    assert paper.timesteps(1, "trailing") == [999]
    for steps, resolved in ((19, "trailing"), (20, "leading")):
        assert paper.timesteps(steps, "auto") == paper.timesteps(steps, resolved)
        assert paper.last(steps, "auto") == paper.last(steps, resolved)
    shift = from_config(shift15())
    assert shift.timesteps(5, "auto") == shift.timesteps(5, "trailing") == [14, 11, 8, 5, 2]


def test_unknown_names_and_impossible_counts_are_named(paper: Process) -> None:
    for steps in (-1, 0, 1001):
        with pytest.raises(SettingError, match=f"{steps} steps.*1 to 1000"):
            paper.timesteps(steps)
    with pytest.raises(SettingError, match=r"karras.*leading"):
        paper.timesteps(10, "karras")
    with pytest.raises(SettingError, match=r"'v'.*eps"):
        from_config(ProcessConfig(predict="v"))
    with pytest.raises(SettingError, match=r"flow.*ddpm"):
        from_config(ProcessConfig(kind="flow"))


@pytest.mark.parametrize(("t", "prev"), [(14, 13), (12, 9), (1, 0)])
def test_residual_shift_step_std(t: int, prev: int) -> None:
    process = from_config(shift15())
    eta, before = process.b[t].item(), process.b[prev].item()
    assert process.step_std(t, prev, large=True) == pytest.approx(2 * math.sqrt(eta - before), rel=1e-10)
    assert process.step_std(t, prev) == pytest.approx(2 * math.sqrt(before / eta * (eta - before)), rel=1e-10)
    assert process.step_std(t, -1) == process.step_std(t, -1, large=True) == 0.0


@pytest.mark.parametrize("predict", ["eps", "x0", "residual", "eps_scale"])
@pytest.mark.parametrize("kind", ["ddpm", "residual_shift"])
def test_x0_undoes_add_noise_for_every_prediction(kind: str, predict: str) -> None:
    process = from_config(ProcessConfig(kind=kind, predict=predict, timesteps=50))
    x0, y, noise = torch.randn(3, 4, 3, 5, 6, dtype=torch.float64).unbind()
    t = torch.tensor([0, 1, 20, 49])
    z = process.add_noise(x0, y, noise, t)
    s = process.s[t][:, None, None, None]
    out = {"eps": noise, "x0": x0, "residual": y - x0, "eps_scale": s * noise}[predict]
    assert torch.allclose(process.x0(out, z, t, y), x0, rtol=0, atol=1e-12)


def test_input_and_prior_that_no_process_changes() -> None:
    z, y = torch.randn(2, 1, 3, 4, 4, dtype=torch.float64).unbind()
    paper, plain = ProcessConfig(), ProcessConfig(kind="residual_shift", timesteps=15, normalize_input=False)
    for config in (paper, plain):
        assert torch.equal(from_config(config).scale_input(z, 7), z)
    assert torch.equal(from_config(paper).prior(z, y), z)


def test_a_missing_lr_image_is_an_error() -> None:
    process, z = from_config(shift15("eps")), torch.zeros(1, 3, 4, 4)
    for call in (lambda: process.prior(z), lambda: process.x0(z, z, 3), lambda: process.add_noise(z, None, z, 3)):
        with pytest.raises(SettingError, match="encoded LR image"):
            call()


def test_residual_shift_of_one_timestep_is_its_noisiest() -> None:
    process = from_config(ProcessConfig(kind="residual_shift", timesteps=1, predict="x0"))
    assert process.b[0].item() == pytest.approx(0.9801)
    assert process.timesteps(1) == [0]
