"""Fidelity per place: maps and `protect`, with tiles, wrap, batches, alpha and masks; for both kinds of models."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

import moesr
from moesr.errors import ImageError, SettingError
from moesr.evaluation.invented_detail import correlate_ranks
from moesr.evaluation.nano_models import assemble, build_autoencoder, build_denoiser, nano_config
from moesr.model import SRModel
from moesr.progress import Event
from tests.small_models import fill_adapters
from tests.test_pipeline import photo

SIDE = 40
RECTANGLE = np.s_[8:32, 8:32]
#: 10 LR pixels inside of it, and 4 outside, in pixels of the result.
INSIDE, OUTSIDE = np.s_[72:88, 72:88], np.s_[:16]


@pytest.fixture(scope="module", params=["fusion", "settings"])
def model(request: pytest.FixtureRequest) -> SRModel:
    """A model that has fidelity in its fusion only, and one whose experts are given it too; both react strongly."""
    config = nano_config("residual_shift")
    config = replace(config, unet=replace(config.unet, adapter_ranks=(4, 2) if request.param == "settings" else ()))
    experts = [build_denoiser(config.unet, seed) for seed in range(4)]
    torch.manual_seed(0)
    for expert in experts:
        fill_adapters(expert, 1 / 8)
    autoencoder = build_autoencoder(config.autoencoder)
    return assemble(config, experts, autoencoder, device=torch.device("cpu"), dtype=torch.float32)


def run(model: SRModel, **settings: Any) -> np.ndarray:
    return moesr.upscale(model, photo(SIDE, SIDE), **{"color_fix": "none", "steps": 1, **settings}).astype(float)


def soft_mask(blur: float) -> Image.Image:
    plane = np.zeros((SIDE, SIDE), np.uint8)
    plane[RECTANGLE] = 255
    return Image.fromarray(plane).filter(ImageFilter.GaussianBlur(blur))


@pytest.mark.parametrize("tile", ["auto", 80])
def test_protected_pixels_are_those_of_fidelity_1_and_the_others_stay(model: SRModel, tile: Any) -> None:
    low, high = (run(model, fidelity=w, tile=tile) for w in (0.25, 1))
    mixed = run(model, fidelity=0.25, protect=soft_mask(1), tile=tile)
    distance = np.abs(low - high)[INSIDE].mean()
    assert distance > 3  # else nothing would be shown by this
    # Latents are mixed too where experts know the fidelity; norms and codes of random weights make much of that.
    most = 0.3 * distance if model.config.unet.takes_settings else 1
    assert np.abs(mixed - high)[INSIDE].mean() < most
    assert np.abs(mixed - low)[OUTSIDE].mean() < most


@pytest.mark.parametrize("model", ["fusion"], indirect=True)
def test_a_feathered_border_has_no_edge(model: SRModel) -> None:
    low, high = (run(model, fidelity=w) for w in (0, 1))
    share = (run(model, fidelity=0, protect=soft_mask(3)) - low) / np.where(np.abs(high - low) < 20, np.nan, high - low)
    across = np.nanmean(share[64:96], axis=(0, 2))[:72]
    assert across[2] < 0.1
    assert across[-2] > 0.9
    assert np.nanmax(np.abs(np.diff(across))) < 0.12  # of 1, over about 12 LR pixels


def test_a_constant_map_is_the_number_to_the_byte(model: SRModel) -> None:
    number = run(model, fidelity=0.9, tile=80)
    for plane in (np.full((5, 7), 0.9), torch.full((1, 3, 3), 0.9), np.full((SIDE, SIDE), 0.9, np.float32)):
        assert np.array_equal(run(model, fidelity=plane, tile=80), number)
    assert np.array_equal(run(model, fidelity=0.2, protect=Image.new("L", (9, 9), 255)), run(model, fidelity=1))


def test_maps_go_with_batches_wrap_alpha_mask_and_the_halves(model: SRModel) -> None:
    images = torch.from_numpy(np.stack([photo(24, 28, k) for k in range(2)])).float() / 255
    maps = torch.zeros(2, 6, 7)
    maps[0, :, 3:] = maps[1, :3] = 1
    same: dict[str, Any] = {"batch_seed": "same", "wrap": True, "steps": 1}
    together = moesr.upscale(model, images, fidelity=maps, **same)
    for k in range(2):
        alone = moesr.upscale(model, images[k : k + 1], fidelity=maps[k], **same)
        assert torch.allclose(together[k], alone[0], atol=2e-3)
    mask = np.zeros((24, 28), np.float32)
    mask[:, :20] = 1
    options: dict[str, Any] = {"fidelity": 0.0, "protect": maps, "mask": mask}
    rgba = torch.cat([images, torch.ones(2, 24, 28, 1)], dim=3)
    whole = moesr.upscale(model, rgba, **options)
    halves = moesr.decode_latents(model, moesr.sample_latents(model, rgba, **options), rgba, **options)
    assert torch.equal(whole, halves)
    assert bool((whole[..., 3] == 1).all())


@pytest.mark.parametrize("model", ["fusion"], indirect=True)
def test_wrong_maps_are_one_line_and_idle_ones_are_said(model: SRModel) -> None:
    for wrong in (np.full((4, 4), 3.0), np.full((4, 4), np.nan), np.ones((3, 4, 4)), np.array(0.5), "face.png"):
        with pytest.raises((SettingError, ImageError), match="fidelity"):
            run(model, fidelity=wrong)
    with pytest.raises(SettingError, match="protect with values from 0 to 2"):
        run(model, protect=np.array([[0.0, 2.0]]), fidelity=0)
    events: list[Event] = []
    run(model, fidelity=1, protect=np.eye(4), callback=events.append)
    assert "protect: fidelity is 1" in events[0].note


@pytest.mark.parametrize("model", ["fusion"], indirect=True)
def test_more_fidelity_is_nearer_to_fidelity_1(model: SRModel) -> None:
    faithful = run(model, fidelity=1)
    distances = [np.abs(run(model, fidelity=w) - faithful).mean() for w in (0, 0.25, 0.5, 0.75, 1)]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] == 0


def test_what_is_invented_is_what_tries_differ_in(model: SRModel) -> None:
    picture, options = photo(16, 16), {"steps": 1, "color_fix": "none"}
    floats = torch.from_numpy(picture)[None].float() / 255
    protect = np.zeros((16, 16))
    protect[:, :10] = 1
    settings: dict[str, Any] = {"fidelity": 0, "protect": protect}
    found = moesr.invention(model, picture, 3, **settings, **options)

    def run(way: int, **changes: Any) -> np.ndarray:
        turned = {**settings, **changes}
        if way and turned["protect"] is not None:
            turned["protect"] = turned["protect"][::-1, ::-1].copy()
        result = moesr.upscale(model, floats.flip(1, 2) if way else floats, **turned, **options)
        return (result.flip(1, 2) if way else result)[0].numpy().astype(float)

    results = np.stack([run(k % 2, seed=k) for k in range(3)])
    added = results
    if model.config.unet.takes_settings:
        added = results - np.stack([run(k % 2, fidelity=1, protect=None) for k in range(3)])
        assert found.spread[0, :, :24].mean() < 0.5 * found.spread[0, :, 48:].mean()
        assert moesr.invention(model, picture, 2, fidelity=1, **options).spread.max() == 0
    spread = found.spread[0]
    assert np.allclose(spread, 255 * np.sqrt(added.var(axis=0, ddof=1).mean(axis=2)), atol=1e-3)
    assert found.share == (spread > 8).mean()
    assert found.draw().shape == (1, 64 + 28, 64, 3)
    hr = photo(64, 64, 1).astype(np.float32) / 255
    error = np.sqrt(((results[0] - hr) ** 2).mean(axis=2))
    ranks = [plane.reshape(8, 8, 8, 8).mean(axis=(1, 3)).ravel().argsort().argsort() for plane in (spread, error)]
    assert correlate_ranks(found.compare_error(hr[None])) == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-3)
    with pytest.raises(SettingError, match="1 seeds"):
        moesr.invention(model, picture, 1)
