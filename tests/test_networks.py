"""Networks: bounded memory, any number of tokens, weights that stay where the optimiser looks, and low precision."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from moesr.evaluation.speed.measure import peak, read_anonymous_bytes
from moesr.networks import autoencoder, layers
from moesr.networks.autoencoder import AttnBlock, Autoencoder, Codebook
from moesr.networks.frequency import AdaptiveFrequencyFilter
from moesr.networks.space_moe import SpaceMoE, average_experts, exchange_weights
from moesr.networks.unet import AttentionBlock as UNetAttention
from moesr.networks.unet import UNet
from tests.small_models import AUTOENCODER, UNET, Largest, wear_in

pytestmark = pytest.mark.usefixtures("seeded")


def relative(got: Tensor, want: Tensor) -> float:
    """Root mean square of the difference, as a part of that of `want`."""
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


# Attention


@pytest.mark.parametrize("tokens", [256, 300, 1000])
def test_attention_in_chunks_is_attention(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    q, k, v = torch.randn(3, 2, 4, tokens, 8, dtype=torch.float64).unbind()
    weights = (q @ k.transpose(-1, -2) * 8**-0.5).softmax(-1)
    whole = layers.attention(q, k, v)
    monkeypatch.setattr(layers, "ATTENTION_ENTRIES", 1)
    chunked = layers.attention(q, k, v)
    torch.testing.assert_close(whole, weights @ v, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(chunked, whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-3)])
def test_attention_with_a_wide_head_is_attention(dtype: torch.dtype, tolerance: float) -> None:
    """On a CPU it takes another way, with scores in float32: those of bfloat16 would be off by five times as much."""
    q, k, v = torch.randn(3, 1, 1, 2048, 256).mul(2).to(dtype).unbind()
    with torch.inference_mode():
        found = layers.attention(q, k, v)
    weights = (q.double() @ k.double().transpose(-1, -2) / 16).softmax(-1)
    wanted = weights @ v.double()
    assert (found.double() - wanted).norm() < tolerance * wanted.norm()


@pytest.mark.skipif(read_anonymous_bytes() is None, reason="the system does not tell")
@pytest.mark.parametrize("block", [UNetAttention(96, 32, 16), AttnBlock(96, 16)])
def test_attention_of_a_block_never_holds_the_matrix(block: nn.Module) -> None:
    """Its tokens lie with a stride, for which torch's choice is the matrix: here 64 MiB a head."""
    x = torch.randn(1, 96, 64, 64)
    with torch.inference_mode():
        block(x[..., :8, :8])
        with peak(torch.device("cpu")) as taken:
            block(x)
    assert taken.bytes is not None
    assert taken.bytes < 32 * 2**20


