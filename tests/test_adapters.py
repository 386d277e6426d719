"""Restore and fidelity as adapters, the cleaner of LR images: nothing at 0, per image, in halves and in files."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import moesr
from moesr.checkpoints.model_files import open_model, save_model
from moesr.errors import CheckpointError
from moesr.model import SRModel
from moesr.networks.adapters import Adapter, spread
from moesr.networks.autoencoder import Autoencoder
from moesr.networks.lr_cleaner import LRCleaner, average_similar, clean_in_parts
from moesr.pipeline import decode_latents, sample_latents
from moesr.progress import Event
from tests.image_files import photo
from tests.small_models import fill_adapters, save_nano

QUICK = {"steps": 2, "color_fix": "none"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adapters")


@pytest.fixture(scope="module")
def path(folder: Path) -> Path:
    return save_nano("residual_shift", folder, restore=True)


@pytest.fixture(scope="module")
def model(path: Path) -> SRModel:
    return moesr.load(path)


def test_each_setting_has_a_change_of_its_own_and_0_adds_nothing() -> None:
    torch.manual_seed(0)
    adapter, x = Adapter(8, 12, (4, 2)), torch.randn(2, 8, 5, 6)
    assert not bool(adapter(x, torch.ones(1, 6, 1, 1)).any())  # new
    fill_adapters(adapter)

    def add(*settings: float) -> torch.Tensor:
        return adapter(x, spread(torch.tensor([settings]), (4, 2))[:, :, None, None])

    assert not bool(add(0, 0).any())
    assert torch.allclose(add(1, 0) + add(0, 1), add(1, 1), atol=1e-5)
    assert torch.allclose(add(0.25, 0), add(1, 0) / 4, atol=1e-5)
    assert add(1, 0).abs().mean().item() > 0.01
    assert not torch.allclose(add(1, 0), add(0, 1), atol=0.01)


def test_at_0_the_model_is_the_one_without_adapters_to_the_byte(model: SRModel, path: Path) -> None:
    files = open_model(path)
    networks = (files.config.unet, files.config.autoencoder)
    unet, autoencoder = (replace(network, adapter_ranks=()) for network in networks)
    config = replace(files.config, unet=unet, autoencoder=autoencoder)
    weights = [{k: v for k, v in part.items() if "adapter" not in k} for part in (*files.experts, files.decoder)]
    plain = path.with_name("plain.safetensors")
    save_model(plain, config, weights[:-1], weights[-1], torch.float32)
    expected = moesr.upscale(moesr.load(plain), photo(12, 13), **QUICK)
    assert np.array_equal(moesr.upscale(model, photo(12, 13), restore=0, fidelity=0, **QUICK), expected)
    for other in ({"restore": 1, "fidelity": 0}, {"restore": 0, "fidelity": 1}):
        moved = moesr.upscale(model, photo(12, 13), **other, **QUICK).astype(float)
        assert np.abs(moved - expected).mean() > 1


def test_images_are_cleaned_in_parts_of_any_size() -> None:
    """The parts do not show; of a seamless image neither do its borders."""
    torch.manual_seed(0)
    cleaner, image, strength = LRCleaner(4), torch.rand(1, 3, 101, 70) * 2 - 1, torch.tensor([0.5])
    assert torch.equal(clean_in_parts(cleaner, image, strength), image)  # new
    fill_adapters(cleaner)
    with torch.no_grad():
        whole = clean_in_parts(cleaner, image, strength)
        assert (whole - image).abs().mean().item() > 0.01
        assert not torch.allclose(whole, clean_in_parts(cleaner, image, 2 * strength), atol=0.01)
        around = clean_in_parts(cleaner, image[..., :100, :], strength, wrap=True)
        moved = clean_in_parts(cleaner, image[..., :100, :].roll((20, 30), (2, 3)), strength, wrap=True)
        assert torch.allclose(around.roll((20, 30), (2, 3)), moved, atol=1e-5)
        flat = torch.full((1, 3, 50, 40), 0.3)
        assert abs((clean_in_parts(cleaner, flat, strength) - flat).mean().item()) < 0.01  # colours do not drift
        parts: list[None] = []
        in_parts = clean_in_parts(cleaner, image, strength, side=32, check=lambda: parts.append(None))
        assert torch.allclose(in_parts, whole, atol=1e-5)
        assert len(parts) == 12  # where a user may cancel
        for wrap in (False, True):
            assert clean_in_parts(cleaner, image[..., :1, :3], strength, wrap=wrap).shape == (1, 3, 1, 3)


def test_every_image_of_a_batch_has_its_own_estimate(model: SRModel) -> None:
    torch.manual_seed(0)
    clean = torch.from_numpy(photo(16, 16)).float() / 255
    pictures = torch.stack([clean, (clean + 0.2 * torch.randn(16, 16, 3)).clamp(0, 1)])
    both = moesr.upscale(model, pictures, batch_seed="same", **QUICK)
    single = [moesr.upscale(model, one[None], batch_seed="same", **QUICK) for one in pictures]
    assert torch.allclose(both, torch.cat(single), atol=1e-3)


def test_the_estimate_is_told_and_a_clean_input_is_left_alone(model: SRModel, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = moesr.upscale(model, photo(12, 13), restore=0, fidelity=0, **QUICK)
    line = "restore 0.25: estimated, since the input is not clean; 0 turns it off"
    for estimate, told in ((0.09, []), (0.25, [line])):
        monkeypatch.setattr(Autoencoder, "estimate_restore", lambda _, lr, value=estimate: torch.tensor([value]))
        events: list[Event] = []
        found = moesr.upscale(model, photo(12, 13), fidelity=0, callback=events.append, **QUICK)
        assert [event.note for event in events if event.note] == told
        assert np.array_equal(found, plain) == (not told)


@pytest.mark.parametrize("restore", ["auto", 0.75])
def test_the_halves_make_what_upscale_makes(model: SRModel, restore: float | str) -> None:
    settings = {"restore": restore, "fidelity": 0.5}
    latents = sample_latents(model, photo(12, 13), steps=2, **settings)
    halves = decode_latents(model, latents, photo(12, 13), color_fix="none", **settings)
    assert np.array_equal(halves, moesr.upscale(model, photo(12, 13), **settings, **QUICK))
    other = decode_latents(model, latents, photo(12, 13), color_fix="none", restore=0, fidelity=0.5)
    assert not np.array_equal(halves, other)  # the decoder has adapters too


def test_what_is_restored_keeps_some_fidelity_if_its_model_says_so(model: SRModel) -> None:
    bound = replace(model.config, restored_fidelity=0.5)
    lenient = copy.copy(model)
    lenient.config = bound
    for asked, acts in ((0.0, 0.25), (0.5, 0.625), (1.0, 1.0)):  # f + (1 - f) restore / 2
        found = moesr.upscale(lenient, photo(12, 13), restore=0.5, fidelity=asked, **QUICK)
        assert np.array_equal(found, moesr.upscale(model, photo(12, 13), restore=0.5, fidelity=acts, **QUICK))
    clean = moesr.upscale(lenient, photo(12, 13), restore=0, fidelity=0, **QUICK)
    assert np.array_equal(clean, moesr.upscale(model, photo(12, 13), restore=0, fidelity=0, **QUICK))


def test_ranks_that_no_file_has_are_one_line(path: Path) -> None:
    files = open_model(path)
    for ranks in ((10**9, 1), (4,), (0, 2)):
        config = replace(files.config, autoencoder=replace(files.config.autoencoder, adapter_ranks=ranks))
        wrong = path.with_name("wrong.safetensors")
        save_model(wrong, config, files.experts, files.decoder, torch.float32)
        with pytest.raises(CheckpointError, match="adapter"):
            open_model(wrong)


def test_non_local_means_take_noise_away_and_keep_edges() -> None:
    clean = torch.where(torch.arange(32) < 16, -0.5, 0.5).expand(1, 3, 32, 32)
    weak, strong = average_similar(clean + 0.05 * torch.randn(clean.shape), (0.005, 0.05)).split(3, dim=1)
    assert (strong - clean).std() < 0.025 < (weak - clean).std()
