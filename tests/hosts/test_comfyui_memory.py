"""The host's memory manager moves our networks: on a card with little memory, which the processor plays (watch.py)."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pytest
import torch

import moesr
from moesr.tiling import estimate_tile_memory
from tests.hosts.comfyui import Comfy, running
from tests.hosts.packs import put_moesr, put_pack
from tests.hosts.prompts import Prompt, three_nodes
from tests.hosts.setup_comfyui import Installation
from tests.small_models import save_nano

#: The default model is 64 MB: 14 an expert, 7 the autoencoder. WORK is what a run of this size wants.
WORK = estimate_tile_memory(moesr.load().config.autoencoder, torch.device("cpu"), 144)
CARD = WORK + 34 * 2**20
LARGEST_TINY = 12 * 2**20  # between its autoencoder, 10.4 MB, and that of the other model, 14.2 MB


@pytest.fixture(scope="module")
def card(installation: Installation, tmp_path_factory: pytest.TempPathFactory, photo: np.ndarray) -> Iterator[Comfy]:
    """A host whose card has room for the default model's decoder and one expert, not for two models."""
    base = tmp_path_factory.mktemp("comfyui_card")
    put_moesr(base, "ComfyUI-MoESR")
    put_pack(base, "zzz-watch")
    (base / "models" / "moesr").mkdir(parents=True)
    save_nano("ddpm", base / "models" / "moesr")
    with running(installation, base, WATCH_CARD=str(CARD)) as host:
        host.put("photo.png", photo)
        yield host


def loads(text: str) -> list[str]:
    return re.findall(r"Requested to load (\w+)", text)


def test_the_card_never_holds_more_than_it_can_and_results_stay_the_same(card: Comfy, photo: np.ndarray) -> None:
    prompt, saved = three_nodes(steps=4, sampler="ddim", tile=192)
    prompt["4"]["inputs"]["tile"] = 192  # the same as without tiles; chosen from so little memory it would be smaller
    (found,) = card.images(card.run(prompt), saved)
    expected = moesr.upscale(moesr.load("tiny", device="cpu"), photo, steps=4, sampler="ddim")
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1
    state = card.watch()
    assert sum(kept["loaded"] for kept in state["loaded"]) <= CARD - WORK
    # Each was asked of the host.
    assert loads(card.text()).count("UNet") >= 4
    assert loads(card.text()).count("Autoencoder") >= 1


def test_two_models_take_turns(card: Comfy) -> None:
    seeds = {"nano_ddpm": 1, "tiny": 1}
    card.run(both(seeds))
    for name in ("nano_ddpm", "tiny", "nano_ddpm", "tiny"):
        seeds[name] += 1
        card.run(both(seeds))
        state = card.watch()
        # The host counts a network that it loads among those that it may unload, so it may take a little more.
        assert sum(kept["loaded"] for kept in state["loaded"]) <= CARD - WORK + 4 * 2**20
        assert sorted(state["models"]) == ["nano_ddpm", "tiny"]
        # The decoder that worked last is there whole; what else there is room for is the host's choice.
        decoders = [kept for kept in state["loaded"] if kept["network"] == "Autoencoder"]
        assert (name == "tiny") in [kept["size"] < LARGEST_TINY for kept in decoders if kept["loaded"] == kept["size"]]
    assert "Unloaded partially" in card.text()


def both(seeds: dict[str, int]) -> Prompt:
    """A prompt with both models, of which only what has another seed than before is run."""
    prompt = Prompt()
    image = prompt.load()
    for name, seed in seeds.items():
        model = prompt.model(model=name)
        samples = prompt.sample(model, image, steps=1, seed=seed)
        prompt.save(prompt.decode(model, samples, image), name)
    return prompt


def test_memory_that_runs_out_halves_the_tile(card: Comfy, photo: np.ndarray) -> None:
    card.post("/watch/fail", {"times": 2})
    prompt, saved = three_nodes(steps=1, seed=99, tile=192)
    (found,) = card.images(card.run(prompt), saved)
    assert found.shape == (96, 144, 3)
    assert card.text().count("MoESR: out of memory") == 2


def test_the_host_takes_its_memory_back(card: Comfy) -> None:
    assert any(kept["loaded"] for kept in card.watch()["loaded"])
    card.post("/watch/unload", {})
    assert not any(kept["loaded"] for kept in card.watch()["loaded"])
    prompt, saved = three_nodes(steps=1, seed=100)
    assert card.images(card.run(prompt), saved)[0].shape == (96, 144, 3)
