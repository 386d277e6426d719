"""Metrics against computations that share no code with them, and against numbers of their published programs."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy import linalg, signal
from torch import Tensor, nn

from moesr.errors import CheckpointError, ImageError, SettingError
from moesr.evaluation.dists import DISTS
from moesr.evaluation.fid import FID
from moesr.evaluation.metrics import grid_power, lr_psnr, psnr_y, ssim_y
from moesr.evaluation.musiq import MUSIQ, Network
from moesr.evaluation.niqe import NIQE
from moesr.images.resize import resize
from tests.image_files import planes
from tests.training_setup import write_metrics, write_niqe

# Values of the published programs (BasicSR, pyiqa) with the weights and images that are drawn here.
NIQE_BY_BASICSR = 11.16388
MUSIQ_BY_PYIQA = {1: [1.8693140, 1.9947319], 10: [3.5148945, 3.4651313]}


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """uint8 [H, W, 3]: smooth shapes and grain of changing strength, as photographs have."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    shapes = 120 + 60 * np.sin(x / 17 + seed) * np.cos(y / 23) + 20 * np.sin((x + 2 * y) / 5)
    grain = rng.normal(0, 1, (height, width, 3)) * (2 + 12 * x / width)[..., None]
    return (shapes[..., None] + [10, 0, -10] + grain).clip(0, 255).astype(np.uint8)


