"""Degradations: each operation against Pillow, torch or NumPy, batches against single images, and the same per seed."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from moesr.errors import SettingError
from moesr.images.resize import resize
from moesr.training.data import resample as modes
from moesr.training.data.degradation import FIRST, Blind, Degradation, Mild, degradation
from moesr.training.data.kernels import GAUSSIAN, PLATEAU, SINC, Kernels, blur, draw_kernels
from moesr.training.data.noise_and_jpeg import Noise, add_noise, compress_jpeg
from moesr.training.data.resample import resample

NAMES = ("bicubic", "mild", "web", "blind", "bicubic=1,mild=1,blind=2")


@pytest.fixture(scope="module")
def photo() -> Tensor:
    """A photograph [1, 3, 128, 160] in [0, 1]."""
    with Image.open(Path(__file__).parent.parent / "assets" / "demo_original.jpg") as image:
        pixels = np.asarray(image.convert("RGB").resize((300, 200)).crop((40, 40, 200, 168)))
    return torch.tensor(pixels).permute(2, 0, 1)[None].float() / 255


def lr_of(degrade: Degradation, hr: Tensor, seed: int = 0) -> tuple[Tensor, Any]:
    numbers = degrade.draw(np.random.default_rng(seed), len(hr))
    return degrade.apply(hr, numbers, torch.Generator().manual_seed(seed)), numbers


def sizes_of(images: Tensor) -> np.ndarray:
    return np.tile(np.array(images.shape[-2:]), (len(images), 1))


@pytest.mark.parametrize("name", NAMES)
def test_a_degradation_is_a_function_of_its_seeds(name: str, photo: Tensor) -> None:
    for scale, (height, width) in ((2, (32, 32)), (4, (48, 64))):
        degrade, hr = degradation(name, scale), photo[:, :, :height, :width].repeat(6, 1, 1, 1)
        before = hr.clone()
        lr, numbers = lr_of(degrade, hr, 3)
        assert torch.equal(lr, lr_of(degrade, hr, 3)[0])
        assert torch.equal(hr, before)
        assert lr.shape == (6, 3, height // scale, width // scale)
        levels = lr * 255
        assert torch.allclose(levels, levels.round(), atol=1e-3)
        assert 0 <= float(lr.min()) <= float(lr.max()) <= 1
        restore = degrade.restore(numbers)
        assert restore.shape == (6,)
        assert 0 <= restore.min() <= restore.max() <= 1
        if name != "bicubic":
            assert not torch.equal(lr, lr_of(degrade, hr, 4)[0])


def test_bicubic_is_the_resize_of_the_field(photo: Tensor) -> None:
    lr, numbers = lr_of(degradation("bicubic", 4), photo)
    assert torch.allclose(lr * 255, (resize(photo, (32, 40)) * 255).round().clamp(0, 255), atol=1e-3)
    assert degradation("bicubic", 4).restore(numbers).tolist() == [0.0]


def test_names() -> None:
    for name in ("fog", "mild:0.5", "mixed:0.5", "", "mild=x", "fog=1", "web=0"):
        with pytest.raises(SettingError, match=r"degradation .*(choose|write)") as error:
            degradation(name, 4)
        assert "\n" not in str(error.value)


def test_a_mixture_keeps_its_shares(photo: Tensor) -> None:
    degrade = degradation("bicubic=3,blind=1", 4)
    numbers = degrade.draw(np.random.default_rng(0), 4000)
    assert np.mean(degrade.restore(numbers) == 0) == pytest.approx(0.75, abs=0.03)
    lr, numbers = lr_of(degrade, photo.repeat(8, 1, 1, 1))
    clean = lr_of(degradation("bicubic", 4), photo)[0][0]
    assert [torch.equal(image, clean) for image in lr] == [value == 0 for value in degrade.restore(numbers)]


def test_ranges_are_the_published_ones() -> None:
    rng = np.random.default_rng(0)
    kernels = draw_kernels(rng, 4000, (0.2, 3), probability=0.8, generalised=(0.5, 4), plateau=(1, 2), sinc=0.1)
    assert np.mean(kernels.size > 1) == pytest.approx(0.8, abs=0.03)
    assert np.mean(kernels.family == SINC) == pytest.approx(0.1, abs=0.03)
    rest = kernels[kernels.family != SINC]
    assert np.mean(rest.family == PLATEAU) == pytest.approx(0.15, abs=0.03)
    assert np.mean(rest.sigma[:, 0] == rest.sigma[:, 1]) == pytest.approx(0.69, abs=0.03)
    assert 0.2 <= rest.sigma.min() < 0.3 < 2.9 < rest.sigma.max() <= 3
    assert 0.5 <= rest.beta.min() < 0.6 < 3.8 < rest.beta.max() <= 4
    assert rest[rest.family == PLATEAU].beta.min() >= 1
    stage = FIRST.draw(rng, 4000)
    assert [np.mean(stage.factor > 1), np.mean(stage.factor < 1)] == pytest.approx([0.2, 0.7], abs=0.03)
    assert 0.15 <= stage.factor.min() < 0.2 < 1.4 < stage.factor.max() <= 1.5
    assert (stage.quality.min(), stage.quality.max()) == (30, 95)
    assert np.mean(stage.noise.poisson > 0) == pytest.approx(0.5, abs=0.03)
    mild = Mild(4).draw(rng, 4000)
    for there in (mild.kernels.size > 1, mild.noise.gaussian + mild.noise.poisson > 0, mild.quality > 0):
        assert np.mean(there) == pytest.approx(0.5, abs=0.03)


# operations


@pytest.mark.parametrize("quality", [30, 60, 90])
@pytest.mark.parametrize("full", [False, True])
def test_jpeg_is_pillows(quality: int, full: bool, photo: Tensor) -> None:
    for image in (photo, photo[:, :, :107, :93]):  # sides that blocks do not divide
        pixels = (image[0].permute(1, 2, 0) * 255).round().byte().numpy()
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling=0 if full else 2)
        with Image.open(buffer) as decoded:
            wanted = torch.tensor(np.asarray(decoded)).permute(2, 0, 1).double()
        result = compress_jpeg(image, np.array([quality]), np.array([full]), sizes_of(image))[0].double() * 255
        assert 10 * math.log10(255**2 / float((result - wanted).square().mean())) > 40


@pytest.mark.parametrize("size", [(40, 52), (5, 3), (1, 2), (1, 1)])
def test_blur_mirrors_like_a_convolution(size: tuple[int, int]) -> None:
    image = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    kernels = torch.rand(2, 9, 9, generator=torch.Generator().manual_seed(1))  # without any symmetry
    padded = torch.tensor(np.pad(image.numpy(), ((0, 0), (0, 0), (4, 4), (4, 4)), mode="reflect"))
    wanted = torch.stack([F.conv2d(p[:, None], k[None, None])[:, 0] for p, k in zip(padded, kernels)])
    assert torch.allclose(blur(image, kernels), wanted, atol=1e-4)


def kernel(family: int, size: int, sigma: tuple[float, float] = (1, 1), **named: float) -> np.ndarray:
    values = {"angle": 0.0, "beta": 1.0, "cutoff": math.pi, **named}
    arrays = {k: np.array([v]) for k, v in values.items()}
    return Kernels(np.array([family]), np.array([size]), np.array([sigma]), **arrays).tensor()[0].double().numpy()


def test_kernels_have_their_shapes() -> None:
    axis = np.arange(-10, 11)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    wide = kernel(GAUSSIAN, 21, (2.5, 1.0), angle=math.radians(30))
    cos, sin = math.cos(math.radians(30)), math.sin(math.radians(30))
    wanted = 2.5**2 * cos**2 + sin**2, (2.5**2 - 1) * cos * sin, 2.5**2 * sin**2 + cos**2
    assert [(wide * a * b).sum() for a, b in ((x, x), (x, y), (y, y))] == pytest.approx(wanted, rel=0.01)
    plateau = kernel(PLATEAU, 21, (2, 2), beta=2)[10]
    assert plateau[11] / plateau[10] == pytest.approx(1 / (1 + 0.25**2), rel=1e-4)
    tails = kernel(GAUSSIAN, 21, (2, 2), beta=0.5)[10]
    assert tails[18] / tails[10] == pytest.approx(math.exp(-2), rel=1e-4)
    for cutoff in (1.2, 2.4):
        low = kernel(SINC, 21, cutoff=cutoff)
        gain = [(low * np.cos(cutoff * share * x)).sum() for share in (0, 0.6, 1, 1.3)]
        assert gain[0] == pytest.approx(1, abs=1e-5)
        assert 0.9 < gain[1] < 1.3
        assert 0.4 < gain[2] < 0.65
        assert abs(gain[3]) < 0.12


def test_resizes_are_torchs_and_ours(photo: Tensor) -> None:
    image = photo[:, :, :50, :70]
    for target in ((13, 19), (50, 70), (75, 101), (1, 2)):
        cases: tuple[tuple[int, dict[str, Any]], ...] = (
            (modes.AREA, {"mode": "area"}),
            (modes.BILINEAR, {"mode": "bilinear"}),
            (modes.BICUBIC, {"mode": "bicubic"}),
            (modes.SMOOTH_BILINEAR, {"mode": "bilinear", "antialias": True}),
        )
        for mode, options in cases:
            result = resample(image, sizes_of(image), np.array([target]), np.array([mode]))
            assert torch.allclose(result, F.interpolate(image, target, **options), atol=2e-5), (target, options)
        result = resample(image, sizes_of(image), np.array([target]), np.array([modes.SMOOTH_BICUBIC]))
        assert torch.allclose(result, resize(image, target), atol=2e-5)


@pytest.mark.parametrize("grey", [False, True])
def test_noise_has_its_level(grey: bool) -> None:
    ramp = (torch.arange(256) / 255).expand(2, 3, 200, 256).contiguous()  # 256 levels: 256 photons where it is white
    noise = Noise(np.array([6.0, 0.0]), np.array([0.0, 0.5]), np.array([grey, grey]))
    added = add_noise(ramp, noise, torch.Generator().manual_seed(0)) - ramp
    assert added[0, :, :, 60:200].std().item() * 255 == pytest.approx(6, rel=0.03)
    for level in (64, 128, 200):
        wanted = 0.5 * math.sqrt(level / 255 / 256)
        assert added[1, :, :, level - 4 : level + 5].std().item() == pytest.approx(wanted, rel=0.06)
    for image in added[..., 60:200]:
        assert torch.allclose(image[0], image[2], atol=1e-6) == grey


def test_a_batch_of_blind_is_its_images(photo: Tensor) -> None:
    """As a GPU does it, all at once on a canvas as large as the largest, without the noise that is drawn."""
    degrade, hr = Blind(4), torch.cat([photo, photo.flip(-1), photo.flip(-2), 1 - photo])
    numbers = degrade.draw(np.random.default_rng(2), 4)
    for stage in (numbers.first, numbers.second):
        stage.noise = Noise(np.zeros(4), np.zeros(4), np.zeros(4, bool))
    alone, together = degrade.apply(hr, numbers, torch.Generator()), degrade._apply(hr, numbers, torch.Generator())
    assert (alone - together).abs().mean() < 1e-3  # a coefficient here and there is rounded to the other side
    assert ((alone - together).abs() > 2 / 255).float().mean() < 0.01


def test_restore_grows_with_every_defect() -> None:
    degrade = Mild(4)
    numbers = degrade.draw(np.random.default_rng(0), 1)
    numbers.kernels.size[:], numbers.quality[:] = 1, 0
    numbers.noise = Noise(np.zeros(1), np.zeros(1), np.zeros(1, bool))
    levels = [degrade.restore(numbers)[0]]
    for step in range(3):  # blur, noise, JPEG, one after the other and each more
        for strength in (1, 2):
            if step == 0:
                numbers.kernels.size[:], numbers.kernels.sigma[:] = 15, strength
            elif step == 1:
                numbers.noise.gaussian[:] = 4.0 * strength
            else:
                numbers.quality[:] = 100 - 30 * strength
            levels.append(degrade.restore(numbers)[0])
    assert levels[0] == 0
    assert levels == sorted(set(levels))
    kinds = [degradation(name, 4) for name in ("mild", "web", "blind")]
    medians = [float(np.median(kind.restore(kind.draw(np.random.default_rng(0), 400)))) for kind in kinds]
    assert 0 < medians[0] < medians[1] < medians[2] < 1
