"""The two processes: schedules, timesteps for every count, the posterior and the kinds of prediction."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pytest
import torch

from moesr.config import ProcessConfig
from moesr.diffusion.process import Process, ddpm, from_config, residual_shift
from moesr.errors import SettingError

RELEASE_COUNTS = (1, 2, 4, 5, 8, 10, 20, 25, 40, 50, 100, 125, 200, 250, 500)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(11)
        yield


def shift15(predict: str = "x0") -> ProcessConfig:
    return ProcessConfig(kind="residual_shift", timesteps=15, predict=predict)


def shift4() -> ProcessConfig:
    return ProcessConfig(kind="residual_shift", timesteps=4, predict="x0", min_noise_level=0.2)


@pytest.fixture(scope="module")
def paper() -> Process:
    return from_config(ProcessConfig())


def test_ddpm_schedule_is_the_published_one(paper: Process) -> None:
    alpha_bar = paper.a[:-1] ** 2
    assert alpha_bar.dtype == torch.float64
    assert len(alpha_bar) == paper.total == 1000
    published = {0: 0.9984999895095825, 1: 0.9969956278800964, 4: 0.9924561381340027, 999: 0.0006686651613563299}
    for t, value in published.items():
        assert alpha_bar[t].item() == pytest.approx(value, rel=1e-6)
    assert alpha_bar.sum().item() == pytest.approx(293.2848143624724, rel=1e-6)
    assert torch.allclose(paper.a**2 + paper.s**2, torch.ones(1001, dtype=torch.float64), rtol=0, atol=1e-15)
    assert not paper.b.any()


def test_residual_shift_schedule_is_the_published_one() -> None:
    root15 = [
        0.02, 0.117165082, 0.176304555, 0.233628917, 0.291574128, 0.351009284, 0.412356144, 0.475857731,
        0.541671678, 0.609909933, 0.680658017, 0.753985262, 0.829950662, 0.908606388, 0.99,
    ]  # fmt: skip
    for config, root in ((shift15(), root15), (shift4(), [0.1, 0.520096372, 0.761381991, 0.99])):
        process = from_config(config)
        expected = torch.tensor(root, dtype=torch.float64)
        assert torch.allclose(process.s[:-1], 2 * expected, rtol=0, atol=2e-9)
        assert torch.allclose(process.b[:-1], expected**2, rtol=0, atol=2e-9)
        assert torch.allclose(process.a + process.b, torch.ones_like(process.a), rtol=0, atol=1e-15)


def test_minus_one_is_clean() -> None:
    for process in (ddpm(ProcessConfig()), residual_shift(shift15())):
        assert [process.a[-1].item(), process.b[-1].item(), process.s[-1].item()] == [1, 0, 0]
        x0, other = torch.randn(2, 1, 3, 4, 4).unbind()
        assert torch.equal(process.add_noise(x0, other, other, -1), x0)


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


def test_leading_equals_the_release_where_the_release_is_valid(paper: Process) -> None:
    for steps in RELEASE_COUNTS:
        assert paper.timesteps(steps, "leading") == [t + 1 for t in range(0, 1000, 1000 // steps)][::-1]
        assert paper.last(steps, "leading") == 0
    assert paper.timesteps(200, "leading")[:2] == [996, 991]
    assert paper.timesteps(1000, "leading") == list(range(999, -1, -1))
    assert paper.last(1000, "leading") == -1
    assert paper.timesteps(3, "leading") == [667, 334, 1]


def test_trailing_and_auto(paper: Process) -> None:
    assert paper.timesteps(4, "trailing") == [999, 749, 499, 249]
    assert paper.timesteps(1, "trailing") == [999]
    for steps, resolved in ((19, "trailing"), (20, "leading")):
        assert paper.timesteps(steps, "auto") == paper.timesteps(steps, resolved)
        assert paper.last(steps, "auto") == paper.last(steps, resolved)


def test_residual_shift_spacing_is_the_published_respacing() -> None:
    process = from_config(shift15())
    assert process.timesteps(5, "leading") == [12, 9, 6, 3, 0]
    assert process.timesteps(5, "auto") == process.timesteps(5, "trailing") == [14, 11, 8, 5, 2]
    assert process.timesteps(15, "leading") == process.timesteps(15, "trailing") == list(range(14, -1, -1))
    assert process.last(5, "leading") == -1


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


@pytest.mark.parametrize(("t", "prev"), [(999, 998), (999, 749), (501, 1), (6, 1), (1, 0)])
def test_ddpm_step_std(paper: Process, t: int, prev: int) -> None:
    now, before = paper.a[t].item() ** 2, paper.a[prev].item() ** 2
    assert paper.step_std(t, prev, large=True) == pytest.approx(math.sqrt(1 - now / before), rel=1e-10)
    posterior = (1 - before) / (1 - now) * (1 - now / before)
    assert paper.step_std(t, prev) == pytest.approx(math.sqrt(posterior), rel=1e-10)
    assert paper.step_std(t, -1) == paper.step_std(t, -1, large=True) == 0.0


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


def test_scale_input() -> None:
    z = torch.randn(1, 3, 4, 4, dtype=torch.float64)
    assert torch.equal(from_config(ProcessConfig()).scale_input(z, 500), z)
    eta = from_config(shift15()).b[7].item()
    assert torch.allclose(from_config(shift15()).scale_input(z, 7), z / math.sqrt(4 * eta + 1))
    assert torch.allclose(residual_shift(shift15(), latent=False).scale_input(z, 7), z / (6 * math.sqrt(eta) + 1))
    plain = ProcessConfig(kind="residual_shift", timesteps=15, normalize_input=False)
    assert torch.equal(from_config(plain).scale_input(z, 7), z)


def test_prior() -> None:
    noise, y = torch.randn(2, 1, 3, 4, 4, dtype=torch.float64).unbind()
    assert torch.equal(from_config(ProcessConfig()).prior(noise, y), noise)
    process = from_config(shift15())
    assert torch.allclose(process.prior(noise, y), y + 1.98 * noise)
    assert torch.allclose(process.prior(noise, y, t=12), y + 2 * 0.8299506624 * noise)


def test_a_missing_lr_image_is_an_error() -> None:
    process, z = from_config(shift15("eps")), torch.zeros(1, 3, 4, 4)
    for call in (lambda: process.prior(z), lambda: process.x0(z, z, 3), lambda: process.add_noise(z, None, z, 3)):
        with pytest.raises(SettingError, match="encoded LR image"):
            call()


def test_residual_shift_of_one_timestep_is_its_noisiest() -> None:
    process = from_config(ProcessConfig(kind="residual_shift", timesteps=1, predict="x0"))
    assert process.b[0].item() == pytest.approx(0.9801)
    assert process.timesteps(1) == [0]
