"""Gradients reach what must train, and nothing else, in every stage."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from moesr.networks.autoencoder import Autoencoder
from moesr.networks.space_moe import average_experts
from moesr.training.config import from_dict
from moesr.training.decoder import FCD
from moesr.training.engine import Engine
from moesr.training.experts import Expert
from moesr.training.first_stage import FirstStage
from moesr.training.loop import Task
from moesr.training.unrolled import Unrolled, UnrolledConfig
from tests import training_setup as setup


def batch(kind: str) -> dict[str, Tensor]:
    return torch.utils.data.default_collate([setup.item(i, 4 if kind == "kl" else 3) for i in range(2)])


def copy_state(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in module.state_dict().items()}


def find_changed(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {k for k, v in module.state_dict().items() if not torch.equal(v, before[k])}


def find_changed_parameters(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    """Parameters that changed; buffers of an adversary's spectral norms change whenever it is asked."""
    return find_changed(module, before) & {k for k, _ in module.named_parameters()}


def adversary_of(task: Task) -> nn.Module:
    assert task.adversary is not None
    return task.adversary


def held(optimiser: torch.optim.Optimizer) -> set[int]:
    return {id(p) for group in optimiser.param_groups for p in group["params"]}


def weights_of(module: nn.Module, *prefixes: str) -> set[str]:
    """Parameters below the prefixes. Biases are left out: one that a norm follows may have no gradient at all."""
    return {k for k, p in module.named_parameters() if k.startswith(prefixes) and p.ndim > 1}


def test_an_expert_trains_all_of_its_network(metrics: Path) -> None:
    task = setup.task("expert", metrics, setup.config())
    assert isinstance(task, Expert)
    before = copy_state(task.network)
    for index in range(3):  # the last layer starts at zero, so the others learn from the second step on
        task.step(batch("vq"), index)
    assert held(task.optimiser) == {id(p) for p in task.network.parameters()}
    assert set(before) - find_changed(task.network, before) == set()


def test_every_space_expert_gets_a_gradient_of_its_own(metrics: Path) -> None:
    task = setup.task("expert", metrics, setup.config())
    assert isinstance(task, Expert)
    nn.init.normal_(task.network.get_parameter("out.2.weight"))
    task.loss(batch("vq")).backward()
    first = {k: p.grad for k, p in task.network.named_parameters() if ".moe_blocks.0." in k}
    assert first
    for key, gradient in first.items():
        others = [task.network.get_parameter(key.replace(".moe_blocks.0.", f".moe_blocks.{i}.")).grad for i in range(4)]
        assert all(g is not None and bool(g.any()) for g in others), key
        assert gradient is not None
        assert not any(g is not None and torch.equal(g, gradient) for g in others[1:]), key


@pytest.mark.parametrize("kind", ["vq", "kl"])
def test_the_first_stage_trains_all_but_its_measures(kind: str, metrics: Path) -> None:
    settings = setup.config(kind)
    task = setup.task("first", metrics, settings)
    assert isinstance(task, FirstStage)
    network, adversary, distance = copy_state(task.network), copy_state(adversary_of(task)), copy_state(task.distance)
    task.step(batch(kind), 0)  # before the adversary's start
    assert find_changed(adversary_of(task), adversary) == set()
    for index in (1, 2, 3):
        task.step(batch(kind), index)
    assert held(task.optimiser) == {id(p) for p in task.network.parameters()}
    assert task.opponent is not None
    assert held(task.opponent) == {id(p) for p in adversary_of(task).parameters()}
    assert weights_of(task.network, "") - find_changed(task.network, network) == set()
    assert weights_of(adversary_of(task), "") - find_changed(adversary_of(task), adversary) == set()
    assert find_changed(task.distance, distance) == set()


def test_codes_learn_from_the_commitment_loss_only(metrics: Path) -> None:
    """The straight-through gradient passes the codebook; without its own loss it would stand still."""
    task = setup.task("first", metrics, setup.config("vq"))
    assert isinstance(task, FirstStage)
    out, _, codes = task.reconstruct(batch("vq"))
    out.square().mean().backward(retain_graph=True)
    assert task.network.quantize.embedding.weight.grad is None
    assert task.network.encoder.conv_in.weight.grad is not None
    codes.backward()
    assert task.network.quantize.embedding.weight.grad is not None


@pytest.mark.parametrize(
    ("name", "prefixes"),
    [("fcd", ("decoder.fusion_layer_1.", "decoder.unet_1.")), ("decoder", ("decoder.", "post_quant_conv."))],
)
def test_stage_2_trains_what_it_says_and_nothing_else(name: str, prefixes: tuple[str, ...], metrics: Path) -> None:
    settings = setup.config()
    settings = replace(settings, decoder=replace(settings.decoder, train=name))
    task = setup.task(name, metrics, settings)
    assert isinstance(task, FCD)
    before, adversary = copy_state(task.network), copy_state(adversary_of(task))
    distances = {k: copy_state(v) for k, v in task.distances.items()}
    for index in range(4):
        task.step(batch("vq"), index)
    wanted = {id(p) for k, p in task.network.named_parameters() if k.startswith(prefixes)}
    assert held(task.optimiser) == wanted
    moved = find_changed(task.network, before)
    assert weights_of(task.network, *prefixes) - moved == set()
    assert {k for k in moved if not k.startswith(prefixes)} == set()
    assert any("filter.w1" in k for k in moved)
    assert weights_of(adversary_of(task), "") - find_changed(adversary_of(task), adversary) == set()
    assert all(find_changed(task.distances[k], distances[k]) == set() for k in distances)


