"""Degradations: what was published is what is drawn, what is drawn is what the pixels get, and the same for a seed."""

from __future__ import annotations

import math
import pickle
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from moesr.errors import SettingError
from moesr.images.resize import resize
from moesr.training import second_order
from moesr.training.blur import FAMILIES, Blur, filtered, sharpened
from moesr.training.defects import Noise, jpeg, noisy
from moesr.training.degradation import Blind, Degradation, Mild, degradation
from moesr.training.second_order import BlindNumbers, OrderNumbers

NAMES = ("bicubic", "mild", "mixed", "mixed:0.3", "blind", "blind:usm")
DRAWS = 4000


@pytest.fixture(scope="module")
def photo() -> Tensor:
    """A photograph [3, 128, 160] in [-1, 1]."""
    with Image.open(Path(__file__).parent.parent / "assets" / "demo_original.jpg") as image:
        pixels = np.asarray(image.convert("RGB").resize((300, 200)).crop((40, 40, 200, 168)))
    return torch.tensor(pixels).permute(2, 0, 1).float() / 127.5 - 1


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def draws(degrade: Degradation, count: int = DRAWS) -> list:
    generator = rng()
    return [degrade.draw(generator) for _ in range(count)]


def share(values: list) -> float:
    return sum(values) / len(values)