def test_a_run_can_be_stopped_between_chunks_of_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the latent of a large tile one attention takes longer than anyone waits for a run to end."""
    monkeypatch.setattr(layers, "ATTENTION_ENTRIES", 1)
    asked: list[str] = []
    handle = register_module_forward_pre_hook(lambda layer, _: asked.append(type(layer).__name__))
    try:
        layers.attention(*torch.randn(3, 1, 1, 700, 4))
    finally:
        handle.remove()
    assert len(asked) == 3


def test_attention_is_held_in_chunks_where_no_kernel_fuses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = 64 * 64
    monkeypatch.setattr(layers, "ATTENTION_ENTRIES", 256 * tokens)
    block = AttnBlock(32).to("meta")  # no fused kernel on this device: the whole matrix would be made
    x = torch.zeros(1, 32, 64, 64, device="meta")
    with torch.no_grad(), Largest() as seen:
        block(x)
    assert 256 * tokens <= seen.entries < tokens * tokens / 8
    monkeypatch.setattr(layers, "ATTENTION_ENTRIES", tokens * tokens)
    with torch.no_grad(), Largest() as seen:
        block(x)
    assert seen.entries >= tokens * tokens  # so the measure sees what is measured


# Codebook


def test_codes_found_in_chunks_are_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    book = Codebook(50, 3)
    nn.init.normal_(book.embedding.weight)
    z = torch.randn(2, 3, 9, 7)
    distance = torch.cdist(z.movedim(1, -1).reshape(-1, 3).double(), book.embedding.weight.detach().double())
    whole = book.indices(z)
    assert torch.equal(whole, distance.argmin(1).view(2, 9, 7))
    monkeypatch.setattr(autoencoder, "DISTANCE_ENTRIES", 50 * 4)
    assert torch.equal(book.indices(z), whole)
    torch.testing.assert_close(book(z)[1, :, 4, 5], book.embedding.weight[whole[1, 4, 5]])


def test_distances_to_all_codes_are_never_held(monkeypatch: pytest.MonkeyPatch) -> None:
    book, cells = Codebook(8192, 3), 64 * 64
    monkeypatch.setattr(autoencoder, "DISTANCE_ENTRIES", 128 * 8192)
    with Largest() as seen:
        book.indices(torch.randn(1, 3, 64, 64))
    assert 128 * 8192 <= seen.entries < cells * 8192 / 8


# Space MoE


def token_by_token(layer: SpaceMoE, x: Tensor, permutation: Tensor) -> Tensor:
    """The definition: token permutation[j] meets the expert of the group that j falls in, groups as even as can be."""
    tokens, experts = len(permutation), len(layer.moe_blocks)
    share, more = divmod(tokens, experts)
    sizes = [share + (i < more) for i in range(experts)]
    owner = [i for i, size in enumerate(sizes) for _ in range(size)]
    flat = x.flatten(2)
    out = flat.clone()
    for j, token in enumerate(permutation.tolist()):
        out[:, :, token] += layer.moe_blocks[owner[j]](layer.moe_norm(flat[:, :, token]))
    return out.view_as(x)


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (2, 2), (3, 5), (4, 8)])
@torch.no_grad()
def test_any_number_of_tokens_is_shared_out(size: tuple[int, int]) -> None:
    layer = wear_in(SpaceMoE(32, 4))
    x = torch.randn(2, 32, *size)
    permutation = torch.randperm(size[0] * size[1])
    torch.testing.assert_close(layer(x, permutation), token_by_token(layer, x, permutation))


def test_fewer_tokens_than_experts_train() -> None:
    layer = SpaceMoE(32, 4)
    layer(torch.randn(1, 32, 1, 3)).sum().backward()
    grads = [block[0].weight.grad for block in layer.moe_blocks]  # type: ignore[index]
    assert all(g is not None and g.isfinite().all() for g in grads)
    assert [bool(g.any()) for g in grads if g is not None] == [True, True, True, False]


@torch.no_grad()
def test_shuffle_is_drawn_anew_unless_given() -> None:
    layer = wear_in(SpaceMoE(32, 4))
    x = torch.randn(1, 32, 4, 4)
    assert not torch.equal(layer(x), layer(x))
    averaged = SpaceMoE(32, 1)
    averaged.load_state_dict(average_experts(layer.state_dict()))
    assert torch.equal(averaged(x), averaged(x))


def test_averaging_twice_is_averaging_once() -> None:
    weights = wear_in(UNet(replace(UNET, space_experts=3))).state_dict()
    once = average_experts(weights)
    twice = average_experts(once)
    assert set(once) == set(UNet(UNET).state_dict())
    assert set(twice) == set(once)
    assert all(torch.equal(twice[k], v) for k, v in once.items())
    key = "middle_block.2.moe_blocks.{}.3.weight"
    mean = torch.stack([weights[key.format(i)] for i in range(3)]).mean(0)
    torch.testing.assert_close(once[key.format(0)], mean)


def test_exchange_is_in_place_so_that_training_goes_on() -> None:
    network = UNet(replace(UNET, space_experts=4))
    before = {k: v.clone() for k, v in network.state_dict().items()}
    held = list(network.parameters())
    optimiser = torch.optim.SGD(held, lr=0.1)
    exchange_weights(network, gamma=0.9)
    assert all(a is b for a, b in zip(held, network.parameters()))
    key = "middle_block.2.moe_blocks.{}.0.weight"
    others = (before[key.format(0)] + before[key.format(1)] + before[key.format(3)]) / 3
    torch.testing.assert_close(network.state_dict()[key.format(2)], 0.9 * before[key.format(2)] + 0.1 * others)
    exchanged = {k: v.clone() for k, v in network.state_dict().items()}
    assert all(torch.equal(exchanged[k], v) for k, v in before.items() if "moe_blocks" not in k)
    network(torch.randn(1, 6, 8, 8), torch.tensor([5])).square().sum().backward()
    optimiser.step()
    assert all(not torch.equal(network.state_dict()[k], v) for k, v in exchanged.items() if "moe_blocks" in k)


# Decoder


@torch.no_grad()
def test_decoded_image_depends_on_neither_neighbours_nor_seed() -> None:
    network = wear_in(Autoencoder(AUTOENCODER))
    z, lr = torch.randn(3, 3, 8, 12), torch.randn(3, 3, 32, 48)
    z[1:] *= 4  # neighbours with other statistics
    together = network.decode(z, network.features(lr))
    torch.manual_seed(99)
    alone = network.decode(z[:1], network.features(lr[:1]))
    assert relative(together[:1], alone) < 1e-5
    torch.manual_seed(100)
    assert torch.equal(network.decode(z[:1], network.features(lr[:1])), alone)


@torch.no_grad()
def test_frequency_filter_computes_in_float32_under_autocast() -> None:
    block = wear_in(AdaptiveFrequencyFilter(32))
    x = torch.randn(1, 32, 9, 12)
    want = block(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(block(x), want)
        low = block(x.bfloat16())
    assert low.dtype == torch.bfloat16
    assert relative(low, want) < 0.01
