"""Gradients reach what must train, and nothing else, in every stage."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from moesr.training.decoder import FCD
from moesr.training.experts import Expert
from moesr.training.first_stage import FirstStage
from moesr.training.joint import Joint
from tests import training_setup as setup


@pytest.fixture(scope="module")
def metrics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return setup.write_metrics(tmp_path_factory.mktemp("weights") / "metrics")


def batch(kind: str) -> dict[str, Tensor]:
    return torch.utils.data.default_collate([setup.Items(4 if kind == "kl" else 3)[i] for i in range(2)])


def copied(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in module.state_dict().items()}


def changed(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {k for k, v in module.state_dict().items() if not torch.equal(v, before[k])}


def trained(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    """Parameters that changed; buffers of an adversary's spectral norms change whenever it is asked."""
    return changed(module, before) & {k for k, _ in module.named_parameters()}


def held(optimiser: torch.optim.Optimizer) -> set[int]:
    return {id(p) for group in optimiser.param_groups for p in group["params"]}


def weights_of(module: nn.Module, *prefixes: str) -> set[str]:
    """Parameters below the prefixes. Biases are left out: one that a norm follows may have no gradient at all."""
    return {k for k, p in module.named_parameters() if k.startswith(prefixes) and p.ndim > 1}


def test_an_expert_trains_all_of_its_network(metrics: Path) -> None:
    task = setup.task("expert", metrics, setup.config())
    assert isinstance(task, Expert)
    before = copied(task.network)
    for index in range(3):  # the last layer starts at zero, so the others learn from the second step on
        task.step(batch("vq"), index)
    assert held(task.optimiser) == {id(p) for p in task.network.parameters()}
    assert set(before) - changed(task.network, before) == set()


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
    network, adversary, distance = copied(task.network), copied(task.adversary), copied(task.distance)
    task.step(batch(kind), 0)  # before the adversary's start
    assert changed(task.adversary, adversary) == set()
    for index in (1, 2, 3):
        task.step(batch(kind), index)
    assert held(task.optimiser) == {id(p) for p in task.network.parameters()}
    assert held(task.opponent) == {id(p) for p in task.adversary.parameters()}
    assert weights_of(task.network, "") - changed(task.network, network) == set()
    assert weights_of(task.adversary, "") - changed(task.adversary, adversary) == set()
    assert changed(task.distance, distance) == set()


def test_codes_learn_from_the_commitment_loss_only(metrics: Path) -> None:
    """The straight-through gradient passes the codebook; without its own loss it would stand still."""
    task = setup.task("first", metrics, setup.config("vq"))
    assert isinstance(task, FirstStage)
    out, _, codes = task.reconstruct(batch("vq"), 1)
    out.square().mean().backward(retain_graph=True)
    assert task.network.quantize.embedding.weight.grad is None
    assert task.network.encoder.conv_in.weight.grad is not None
    codes.backward()
    assert task.network.quantize.embedding.weight.grad is not None


@pytest.mark.parametrize(
    ("name", "kind", "prefixes"),
    [
        ("fcd", "vq", ("decoder.fusion_layer_1.", "decoder.unet_1.")),
        ("decoder", "vq", ("decoder.", "post_quant_conv.")),
        ("joint", "kl", ("decoder.", "post_quant_conv.")),
    ],
)
def test_stage_2_trains_what_it_says_and_nothing_else(
    name: str, kind: str, prefixes: tuple[str, ...], metrics: Path
) -> None:
    settings = setup.config(kind)
    settings = replace(settings, decoder=replace(settings.decoder, train=name))
    task = setup.task(name, metrics, settings)
    assert isinstance(task, FCD)
    before, adversary = copied(task.network), copied(task.adversary)
    distances = {k: copied(v) for k, v in task.distances.items()}
    experts = copied(task.expert) if isinstance(task, Joint) else {}
    for index in range(4):
        task.step(batch(kind), index)
    wanted = {id(p) for k, p in task.network.named_parameters() if k.startswith(prefixes)}
    if isinstance(task, Joint):
        assert set(experts) - changed(task.expert, experts) == set()
        wanted |= {id(p) for p in task.expert.parameters()}
    assert held(task.optimiser) == wanted
    moved = changed(task.network, before)
    assert weights_of(task.network, *prefixes) - moved == set()
    assert {k for k in moved if not k.startswith(prefixes)} == set()
    assert any("filter.w1" in k for k in moved)
    assert weights_of(task.adversary, "") - changed(task.adversary, adversary) == set()
    assert all(changed(task.distances[k], distances[k]) == set() for k in distances)


def test_a_first_stage_without_the_lr_image_trains_the_last_layer_too(metrics: Path) -> None:
    settings = setup.config("vq")
    model = replace(settings.model, autoencoder=replace(settings.model.autoencoder, lr_skip=True))
    task = setup.task("fcd", metrics, replace(settings, model=model))
    assert isinstance(task, FCD)
    before = copied(task.network)
    for index in range(3):
        task.step(batch("vq"), index)
    prefixes = ("decoder.fusion_layer_1.", "decoder.unet_1.", "decoder.conv_out.")
    moved = changed(task.network, before)
    assert weights_of(task.network, *prefixes) - moved == set()
    assert {k for k in moved if not k.startswith(prefixes)} == set()


