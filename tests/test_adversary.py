"""Adversaries of the decoder: what they score, and that they learn to tell."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from moesr.training.adversary import FeatureDiscriminator, PatchDiscriminator, augment_pair
from moesr.training.losses import hinge_discriminator


def features(scale: float, generator: torch.Generator) -> list[Tensor]:
    """Unit-length features of two scales; `scale` is how much their channels go together."""
    out = []
    for channels, side in ((8, 16), (16, 8)):
        noise = torch.randn(6, channels, side, side, generator=generator)
        out.append(F.normalize(noise + scale * noise.mean(1, keepdim=True), dim=1))
    return out


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


def test_a_pair_is_augmented_alike() -> None:
    torch.manual_seed(0)
    image = torch.rand(16, 3, 32, 32) * 2 - 1
    a, b = augment_pair(image, image + 0.125)
    assert (a != image).flatten(1).any(1).sum() > 8
    inside = (a - b).abs() > 1e-6  # outside of holes and borders
    change = (b - a)[inside]
    assert change.min() > 0
    assert change.max() < 0.25
