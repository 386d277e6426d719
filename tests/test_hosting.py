"""moesr/hosting: networks in a host's memory manager, with a keeper that only counts, and facts about models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import moesr
from moesr.diffusion.noise import draw_noise, make_generators
from moesr.errors import MoESRError
from moesr.hosting.model_facts import ModelFacts, plan_steps
from moesr.hosting.networks import Keeper, Networks, NetworkSource, NetworkView
from moesr.hosting.sigma_model import SigmaModel
from tests.small_models import save_nano

SIZE = 100


class CountingKeeper(Keeper):
    """A device with room for `room` networks of 100 bytes, and a host that moves them."""

    def __init__(self, room: int) -> None:
        super().__init__(torch.device("cpu"), torch.device("cpu"))
        self.room, self.loaded, self.built = room, [], 0

    def choose_dtype(self, parameters: int, *, decoder: bool) -> torch.dtype:
        return torch.float32

    def register(self, network: nn.Module) -> Any:
        self.built += 1
        return network

    def load(self, handles: Sequence[Any], *, others: Sequence[Any], working: int) -> None:
        assert not set(handles) & set(others)
        self.loaded = [*handles, *(other for other in others if other in self.loaded)][: self.room]
        assert len(handles) <= self.room

    def make_room(self, needed: int) -> None:
        self.asked = needed

    def measure_free_memory(self) -> int:
        return int(1.2 * SIZE * (self.room - len(self.loaded)))

    def unload(self, handles: Sequence[Any]) -> None:
        self.loaded = []

    def check(self) -> None:
        raise KeyboardInterrupt

    def is_out_of_memory(self, error: BaseException) -> bool:
        return isinstance(error, ArithmeticError) or super().is_out_of_memory(error)


class Part(nn.Module):
    def __init__(self, i: int) -> None:
        super().__init__()
        self.i = i


def make(room: int, residency: str) -> tuple[Networks, CountingKeeper]:
    """Three experts and a decoder."""
    keeper = CountingKeeper(room)
    sources = [NetworkSource(SIZE, lambda device, i=i: Part(i)) for i in range(4)]
    return Networks(sources, keeper, residency), keeper


def run(networks: Networks, keeper: CountingKeeper) -> list[list[int]]:
    """What is loaded while each expert and then the decoder work; each tells the next, as an ExpertBank does."""
    view, loaded = NetworkView(networks), []
    for i in (2, 1, 0):
        with view.use(i) as network:
            if i:
                view.prefetch(i - 1)
            assert isinstance(network, Part)
            assert network.i == i
            loaded.append(sorted(part.i for part in keeper.loaded))
    with NetworkView(networks, networks.decoder).use(0):
        loaded.append(sorted(part.i for part in keeper.loaded))
    return loaded


@pytest.mark.parametrize(
    ("residency", "room", "expected"),
    [
        ("auto", 1, [[2], [1], [0], [3]]),
        ("auto", 2, [[1, 2], [1, 2], [0, 2], [2, 3]]),
        ("all", 4, [[0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 1, 2, 3]]),
        ("one at a time", 4, [[2], [1], [0], [3]]),
    ],
)
def test_what_is_loaded_when(residency: str, room: int, expected: list[list[int]]) -> None:
    networks, keeper = make(room, residency)
    networks.begin_run(0)
    assert run(networks, keeper) == expected
    assert len(networks.handles()) == {"one at a time": 1}.get(residency, 4)


def test_after_out_of_memory_networks_come_back_when_they_are_used() -> None:
    networks, keeper = make(2, "auto")
    networks.begin_run(30)
    with networks.use(0):
        networks.release()
        assert keeper.loaded == []
    with networks.use(0):
        assert [part.i for part in keeper.loaded] == [0]
    assert keeper.built == 1
    networks.close()
    with networks.use(0):
        assert keeper.built == 2


def test_a_run_asks_the_host() -> None:
    networks, keeper = make(2, "auto")
    networks.begin_run(30)
    assert networks.free_memory(keeper.device) == 2.4 * SIZE - SIZE
    assert keeper.asked == SIZE + 2 * 30
    assert networks.is_out_of_memory(ArithmeticError())
    assert networks.is_out_of_memory(MemoryError())
    assert not networks.is_out_of_memory(ValueError())
    with pytest.raises(KeyboardInterrupt):
        networks.check()


@pytest.mark.parametrize("nano", ["residual_shift"], indirect=True)
def test_models_are_looked_into_once_until_they_change(nano: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOESR_HOME", str(nano.parent))
    models = ModelFacts()
    assert nano.stem in models.list_names()
    assert models.default in models.list_names()
    assert models.read_config(nano.stem) is models.read_config(nano.stem)
    digest = models.compute_hash(nano.stem)
    assert len(digest) == 16
    plan = plan_steps(models.read_config(nano.stem))
    assert plan.experts == [3, 2, 1, 0]
    lines = ["4 steps, 4 experts at work", f"expert 3: step 1 (t {plan.timesteps[0]})"]
    assert plan.describe().splitlines()[:2] == lines
    assert plan.noise == sorted(plan.noise, reverse=True)
    assert 0 < min(plan.noise) < max(plan.noise) <= 1
    with pytest.raises(MoESRError):
        plan_steps(models.read_config(nano.stem), steps=1001)
    (nano.parent / "broken.safetensors").write_bytes(b"not one")
    with pytest.raises(MoESRError, match=r"^broken: ") as raised:
        models.read_config("broken")
    (nano.parent / "broken.safetensors").unlink()
    assert str(nano.parent) not in str(raised.value)


@pytest.mark.parametrize("process", ["ddpm", "residual_shift"])
def test_a_step_of_euler_in_sigmas_is_one_of_ddim(process: str, tmp_path: Path) -> None:
    model = moesr.load(save_nano(process, tmp_path, restore=True), device="cpu")
    images = torch.rand(2, 12, 20, 3)
    waiting = SigmaModel(model, images, steps=3, tile=64, restore=0.5)
    noise = draw_noise(make_generators(7, "per_image", range(2)), waiting.shape[1:], torch.device("cpu"))
    first = waiting.schedule[0]
    x = noise * ((1 + first**2).sqrt() if process == "ddpm" else first)
    with torch.inference_mode():
        for sigma, after in zip(waiting.schedule.tolist(), waiting.schedule[1:].tolist()):
            clean = waiting.denoise(x, sigma)
            x = clean + (x - clean) * (after / sigma)
    settings: dict[str, Any] = {
        "steps": 3,
        "sampler": "ddim",
        "eta": 0.0,
        "seed": 7,
        "tile": 64,
        "restore": 0.5,
        "fidelity": 0,
    }
    expected = moesr.sample_latents(model, images, **settings)
    assert torch.allclose(waiting.to_latent(x), expected, atol=1e-3)
    assert torch.allclose(waiting.to_latent(waiting.from_latent(expected)), expected, atol=1e-5)