def grey(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(np.float64) @ np.array([65.481, 128.553, 24.966]) / 255 + 16


def fill(network: nn.Module, seed: int) -> nn.Module:
    """Weights that every program can draw: by name, from NumPy's generator."""
    rng = np.random.default_rng(seed)
    for name, value in sorted(network.state_dict().items()):
        if not value.is_floating_point():
            continue
        drawn = rng.standard_normal(value.shape, dtype=np.float32)
        if value.ndim > 1:
            drawn *= (2 / max(1, value[0].numel())) ** 0.5
        else:
            drawn = 0.1 * drawn if name.endswith(("bias", "running_mean")) else 1 + 0.1 * np.abs(drawn)
        value.copy_(torch.from_numpy(drawn))
    return network


# Fidelity


def test_psnr_of_one_grey_level_and_its_border() -> None:
    a = np.full((20, 30, 3), 100, np.uint8)
    b = a + np.uint8(1)
    expected = 20 * np.log10(255 / (219 / 255))  # Y has 219 steps where RGB has 255
    assert psnr_y(planes(a), planes(b)).item() == pytest.approx(expected, abs=1e-3)
    b[:4], b[:, -4:] = 0, 255
    assert psnr_y(planes(a), planes(b)).item() == pytest.approx(expected, abs=1e-3)
    b[4], b[:, -5] = 0, 255
    assert psnr_y(planes(a), planes(b)).item() < 30


def test_ssim_equals_its_definition() -> None:
    a, b = texture(60, 47), texture(60, 47, seed=1)
    b = (0.4 * a + 0.6 * b).astype(np.uint8)
    window = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(window, window) / window.sum() ** 2

    def mean(x: np.ndarray) -> np.ndarray:
        return signal.convolve2d(x, window, mode="valid")

    x, y = grey(a)[4:-4, 4:-4], grey(b)[4:-4, 4:-4]
    c1, c2 = 6.5025, 58.5225
    covariance = mean(x * y) - mean(x) * mean(y)
    variances = mean(x * x) - mean(x) ** 2 + mean(y * y) - mean(y) ** 2
    ssim = (2 * mean(x) * mean(y) + c1) * (2 * covariance + c2)
    ssim /= (mean(x) ** 2 + mean(y) ** 2 + c1) * (variances + c2)
    assert 0.2 < ssim.mean() < 0.95
    assert ssim_y(planes(a), planes(b)).item() == pytest.approx(ssim.mean(), abs=1e-6)


def test_lr_consistency_sees_one_colour_and_no_detail() -> None:
    result = planes(texture(64, 48)).double()
    lr = resize(result, (16, 12))
    shifted = result.clone()
    shifted[:, 2] += 1 / 255
    assert lr_psnr(shifted, lr).item() == pytest.approx(20 * np.log10(255) + 10 * np.log10(3), abs=1e-3)
    checks = torch.from_numpy(np.indices((64, 48)).sum(0) % 2).double() - 0.5
    assert lr_psnr(result + 0.1 * checks, lr).item() > 55


def test_unequal_and_small_images_are_one_line() -> None:
    image = planes(texture(30, 30))
    for call in (
        lambda: psnr_y(image, image[..., :20]),
        lambda: ssim_y(image, image[..., :20]),
        lambda: ssim_y(image[..., :18], image[..., :18]),
        lambda: psnr_y(image[..., :8], image[..., :8]),
        lambda: lr_psnr(image[..., :5], image),
        lambda: grid_power(image),
    ):
        with pytest.raises(ImageError, match=r"^[^\n]+\d+ x \d+[^\n]*$"):
            call()


# Grids


def test_grids_of_period_4_and_8_are_found() -> None:
    pixels = texture(160, 192).astype(np.float64)
    plain = grid_power(planes(pixels.astype(np.uint8))).item()
    assert plain < 2
    for period, strength in ((4, 6), (8, 14), (2, 4)):
        marked = pixels.copy()
        marked[::period, ::period] += strength
        assert grid_power(planes(marked.clip(0, 255).astype(np.uint8))).item() > 3, period
    lines = pixels.copy()
    lines[:, ::4] += 3
    assert grid_power(planes(lines.clip(0, 255).astype(np.uint8))).item() > 3


def test_other_periods_and_the_faintest_grids_are_not() -> None:
    pixels = texture(160, 192).astype(np.float64)
    pixels[::5, ::5] += 6
    assert grid_power(planes(pixels.clip(0, 255).astype(np.uint8))).item() < 2
    flat = torch.full((1, 3, 128, 128), 0.5)
    assert grid_power(flat).item() < 1e-6
    flat[..., ::4, ::4] += 0.1 / 255
    assert grid_power(flat).item() < 1
    flat[..., ::4, ::4] += 1 / 255
    assert grid_power(flat).item() > 3


# NIQE


@pytest.fixture(scope="module")
def niqe_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_niqe(tmp_path_factory.mktemp("niqe"))


def test_niqe_equals_the_fields_program(niqe_folder: Path) -> None:
    assert NIQE(niqe_folder)(planes(texture(200, 310))).item() == pytest.approx(NIQE_BY_BASICSR, rel=1e-4)


def test_niqe_where_blocks_are_flat(niqe_folder: Path) -> None:
    pixels = texture(192, 288)
    pixels[:96, :96] = 255  # a blown-out sky has no statistics
    assert np.isfinite(NIQE(niqe_folder)(planes(pixels)).item())
    with pytest.raises(ImageError, match="texture"):
        NIQE(niqe_folder)(torch.ones(1, 3, 192, 192))
    with pytest.raises(ImageError, match="100 x 180"):
        NIQE(niqe_folder)(torch.ones(1, 3, 180, 100))


def test_niqe_files(niqe_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"not found"):
        NIQE(tmp_path)
    file = tmp_path / "niqe_pris_params.npz"
    file.write_bytes((niqe_folder / file.name).read_bytes()[:500])
    with pytest.raises(CheckpointError, match=r"damaged"):
        NIQE(tmp_path)
    np.savez(file, mu_pris_param=np.zeros(36), cov_pris_param=np.eye(36), gaussian_window=np.ones((7, 7)))
    with pytest.raises(CheckpointError, match=r"mu_pris_param"):
        NIQE(tmp_path)


# FID


class Colours(nn.Module):
    """A small feature network: mean and deviation of every channel."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([images.mean((2, 3)), images.std((2, 3))], dim=1)


def test_fid_equals_its_definition() -> None:
    pytest.importorskip("torchmetrics")
    fid, rng = FID(network=Colours()), np.random.default_rng(0)
    sets = [[planes((texture(24, 30, k) * rng.uniform(0.5, 1, 3)).astype(np.uint8)) for k in range(12)] for _ in "ab"]
    for image, reference in zip(*sets):
        fid.add(image, reference)
    a, b = (Colours()(torch.cat(images)).double().numpy() for images in sets)
    covariances = np.cov(a.T), np.cov(b.T)
    root = linalg.sqrtm(covariances[0] @ covariances[1])
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * np.real(root))
    assert fid.value() == pytest.approx(expected, rel=1e-3)
    with pytest.raises(ImageError, match="two images"):
        FID(network=Colours()).value()


def test_fid_without_weights_or_library_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="not found"):
        FID(tmp_path)
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    with pytest.raises(SettingError, match=r"pip install 'moesr\[eval\]'"):
        FID(network=Colours())


# MUSIQ


@pytest.mark.parametrize("classes", [1, 10])
def test_musiq_equals_pyiqa(classes: int, tmp_path: Path) -> None:
    network = fill(Network(classes), 1)
    path = tmp_path / "musiq_koniq.safetensors"
    save_file({f"params.{k}": v for k, v in network.state_dict().items()}, path)
    (tmp_path / "musiq_ava.safetensors").write_bytes(b"never read: KonIQ's comes first")
    musiq = MUSIQ(tmp_path)
    values = musiq(planes(texture(70, 290))), musiq(planes(texture(500, 40)))
    assert [v.item() for v in values] == pytest.approx(MUSIQ_BY_PYIQA[classes], rel=1e-3)


def test_musiq_of_another_network(tmp_path: Path) -> None:
    save_file({"head.weight": torch.zeros(1, 384)}, tmp_path / "musiq.safetensors")
    with pytest.raises(CheckpointError, match="not MUSIQ"):
        MUSIQ(tmp_path)


def test_dists_is_0_for_equal_images_and_grows_with_noise(tmp_path: Path) -> None:
    network = DISTS(write_metrics(tmp_path / "metrics", vgg=True))
    generator = torch.Generator().manual_seed(0)
    image, noise = (torch.rand(2, 3, 48, 40, generator=generator) for _ in range(2))
    values = [network(image, image + share * (noise - image)) for share in (0.0, 0.1, 0.5)]
    assert values[0].abs().max() < 1e-5
    assert bool((values[0] < values[1]).all() and (values[1] < values[2]).all())
    torch.testing.assert_close(network(image + 0.5 * (noise - image), image), values[2])
