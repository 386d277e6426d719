"""What was made fast is what it was: equal to the plain networks, in every mode, and never older than its weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from moesr.evaluation.speed import plain_networks
from moesr.networks import inverted_residual
from moesr.networks.autoencoder import AttnBlock, Autoencoder
from moesr.networks.frequency import AdaptiveFrequencyFilter, AFFBlock, AFFUNet
from moesr.networks.unet import UNet
from tests.small_models import AUTOENCODER, UNET, wear_in

pytestmark = pytest.mark.usefixtures("seeded")


def close(got: Tensor, want: Tensor, tolerance: float = 2e-5) -> None:
    assert got.shape == want.shape
    assert (got - want).abs().max() <= tolerance * want.abs().max()


@pytest.fixture(params=["cache", "tiny"])
def band(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bands as they are, and so small that every image has several."""
    if request.param == "tiny":
        monkeypatch.setattr(inverted_residual, "CPU_BAND", 1)
        monkeypatch.setattr(inverted_residual, "BATCH", 5)


@pytest.mark.usefixtures("band")
@torch.no_grad()
@pytest.mark.parametrize("size", [(4, 4), (16, 7), (37, 20)])
@pytest.mark.parametrize(("channels", "out"), [(32, 32), (32, 64), (64, 32)])
@pytest.mark.parametrize("last", [False, True])
def test_a_frequency_block_is_the_plain_one(size: tuple[int, int], channels: int, out: int, last: bool) -> None:
    block = wear_in(AFFBlock(channels, out))
    x = torch.randn(2, channels, *size)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    before = x.clone()
    close(block(x), plain_networks.frequency_block(block, x))
    assert torch.equal(x, before)


@pytest.mark.usefixtures("band")
@torch.no_grad()
@pytest.mark.parametrize("expansion", [1, 2])
def test_a_filter_block_by_block_is_the_plain_one(expansion: int) -> None:
    layer = AdaptiveFrequencyFilter(32, expansion)
    for x in (torch.randn(2, 32, 9, 12), torch.randn(1, 32, 6, 7).contiguous(memory_format=torch.channels_last)):
        close(layer(x), plain_networks.frequency_filter(layer, x))


@pytest.mark.usefixtures("band")
@torch.no_grad()
def test_the_frequency_unet_is_the_plain_one() -> None:
    network = wear_in(AFFUNet(32))
    x = torch.randn(1, 32, 24, 36)
    close(network(x), plain_networks.frequency_unet(network, x))


@torch.no_grad()
def test_attention_features_and_decoding_are_the_plain_ones() -> None:
    network = Autoencoder(AUTOENCODER)
    wear_in(network)
    block, x = AttnBlock(32), torch.randn(1, 32, 9, 12)
    close(block(x), plain_networks.mid_attention(block, x))
    z, lr = torch.randn(2, 3, 8, 12), torch.rand(2, 3, 32, 48) * 2 - 1
    features = network.features(lr)
    assert features is not None
    close(features, plain_networks.features(network, lr))
    for fidelity in (0.5, 1.0):
        close(network.decode(z, features, fidelity), plain_networks.decode(network, z, features, fidelity), 1e-4)


@torch.no_grad()
def test_a_step_is_the_plain_one_and_its_time_may_be_embedded_before() -> None:
    network = UNet(UNET).eval()
    x, lr, t = torch.randn(2, 3, 16, 24), torch.randn(2, 3, 16, 24), torch.tensor([700, 700])
    want = plain_networks.step(network, x, t, lr)
    close(network(x, t, lr), want)
    close(network(x, network.embed(t[:1], x.dtype), lr), want)


def test_training_is_differentiable_and_uses_the_batch() -> None:
    block = AFFBlock(32, 32)
    x = torch.randn(2, 32, 8, 8, requires_grad=True)
    out = block(x)
    close(out, plain_networks.frequency_block(copy.deepcopy(block), x))
    out.square().sum().backward()
    assert x.grad is not None
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in block.parameters())
    norm = next(layer for layer in block.modules() if isinstance(layer, nn.BatchNorm2d))
    assert norm.num_batches_tracked == 1
    with torch.no_grad():  # still in training mode: statistics of the batch, as before, and they are kept
        close(block(x), plain_networks.frequency_block(copy.deepcopy(block), x))
    assert norm.num_batches_tracked == 2


def test_gradients_in_eval_mode_are_those_of_the_plain_one() -> None:
    block = wear_in(AFFBlock(32, 64))
    x = torch.randn(1, 32, 8, 8, requires_grad=True)
    (ours,) = torch.autograd.grad(block(x).square().sum(), x)
    (want,) = torch.autograd.grad(plain_networks.frequency_block(block, x).square().sum(), x)
    close(ours, want)


@torch.no_grad()
def test_nothing_is_older_than_the_weights() -> None:
    network, other = wear_in(AFFUNet(32)), wear_in(AFFUNet(32))
    x = torch.randn(1, 32, 16, 16)
    first = network(x)
    network.load_state_dict(other.state_dict())
    close(network(x), other(x))
    assert (network(x) - first).abs().max() > 1e-2
    for name, parameter in list(network.named_parameters()):  # as hosts do, which put other parameters in place
        owner = network.get_submodule(name.rpartition(".")[0])
        setattr(owner, name.rpartition(".")[2], nn.Parameter(parameter * 1.1, requires_grad=False))
    close(network(x), plain_networks.frequency_unet(network, x))
    network.double()
    close(network(x.double()), plain_networks.frequency_unet(network, x.double()))


@torch.no_grad()
def test_codes_are_found_in_float32_whatever_the_weights_are() -> None:
    network = wear_in(Autoencoder(AUTOENCODER)).to(torch.bfloat16)
    assert isinstance(network, Autoencoder)
    book = network.quantize.embedding.weight.normal_()
    book[:2] = torch.tensor([[101.0, 0, 0], [100.0, 0, 0]])
    z = torch.tensor([100.4, 0, 0]).view(1, 3, 1, 1).expand(1, 3, 4, 4)  # bfloat16 makes 100.5 of it: half way
    assert bool((network.quantize.indices(z.bfloat16()) == 0).all())
    assert torch.equal(network.decode(z), network.decode(book[1].view(1, 3, 1, 1).expand_as(z)))