@pytest.mark.parametrize("name", ["first", "fcd"])
def test_the_adversary_learns_from_its_own_loss_alone(
    name: str, metrics: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With that loss switched off it stands still, whatever the generator wants of it."""
    monkeypatch.setattr("moesr.training.losses.hinge_discriminator", lambda real, fake: 0 * (real.sum() + fake.sum()))
    task = setup.task(name, metrics, setup.config())
    assert not isinstance(task, Expert)
    adversary, network = copy_state(adversary_of(task)), copy_state(task.network)
    for index in (1, 2):
        task.step(batch("vq"), index)
    assert find_changed_parameters(adversary_of(task), adversary) == set()
    assert find_changed_parameters(task.network, network) != set()


def test_the_generator_does_not_learn_from_the_adversarys_loss(metrics: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all of its own losses switched off it stands still, while the adversary trains."""
    settings = setup.config("vq")
    off = {"frequency_weight": 0.0, "gan_weight": 0.0, "gan_start": 0}
    settings = replace(settings, decoder=replace(settings.decoder, lpips={"alex": 0.0}, **off))
    monkeypatch.setattr("moesr.training.decoder.F.l1_loss", lambda a, b: 0 * (a - b).mean())
    task = setup.task("fcd", metrics, settings)
    assert isinstance(task, FCD)
    adversary = copy_state(adversary_of(task))
    before = {k: p.clone() for k, p in task.network.named_parameters()}
    for index in (0, 1):
        task.step(batch("vq"), index)
    assert [k for k, p in task.network.named_parameters() if not torch.equal(p, before[k])] == []
    assert find_changed_parameters(adversary_of(task), adversary) != set()


def make_unrolled(metrics: Path) -> Unrolled:
    """The last stage of a model with adapters, from experts without."""
    plain = setup.values("kl")
    plain["model"]["autoencoder"]["estimator"] = True
    for part in ("unet", "autoencoder"):
        plain["model"][part]["adapter_ranks"] = [4, 2]
    model = from_dict(plain).model
    expert = setup.task("expert", metrics, setup.config("kl")).network  # type: ignore[union-attr]
    nn.init.normal_(expert.get_parameter("out.2.weight"), std=0.1)
    state = average_experts(expert.state_dict())
    return Unrolled(
        model, UnrolledConfig(lpips={"alex": 1.0}), Engine(torch.device("cpu")), experts=[state, state],
        autoencoder=Autoencoder(model.autoencoder).state_dict(), metrics=metrics,
    )  # fmt: skip


def test_the_image_teaches_every_expert_and_the_decoder(metrics: Path) -> None:
    """The gradient of one image passes all sampling steps; the encoder and the estimator stay as they are."""
    task = make_unrolled(metrics)
    items = {**batch("kl"), "restore": torch.rand(2)}
    before = copy_state(task.network)
    out, _ = task.predict(items, items["restore"], 0.5, [99, 20])
    (out - items["hr"]).abs().mean().backward()
    for network in task.experts:
        assert bool(network.get_parameter("input_blocks.0.0.weight").grad.any())  # type: ignore[union-attr]
        assert bool(network.get_parameter("input_blocks.1.0.in_adapter.up.weight").grad.any())  # type: ignore[union-attr]
    task.optimiser.zero_grad()
    task.step(items, 1)
    moved = find_changed(task.network, before)
    still = weights_of(task.network, "autoencoder.decoder.up.", "experts.") - moved
    assert all("adapter" in name and ".down." in name for name in still)  # the layer behind is still zero
    assert not any(k.startswith(("autoencoder.encoder", "autoencoder.estimator")) for k in moved)


@pytest.mark.parametrize(
    ("name", "kind"), [("first", "vq"), ("expert", "vq"), ("fcd", "vq"), ("first", "kl"), ("unrolled", "kl")]
)
def test_everything_of_a_stage_is_on_its_device(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps and pictures on torch's meta device, which takes no operand from the CPU, as a GPU takes none.

    It has no values: a step that read one would wait for the GPU.
    """

    class Difference(nn.Module):
        def embed(self, image: Tensor) -> list[Tensor]:
            return [image]

        def distance(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
            return (a[0] - b[0]).abs().mean((1, 2, 3))

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.distance([a], [b])

    cpu = Tensor.cpu
    monkeypatch.setattr(Tensor, "cpu", lambda x: torch.zeros(x.shape, dtype=x.dtype) if x.is_meta else cpu(x))
    for module in ("first_stage", "decoder", "experts", "loop", "unrolled", "perceptual"):
        monkeypatch.setattr(f"moesr.training.{module}.autocast", lambda *_: nullcontext())  # meta knows no autocast
        monkeypatch.setattr(f"moesr.training.{module}.LPIPS", lambda *_: Difference(), raising=False)
    task = make_unrolled(Path()) if name == "unrolled" else setup.task(name, Path(), setup.config(kind))
    if isinstance(task, FirstStage) and kind == "kl":
        task.guide = torch.randn(4, 3, 4, 4)
    task.to(torch.device("meta"))
    items = {k: v.to("meta") for k, v in {**batch(kind), "restore": torch.rand(2)}.items()} | {"index": torch.arange(2)}
    for index in range(2):
        task.step(items, index)
    assert name == "expert" or task.pictures(items).is_meta  # type: ignore[union-attr]