def near(value: float, probability: float, count: int) -> bool:
    """Within four standard deviations of what `count` draws give."""
    return abs(value - probability) < 4 * math.sqrt(probability * (1 - probability) / count) + 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_a_degradation_is_a_function_of_the_generator(name: str, photo: Tensor) -> None:
    for scale, (height, width) in product((2, 4), ((32, 32), (48, 64), (128, 160))):
        degrade, hr = degradation(name, scale), photo[:, :height, :width]
        before = hr.clone()
        for seed in range(4):
            lr = degrade(hr, rng(seed))
            assert torch.equal(lr, degrade(hr, rng(seed)))
            assert lr.shape == (3, height // scale, width // scale)
            levels = (lr + 1) * 127.5
            assert torch.allclose(levels, levels.round(), atol=1e-4)
            assert float(levels.min()) >= 0
            assert float(levels.max()) <= 255.001
        assert torch.equal(hr, before)
    if name != "bicubic":
        images = [degradation(name, 4)(photo, rng(seed)) for seed in range(8)]
        assert any(not torch.equal(images[0], other) for other in images[1:])


@pytest.mark.parametrize("name", NAMES)
def test_workers_of_any_kind_can_have_a_degradation(name: str, photo: Tensor) -> None:
    degrade = degradation(name, 4)
    assert torch.equal(pickle.loads(pickle.dumps(degrade))(photo, rng()), degrade(photo, rng()))


def test_bicubic_is_the_resize_of_the_field(photo: Tensor) -> None:
    lr = degradation("bicubic", 4)(photo, rng())
    wanted = ((resize(photo[None], (32, 40))[0] + 1) * 127.5).round().clamp(0, 255)
    assert torch.allclose((lr + 1) * 127.5, wanted, atol=1e-4)
    generator = rng()
    degradation("bicubic", 4)(photo, generator)
    assert generator.random() == rng().random()


def test_names() -> None:
    for name in ("fog", "mild:0.5", "bicubic:", "blind:0.5", "mixed:", "mixed:x", "mixed:1.5", "mixed:nan", ""):
        with pytest.raises(SettingError, match=r"degradation .*(choose|write)") as error:
            degradation(name, 4)
        assert "\n" not in str(error.value)


# what is drawn


def test_blind_draws_what_was_published() -> None:
    numbers: list[BlindNumbers] = draws(Blind(4))
    limits = {
        "first": ((0.2, 3), (0.15, 1.5), (1, 30), (0.05, 3)),
        "second": ((0.2, 1.5), (0.3, 1.2), (1, 25), (0.05, 2.5)),
    }
    directions = {"first": (0.2, 0.7, 0.1), "second": (0.3, 0.4, 0.3)}
    for which, (sigmas, factors, sigma_noise, scale_noise) in limits.items():
        orders: list[OrderNumbers] = [getattr(n, which) for n in numbers]
        blurs = [o.blur for o in orders if o.blur]
        assert near(share([o.blur is not None for o in orders]), 1.0 if which == "first" else 0.8, DRAWS)
        kernels(blurs, sigmas)
        up, down, keep = directions[which]
        assert near(share([o.factor > 1 for o in orders]), up, DRAWS)
        assert near(share([o.factor < 1 for o in orders]), down, DRAWS)
        assert near(share([o.factor == 1 for o in orders]), keep, DRAWS)
        spans([o.factor for o in orders], *factors)
        modes(Counter(o.mode for o in orders))
        gaussian = [o.noise for o in orders if o.noise.kind == "gaussian"]
        poisson = [o.noise for o in orders if o.noise.kind == "poisson"]
        assert len(gaussian) + len(poisson) == DRAWS
        assert near(len(gaussian) / DRAWS, 0.5, DRAWS)
        assert near(share([n.grey for n in gaussian]), 0.4, len(gaussian))
        assert near(share([n.grey for n in poisson]), 0.4, len(poisson))
        spans([n.strength for n in gaussian], *sigma_noise)
        spans([n.strength for n in poisson], *scale_noise)
        assert (min(o.quality for o in orders), max(o.quality for o in orders)) == (30, 95)
    sincs = [n.sinc for n in numbers if n.sinc]
    assert near(len(sincs) / DRAWS, 0.8, DRAWS)
    spans([s.cutoff for s in sincs], math.pi / 3, math.pi)
    assert {s.size for s in sincs} == set(range(7, 22, 2))
    modes(Counter(n.mode for n in numbers))
    assert near(share([n.jpeg_last for n in numbers]), 0.5, DRAWS)


def kernels(blurs: list[Blur], sigmas: tuple[float, float]) -> None:
    """Families with their probabilities, and their parameters in range."""
    assert {b.size for b in blurs} == set(range(7, 22, 2))
    sincs = [b for b in blurs if b.family == "sinc"]
    assert near(len(sincs) / len(blurs), 0.1, len(blurs))
    spans([b.cutoff for b in sincs if b.size < 13], math.pi / 3, math.pi)
    spans([b.cutoff for b in sincs if b.size >= 13], math.pi / 5, math.pi)
    others = [b for b in blurs if b.family != "sinc"]
    count = Counter(b.family for b in others)
    for family, probability in zip(FAMILIES, (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)):
        assert near(count[family] / len(others), probability, len(others)), family
    spans([s for b in others for s in b.sigma], *sigmas)
    for b in others:
        assert (b.sigma[0] == b.sigma[1]) == (not b.family.endswith("aniso"))
    angles = [b.angle for b in others if b.family.endswith("aniso")]
    spans(angles, -math.pi, math.pi)
    generalised = [b.beta for b in others if b.family.startswith("generalised")]
    spans(generalised, 0.5, 4)
    assert near(share([b < 1 for b in generalised]), 0.5, len(generalised))
    spans([b.beta for b in others if b.family.startswith("plateau")], 1, 2)
    assert {b.beta for b in others if b.family in ("iso", "aniso")} == {1.0}


def spans(values: list[float], low: float, high: float) -> None:
    """All in the range, and nearly all of the range used."""
    edge = 0.05 * (high - low)
    assert low <= min(values) < low + edge
    assert high - edge < max(values) <= high


def modes(count: Counter[str]) -> None:
    total = sum(count.values())
    assert set(count) == {"area", "bilinear", "bicubic"}
    assert all(near(n / total, 1 / 3, total) for n in count.values())


def test_mild_draws_what_it_says() -> None:
    numbers = draws(Mild(4))
    for part in ("blur", "noise", "quality"):
        assert near(share([getattr(n, part) is not None for n in numbers]), 0.5, DRAWS), part
    blurs = [n.blur for n in numbers if n.blur]
    spans([s for b in blurs for s in b.sigma], 0.4, 2.4)  # 0.1 to 0.6 pixels of an LR four times as small
    assert {b.family for b in blurs} == {"iso", "aniso"}
    assert all(b.size >= 6 * max(b.sigma) for b in blurs)
    noises = [n.noise for n in numbers if n.noise]
    spans([n.strength for n in noises if n.kind == "gaussian"], 1, 8)
    assert max(n.strength for n in noises if n.kind == "poisson") <= 0.6
    assert near(share([n.grey for n in noises]), 0.5, len(noises))
    assert {n.mode for n in numbers} == {"area", "bilinear", "bicubic"}
    qualities = [n.quality for n in numbers if n.quality]
    assert (min(qualities), max(qualities)) == (50, 95)


def test_mild_blur_keeps_its_size_in_lr_pixels() -> None:
    two, eight = (max(s for n in draws(Mild(scale), 500) if n.blur for s in n.blur.sigma) for scale in (2, 8))
    assert two == pytest.approx(eight / 4)


def test_mild_is_near_to_bicubic_and_blind_is_not(photo: Tensor) -> None:
    clean = degradation("bicubic", 4)(photo, rng())

    def distance(name: str) -> np.ndarray:
        lrs = [degradation(name, 4)(photo, rng(seed)) for seed in range(40)]
        return np.array([(lr - clean).square().mean().sqrt().item() * 127.5 for lr in lrs])

    mild, blind = distance("mild"), distance("blind")
    assert mild.max() < 20
    assert 2 < np.median(mild) < 12
    assert np.median(blind) > 2 * np.median(mild)


def test_mixed_is_bicubic_with_its_probability(photo: Tensor) -> None:
    for name, probability in (("mixed:0.6", 0.6), ("mixed", 0.5), ("mixed:0", 0.0), ("mixed:1", 1.0)):
        facts = [str(n) for n in draws(degradation(name, 4))]
        # of the mild ones an eighth has neither blur, noise nor JPEG, and half of these are bicubic
        assert near(share([f == "bicubic" for f in facts]), probability + (1 - probability) / 16, DRAWS)
    degrade, clean = degradation("mixed:0.6", 4), degradation("bicubic", 4)(photo, rng())
    same = [torch.equal(degrade(photo, rng(seed)), clean) for seed in range(40)]
    assert 10 < sum(same) < 36
    same = [torch.equal(degradation("mixed:1", 4)(photo, rng(seed)), clean) for seed in range(5)]
    assert all(same)


# kernels


def shaped(family: str, size: int) -> Blur:
    return Blur(family, size, (1.2, 2.0 if family.endswith("aniso") else 1.2), 0.4, 1.7, 1.5)


@pytest.mark.parametrize("size", [7, 21])
@pytest.mark.parametrize("family", [*FAMILIES, "sinc"])
def test_kernels_sum_to_one_and_are_symmetric(family: str, size: int) -> None:
    blur = shaped(family, size)
    kernel = blur.kernel()
    assert kernel.shape == (blur.size, blur.size)
    assert kernel.sum().item() == pytest.approx(1, abs=1e-5)
    assert torch.allclose(kernel, kernel.flip(0, 1), atol=1e-7)
    assert kernel.argmax() == blur.size**2 // 2


def test_a_gaussian_has_its_width_and_direction() -> None:
    kernel = Blur("aniso", 21, (2.5, 1.0), math.radians(30)).kernel().double()
    axis = torch.arange(-10, 11, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    covariance = torch.stack([(kernel * a * b).sum() for a, b in ((x, x), (x, y), (y, y))])
    wide, narrow, cos, sin = 2.5**2, 1.0, math.cos(math.radians(30)), math.sin(math.radians(30))
    wanted = (wide * cos**2 + narrow * sin**2, (wide - narrow) * cos * sin, wide * sin**2 + narrow * cos**2)
    assert covariance.tolist() == pytest.approx(wanted, rel=0.01)


def test_beta_makes_tails_and_plateaus() -> None:
    def relative(family: str, beta: float) -> tuple[float, float]:
        row = Blur(family, 21, (2.0, 2.0), 0.0, beta).kernel()[10]
        return (row[11] / row[10]).item(), (row[18] / row[10]).item()  # one pixel, and four sigma, from the middle

    gauss = relative("iso", 1.0)
    assert gauss == pytest.approx((math.exp(-1 / 8), math.exp(-8)), rel=1e-4)
    assert relative("generalised iso", 0.5)[1] > 100 * gauss[1]
    assert relative("generalised iso", 4.0)[0] > 0.99
    assert relative("plateau iso", 1.0) == pytest.approx((1 / 1.25, 1 / 17), rel=1e-4)
    assert relative("plateau iso", 2.0)[0] == pytest.approx(1 / (1 + 0.25**2), rel=1e-4)


@pytest.mark.parametrize("cutoff", [1.2, 1.8, 2.4])
def test_a_sinc_passes_below_its_cutoff_and_stops_above(cutoff: float) -> None:
    kernel = Blur("sinc", 21, cutoff=cutoff).kernel().double()
    axis = torch.arange(-10, 11, dtype=torch.float64)

    def gain(frequency: float, angle: float) -> float:
        x, y = frequency * math.cos(angle) * axis, frequency * math.sin(angle) * axis
        return (kernel * torch.cos(x[None, :] + y[:, None])).sum().item()

    for angle in (0.0, 0.3, math.pi / 4):
        assert gain(0, angle) == pytest.approx(1, abs=1e-5)
        # the ripple of a window of 21 pixels
        assert all(0.9 < gain(cutoff * share, angle) < 1.3 for share in (0.2, 0.4, 0.6, 0.8))
        assert 0.4 < gain(cutoff, angle) < 0.65
        assert all(abs(gain(min(cutoff * share, math.pi), angle)) < 0.12 for share in (1.3, 1.6))


@pytest.mark.parametrize("size", [(40, 52), (5, 3), (1, 2), (1, 1)])
def test_filtering_mirrors_like_a_convolution(size: tuple[int, int]) -> None:
    image = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
    kernel = torch.rand(9, 9, generator=torch.Generator().manual_seed(1))  # without any symmetry
    padded = torch.tensor(np.pad(image.numpy(), ((0, 0), (4, 4), (4, 4)), mode="reflect"))
    wanted = F.conv2d(padded[:, None], kernel[None, None])[:, 0]
    assert torch.allclose(filtered(image, kernel), wanted, atol=1e-4)


# noise, JPEG, sharpening


@pytest.mark.parametrize("strength", [2.0, 12.0])
def test_gaussian_noise_has_its_level(strength: float) -> None:
    image = torch.full((3, 120, 120), 0.5)
    colour = noisy(image, Noise("gaussian", strength, False), rng()) - image
    grey = noisy(image, Noise("gaussian", strength, True), rng()) - image
    for noise in (colour, grey):
        assert noise.std().item() * 255 == pytest.approx(strength, rel=0.03)
        assert abs(noise.mean().item()) * 255 < 0.05 * strength
    assert torch.equal(grey[0], grey[2])
    assert abs(np.corrcoef(colour[0].flatten(), colour[1].flatten())[0, 1]) < 0.05


def test_poisson_noise_grows_with_the_light() -> None:
    ramp = (torch.arange(256) / 255).expand(3, 200, 256)  # 256 levels: 256 photons where it is white
    noise = noisy(ramp, Noise("poisson", 0.5, False), rng()) - ramp
    for level in (26, 64, 128, 230):
        part = noise[:, :, level - 4 : level + 5]
        assert part.std().item() == pytest.approx(0.5 * math.sqrt(level / 255 / 256), rel=0.05)
    grey = noisy(ramp, Noise("poisson", 0.5, True), rng()) - ramp
    assert torch.allclose(grey[0], grey[1], atol=1e-6)
    few = torch.tensor([0.25, 0.75]).repeat(3, 200, 128)  # 2 levels: 2 photons
    noise = noisy(few, Noise("poisson", 0.1, False), rng()) - few
    assert noise[:, :, ::2].std().item() == pytest.approx(0.1 * math.sqrt(64 / 255 / 2), rel=0.05)


def test_jpeg_quality_counts(photo: Tensor) -> None:
    image = (photo + 1) / 2
    errors = [(jpeg(image, quality) - image).square().mean().item() for quality in (30, 60, 95)]
    assert errors[0] > 1.5 * errors[1] > 3 * errors[2] > 0
    dots = torch.zeros(3, 32, 32)
    dots[0, ::2, ::2] = 1  # colour of single pixels is lost at any quality: 4:2:0
    assert (jpeg(dots, 95)[0] - dots[0]).abs().max() > 0.3


def test_sharpening_steepens_edges_and_leaves_the_rest() -> None:
    flat = torch.full((3, 64, 64), 0.25)
    assert torch.allclose(sharpened(flat), flat, atol=1e-5)
    faint = flat.clone()
    faint[:, :, 32:] += 0.1  # 13 of 255, half of it on each side: below the threshold
    assert torch.allclose(sharpened(faint), faint, atol=1e-5)
    edge = torch.full((3, 64, 64), -0.5)
    edge[:, :, 32:] = 0.5
    sharp = sharpened(edge)
    assert (sharp[:, :, 32] - sharp[:, :, 31]).min() > 1.1
    assert float(sharp.abs().max()) <= 1


def test_usm_sharpens_what_blind_starts_from(photo: Tensor) -> None:
    plain, usm = degradation("blind", 4), degradation("blind:usm", 4)
    assert plain.target(photo) is photo
    assert torch.equal(usm.target(photo), sharpened(photo))
    assert torch.equal(usm(photo, rng(3)), plain(sharpened(photo), rng(3)))
    assert not torch.equal(usm(photo, rng(3)), plain(photo, rng(3)))


# what is drawn is what is done

NONE = OrderNumbers(None, 1.0, "area", Noise("gaussian", 0.0, False), 100)
CLEAN = BlindNumbers(NONE, NONE, None, "area", True)


def blind(photo: Tensor, numbers: BlindNumbers) -> Tensor:
    return Blind(4).apply(photo, numbers, rng())


@pytest.mark.parametrize(
    "part",
    [
        {"blur": Blur("iso", 21, (3.0, 3.0))},
        {"factor": 0.3},
        {"noise": Noise("gaussian", 20.0, False)},
        {"noise": Noise("poisson", 2.0, True)},
        {"quality": 30},
    ],
    ids=str,
)
def test_both_orders_do_every_part(photo: Tensor, part: dict) -> None:
    clean = blind(photo, CLEAN)
    assert (clean - degradation("bicubic", 4)(photo, rng())).abs().mean() < 0.05
    dirty = replace(NONE, **part)
    first, second = blind(photo, replace(CLEAN, first=dirty)), blind(photo, replace(CLEAN, second=dirty))
    both = blind(photo, replace(CLEAN, first=dirty, second=dirty))
    for lr in (first, second, both):
        assert (lr - clean).abs().mean() > 0.002
    assert not torch.equal(first, second)
    assert (both - clean).square().mean() > (first - clean).square().mean()


def test_the_end_of_blind(photo: Tensor) -> None:
    last = replace(CLEAN, second=replace(NONE, quality=30), sinc=Blur("sinc", 21, cutoff=1.1))
    first = replace(last, jpeg_last=False)
    assert not torch.equal(blind(photo, last), blind(photo, first))
    assert not torch.equal(blind(photo, last), blind(photo, replace(last, sinc=None)))
    for order in (last, first):
        assert not torch.equal(blind(photo, order), blind(photo, replace(order, second=NONE)))
    # a filter after the JPEG removes frequencies that a JPEG after the filter brings back
    high = [torch.fft.rfft2(blind(photo, n))[:, 12:-12].abs().square().sum().item() for n in (first, last)]
    assert high[0] < high[1]
    assert not torch.equal(
        *(blind(photo, replace(CLEAN, second=replace(NONE, factor=1.2, mode=m))) for m in ("area", "bicubic"))
    )
    images = [blind(photo, replace(CLEAN, second=replace(NONE, factor=0.5), mode=m)) for m in second_order.MODES]
    assert not torch.equal(images[0], images[1])
    assert not torch.equal(images[1], images[2])


def test_every_part_of_mild_acts(photo: Tensor) -> None:
    mild = Mild(4)
    clean = next(n for n in draws(mild, 200) if str(n) == "bicubic")
    plain = mild.apply(photo, clean, rng())
    assert torch.equal(plain, degradation("bicubic", 4)(photo, rng()))
    changes = {
        "blur": Blur("iso", 15, (2.0, 2.0)), "mode": "area", "noise": Noise("gaussian", 4.0, True), "quality": 60,
    }  # fmt: skip
    for name, value in changes.items():
        assert not torch.equal(mild.apply(photo, replace(clean, **{name: value}), rng()), plain), name
