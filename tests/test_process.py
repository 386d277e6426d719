"""The two processes: timesteps for every count, the posterior, the kinds of prediction. Schedules: test_golden."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from moesr.config import ProcessConfig
from moesr.diffusion.process import Process, from_config
from moesr.errors import SettingError

pytestmark = pytest.mark.usefixtures("seeded")


def shift15(predict: str = "x0") -> ProcessConfig:
    return ProcessConfig(kind="residual_shift", timesteps=15, predict=predict)


def shift4() -> ProcessConfig:
    return ProcessConfig(kind="residual_shift", timesteps=4, predict="x0", min_noise_level=0.2)


@pytest.fixture(scope="module")
def paper() -> Process:
    return from_config(ProcessConfig())


@pytest.mark.parametrize("spacing", ["leading", "trailing", "auto"])
@pytest.mark.parametrize("config", [ProcessConfig(), shift15(), shift4()], ids=["ddpm", "shift15", "shift4"])
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


@pytest.mark.parametrize("steps", [-1, 0, 1001])
def test_impossible_counts_are_named(paper: Process, steps: int) -> None:
    with pytest.raises(SettingError, match=f"{steps} steps.*1 to 1000"):
        paper.timesteps(steps)


def test_unknown_names_are_named(paper: Process) -> None:
    with pytest.raises(SettingError, match=r"karras.*leading"):
        paper.timesteps(10, "karras")
    with pytest.raises(SettingError, match=r"karras.*leading"):
        paper.last(10, "karras")
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


def test_int_and_tensor_timesteps_agree() -> None:
    for config in (ProcessConfig(), shift15("eps")):
        process = from_config(config)
        x0, y, noise = torch.randn(3, 2, 3, 5, 6).unbind()
        both = torch.tensor([3, 3])
        z = process.add_noise(x0, y, noise, 3)
        assert z.dtype == torch.float32
        assert torch.allclose(z, process.add_noise(x0, y, noise, both), atol=1e-6)
        assert torch.allclose(process.scale_input(z, 3), process.scale_input(z, both), atol=1e-6)
        assert torch.allclose(process.x0(noise, z, 3, y), process.x0(noise, z, both, y), atol=1e-5)


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
