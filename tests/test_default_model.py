"""The embedded model: what a user gets without asking for anything."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import moesr
from moesr.config import UNetConfig
from moesr.evaluation.ablation import remove_part
from moesr.evaluation.metrics import psnr_y
from moesr.images.resize import resize
from moesr.library import EMBEDDED
from moesr.model import SRModel

ASSETS = Path(__file__).resolve().parent.parent / "assets"


@pytest.fixture(scope="module")
def model() -> SRModel:
    return moesr.load()


def planes(path: Path) -> Tensor:
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None] / 255


@pytest.fixture(scope="module")
def demo() -> Tensor:
    return planes(ASSETS / "demo.png")


def run(model: SRModel, lr: Tensor, **settings: object) -> Tensor:
    """[1, 3, H, W] in, [1, 3, 4 H, 4 W] out."""
    out = moesr.upscale(model, lr.permute(0, 2, 3, 1), **settings)  # type: ignore[arg-type]
    return out.permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def result(model: SRModel, demo: Tensor) -> Tensor:
    return run(model, demo)


def sharpness(image: Tensor) -> float:
    return (image.diff(dim=-1).square().mean() + image.diff(dim=-2).square().mean()).item()


def test_it_is_the_full_structure_and_small(model: SRModel) -> None:
    assert (EMBEDDED / "tiny.safetensors").stat().st_size <= 40_000_000
    config = model.config
    assert model.scale == 4
    assert len(config.stages) == 4
    assert isinstance(config.unet, UNetConfig)
    assert config.unet.space_experts == 1
    assert config.autoencoder.lr_fusion
    assert config.autoencoder.refine


def test_it_is_sharper_than_bicubic_and_stays_true_to_the_photo(demo: Tensor, result: Tensor) -> None:
    original = planes(ASSETS / "demo_original.jpg")
    bicubic = resize(demo, (original.shape[-2], original.shape[-1])).clamp(0, 1)
    assert result.shape == original.shape
    assert sharpness(result) > 1.3 * sharpness(bicubic)
    assert psnr_y(result, original).item() > psnr_y(bicubic, original).item() - 1.5
    assert psnr_y(resize(result, (demo.shape[-2], demo.shape[-1])), demo).item() > 28


def test_a_compressed_picture_is_restored(model: SRModel, demo: Tensor) -> None:
    """Its blocks of 8 pixels show less than with `restore` 0."""
    buffer = io.BytesIO()
    pixels = (demo[0, :, :72, :96].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG", quality=20)
    with Image.open(buffer) as image:
        lr = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255

    def blocks(image: Tensor) -> float:
        step = image.diff(dim=-1).square().mean(dim=(0, 1, 2))
        at = torch.zeros(len(step), dtype=torch.bool)
        at[31::32] = True
        return (step[at].mean() / step[~at].mean()).item()

    assert blocks(run(model, lr)) < 0.95 * blocks(run(model, lr, restore=0.0))


def test_every_part_earns_its_place(model: SRModel, demo: Tensor, result: Tensor) -> None:
    # All detail is in the sampled latent, and only the experts in their order put it there.
    for part in ("latent", "experts"):
        assert sharpness(run(remove_part(model, part), demo)) < 0.8 * sharpness(result), part
    unfiltered = run(remove_part(model, "filters"), demo)
    assert psnr_y(result, unfiltered).item() < 55
    faithful = run(model, demo[..., :40, :48], fidelity=1.0)
    assert psnr_y(run(model, demo[..., :40, :48]), faithful).item() < 45
    assert torch.equal(run(model, demo[..., :40, :48], fidelity=1.0, seed=1), faithful)
    other = run(model, demo, seed=1)
    assert 20 < psnr_y(result, other).item() < 60


def test_tiles_agree_with_the_whole_and_have_no_seams(model: SRModel, demo: Tensor) -> None:
    demo, tile = demo[..., :72, :96], 192
    whole, tiled = (run(model, demo, tile=side) for side in (0, tile))
    height, width = whole.shape[-2:]
    centre = np.s_[..., height // 4 : -height // 4, width // 4 : -width // 4]
    assert psnr_y(tiled[centre], whole[centre]).item() > 32
    # The picture itself, untiled, has edges at those places too: these are no seams.
    own = max(1.0, *(at / everywhere for at, everywhere in seam_energies(model, whole, tile)))
    assert all(at <= 1.05 * everywhere * own for at, everywhere in seam_energies(model, tiled, tile))


def seam_energies(model: SRModel, image: Tensor, tile: int) -> list[tuple[float, float]]:
    """Gradient energy across the borders of tiles, and everywhere, for rows and columns."""
    from moesr.images.tile_windows import plan_windows

    multiple = model.config.unet.multiple
    cells = [math.ceil(side / 4 / multiple) * multiple for side in image.shape[-2:]]
    windows = plan_windows(cells[0], cells[1], tile // 4, max(multiple, tile // 32), multiple)
    out = []
    for dim, borders in ((-2, {w.y0 for w in windows} | {w.y0 + w.h for w in windows}),
                         (-1, {w.x0 for w in windows} | {w.x0 + w.w for w in windows})):  # fmt: skip
        step = image.diff(dim=dim).square()
        at = [b * 4 - 1 for b in sorted(borders) if 0 < b * 4 < image.shape[dim]]
        if at:
            out.append((step.index_select(dim, torch.tensor(at)).mean().item(), step.mean().item()))
    assert out
    return out


def test_fewer_and_more_steps_and_every_sampler(model: SRModel, demo: Tensor) -> None:
    part = demo[..., 20:60, 40:88]
    reference = run(model, part)
    for settings in ({"steps": 1}, {"steps": 30}, {"sampler": "dpmpp_2m"}, {"sampler": "ddim", "eta": 0.0}):
        assert psnr_y(run(model, part, **settings), reference).item() > 20, settings