@pytest.mark.parametrize("name", ["first", "fcd", "joint"])
def test_the_adversary_learns_from_its_own_loss_alone(
    name: str, metrics: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With that loss switched off it stands still, whatever the generator wants of it."""
    kind = "kl" if name == "joint" else "vq"
    monkeypatch.setattr("moesr.training.losses.hinge_discriminator", lambda real, fake: 0 * (real.sum() + fake.sum()))
    task = setup.task(name, metrics, setup.config(kind))
    assert not isinstance(task, Expert)
    adversary, network = copied(task.adversary), copied(task.network)
    for index in (1, 2):
        task.step(batch(kind), index)
    assert trained(task.adversary, adversary) == set()
    assert trained(task.network, network) != set()


def test_the_generator_does_not_learn_from_the_adversarys_loss(metrics: Path) -> None:
    """With all of its own losses switched off it stands still, while the adversary trains."""
    settings = setup.config("vq")
    off = {"l1_weight": 0.0, "frequency_weight": 0.0, "consistency": 0.0, "gan_weight": 0.0, "gan_start": 0}
    settings = replace(settings, decoder=replace(settings.decoder, lpips={"alex": 0.0}, **off))
    task = setup.task("fcd", metrics, settings)
    assert isinstance(task, FCD)
    adversary = copied(task.adversary)
    before = {k: p.clone() for k, p in task.network.named_parameters()}
    for index in (0, 1):
        task.step(batch("vq"), index)
    assert [k for k, p in task.network.named_parameters() if not torch.equal(p, before[k])] == []
    assert trained(task.adversary, adversary) != set()


def test_the_image_teaches_the_last_expert(metrics: Path) -> None:
    """Joint training: the gradient of L1 on the image passes the latent, in both of its branches."""
    task = setup.task("joint", metrics, setup.config("kl"))
    assert isinstance(task, Joint)
    nn.init.normal_(task.expert.get_parameter("out.2.weight"))
    items = batch("kl")
    for seed in range(4):  # rand < 0.5 in some of them and not in others
        torch.manual_seed(seed)
        task.expert.zero_grad()
        (task.predict(items) - items["hr"]).abs().mean().backward()
        assert all(p.grad is not None for p in task.expert.parameters())
        assert bool(task.expert.input_blocks[0][0].weight.grad.any())  # type: ignore[union-attr, index]


def test_batches_at_fidelity_0_leave_lr_fusion_alone(metrics: Path) -> None:
    settings = setup.config("kl")
    task = setup.task("joint", metrics, replace(settings, decoder=replace(settings.decoder, generative=1.0)))
    assert isinstance(task, Joint)
    before = copied(task.network)
    for index in range(3):
        task.step(batch("kl"), index)
    moved = changed(task.network, before)
    assert any(k.startswith("decoder.unet_1.") for k in moved)
    assert not any(k.startswith("decoder.fusion_layer_1.") for k in moved)


def test_a_smooth_latent_learns_to_stay_smooth(metrics: Path) -> None:
    """The loss is that of the decoder alone: it reaches no expert, and falls if it is all there is."""
    settings = setup.config("kl", lr=1e-3)
    task = setup.task("joint", metrics, replace(settings, decoder=replace(settings.decoder, smooth_weight=1.0)))
    assert isinstance(task, Joint)
    nn.init.normal_(task.network.decoder.conv_out.weight, std=0.05)
    items, distances = batch("kl"), []
    for _ in range(40):
        task.optimiser.zero_grad()
        _, smooth = task.forward(items, 1.0)
        assert smooth is not None
        smooth.backward()
        assert all(p.grad is None for p in task.expert.parameters())
        task.optimiser.step()
        distances.append(smooth.item())
    assert distances[-1] < 0.5 * distances[0]


@pytest.mark.parametrize(("name", "kind"), [*setup.TASKS.items(), ("first", "kl")])
def test_everything_of_a_stage_is_on_its_device(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps and pictures on torch's meta device, which takes no operand from the CPU, as a GPU takes none."""

    class Difference(nn.Module):
        def embed(self, image: Tensor) -> list[Tensor]:
            return [image]

        def distance(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
            return (a[0] - b[0]).abs().mean((1, 2, 3))

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.distance([a], [b])

    item, cpu = Tensor.item, Tensor.cpu
    monkeypatch.setattr(Tensor, "item", lambda x: 0.5 if x.is_meta else item(x))
    monkeypatch.setattr(Tensor, "cpu", lambda x: torch.zeros(x.shape, dtype=x.dtype) if x.is_meta else cpu(x))
    for module in ("first_stage", "decoder", "experts"):
        monkeypatch.setattr(f"moesr.training.{module}.autocast", lambda *_: nullcontext())  # meta knows no autocast
        monkeypatch.setattr(f"moesr.training.{module}.LPIPS", lambda *_: Difference(), raising=False)
    task = setup.task(name, Path(), setup.config(kind))
    if isinstance(task, FirstStage) and kind == "kl":
        task.guide = torch.randn(4, 3, 4, 4)
    task.to(torch.device("meta"))
    items = {k: v.to("meta") for k, v in batch(kind).items()} | {"index": torch.arange(2)}
    for index in range(2):  # of which joint training adds noise again in the first
        torch.manual_seed(index)
        task.step(items, index)
    assert name == "expert" or task.pictures(items).is_meta  # type: ignore[union-attr]
