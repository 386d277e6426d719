"""Adversaries of the decoder: what they score, and that they learn to tell."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moesr.errors import SettingError
from moesr.training.adversary import FeatureDiscriminator, PatchDiscriminator
from moesr.training.decoder import DecoderConfig, _adversary
from moesr.training.latents import LatentCrops
from moesr.training.losses import hinge_discriminator


def features(scale: float, generator: torch.Generator) -> list[Tensor]:
    """Unit-length features of two scales; `scale` is how much their channels go together."""
    out = []
    for channels, side in ((8, 16), (16, 8)):
        noise = torch.randn(6, channels, side, side, generator=generator)
        out.append(F.normalize(noise + scale * noise.mean(1, keepdim=True), dim=1))
    return out


def test_scores_of_features_are_those_of_all_scales() -> None:
    network = FeatureDiscriminator((8, 16), channels=4)
    scores = network(features(0.0, torch.Generator().manual_seed(0)))
    assert scores.shape == (6, 16 * 16 + 8 * 8)
    assert scores.dtype == torch.float32


def test_an_adversary_of_features_learns_to_tell() -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    network = FeatureDiscriminator((8, 16), channels=16)
    optimiser = torch.optim.Adam(network.parameters(), 2e-3)
    losses = []
    for _ in range(60):
        loss = hinge_discriminator(network(features(0.0, generator)), network(features(4.0, generator)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] > 0.9
    assert sum(losses[-5:]) / 5 < 0.5


def test_a_patch_adversary_scores_patches_and_knows_no_batch() -> None:
    network = PatchDiscriminator(8).eval()
    images = torch.randn(3, 3, 64, 64)
    scores = network(images)
    assert scores.shape == (3, 1, 6, 6)
    torch.testing.assert_close(network(images[:1]), scores[:1], atol=1e-5, rtol=1e-4)


def test_an_adversary_that_cannot_be_had_is_said() -> None:
    with pytest.raises(SettingError, match="sound"):
        _adversary(DecoderConfig(judged="sound"))
    with pytest.raises(SettingError, match="vgg"):
        _adversary(DecoderConfig(judged="features", lpips={"alex": 1.0}))
    with pytest.raises(SettingError, match="alternate"):
        _adversary(DecoderConfig(judged="features", lpips={"vgg": 1.0}, alternate=True))


def test_crops_with_detail_are_preferred() -> None:
    lr = torch.zeros(1, 3, 32, 32)
    lr[..., :16] = torch.rand(1, 3, 32, 16)  # the other half is flat
    tensors, rates = {"z": torch.zeros(1, 2, 32, 32), "lr": lr}, {"z": 1, "lr": 1}

    def flat(choices: int) -> int:
        crops = LatentCrops(tensors, rates, 8, 200, seed=3, choices=choices)
        assert torch.equal(crops[5]["lr"], crops[5]["lr"])
        return sum(not crops[i]["lr"].any() for i in range(200))

    once, twice = flat(1), flat(2)
    assert once > 50  # 9 of 25 places, about 72 of 200
    assert twice < once / 2
