"""A run as its artist sees it: progress, previews, cancelling, and a host that stays as small after many runs."""

from __future__ import annotations

import io
import json
import time
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import moesr
from tests.hosts.comfyui import Comfy
from tests.hosts.packs import ROOT
from tests.hosts.prompts import Prompt, three_nodes, upscale


def messages(comfy: Comfy, prompt: Prompt) -> list[Any]:
    """All that the websocket says of a run: (type, data) for JSON, bytes for pictures."""
    with comfy.listening() as socket:
        prompt_id = comfy.queue(prompt)
        heard: list[Any] = []
        while True:
            said = socket.recv()
            if isinstance(said, bytes):
                heard.append(said)
                continue
            message = json.loads(said)
            data = message.get("data", {})
            heard.append((message["type"], data))
            over = message["type"] in ("execution_success", "execution_error", "execution_interrupted")
            if over and data["prompt_id"] == prompt_id:
                return heard


@pytest.fixture(scope="module")
def heard(comfy: Comfy) -> list[Any]:
    """Of a run of three nodes: six steps, many tiles, long enough for several messages on a fast machine too."""
    rng = np.random.default_rng(1)
    small = Image.fromarray(rng.integers(0, 255, (12, 18, 3), np.uint8))
    comfy.put("many_tiles.png", np.asarray(small.resize((144, 96), Image.Resampling.BICUBIC)))
    prompt, _ = three_nodes("many_tiles.png", steps=6, tile=64, seed=11)
    prompt["4"]["inputs"]["tile"] = 64
    return messages(comfy, prompt)


def test_progress_rises_to_its_end(heard: list[Any]) -> None:
    for node in ("3", "4"):
        steps = [m[1] for m in heard if m[0] == "progress" and m[1]["node"] == node]
        values = [step["value"] for step in steps]
        assert len(values) > 3
        assert values == sorted(values)
        assert steps[-1]["value"] == steps[-1]["max"]
        assert len({step["max"] for step in steps}) <= 2


def test_the_page_is_told_tile_step_expert_seconds_left_and_the_plan(heard: list[Any]) -> None:
    told = [m[1] for m in heard if m[0] == "moesr.step"]
    samples = [data for data in told if data["node"] == "3"]
    assert {data["type"] for data in samples} == {"MoESRSampler"}
    steps = [(data["step"], data["expert"]) for data in samples if data["phase"] == "sample"]
    assert {(1, 3), (6, 0)} <= set(steps)
    assert [step for step, _ in steps] == sorted(step for step, _ in steps)
    assert {step for step, _ in steps} == {1, 2, 3, 4, 5, 6}
    assert max(data["tiles"] for data in told if data["phase"] == "decode") > 1
    left = [data["left"] for data in samples if data["phase"] == "sample" and "left" in data]
    assert 0 <= left[-1] <= max(left)
    assert samples[-1]["phase"] == "done"
    plan = next(data for data in samples if data.get("experts"))
    assert len(plan["experts"]) == len(plan["noise"]) == 6
    assert plan["experts"] == sorted(plan["experts"], reverse=True)


def test_a_preview_of_each_step_arrives(heard: list[Any]) -> None:
    pictures = [m for m in heard if isinstance(m, bytes) and m[:4] in (b"\0\0\0\1", b"\0\0\0\4")]
    assert len(pictures) >= 6
    last = pictures[-1]
    file = io.BytesIO(last[last.index(b"\xff\xd8\xff") :])
    shown = np.asarray(Image.open(file).convert("RGB"))
    assert shown.std() > 10


def test_steady_frames_are_those_of_the_library_and_are_counted(comfy: Comfy) -> None:
    whole = np.asarray(Image.open(ROOT / "assets" / "demo.png").convert("RGB").resize((150, 100)))
    comfy.put("wide.png", whole)
    prompt = Prompt()
    wide = prompt.load("wide.png")
    crops = [prompt.add("ImageCrop", image=wide, width=48, height=32, x=50 + k, y=30) for k in range(3)]
    batch = prompt.add("ImageBatch", image1=prompt.add("ImageBatch", image1=crops[0], image2=crops[1]), image2=crops[2])
    saved = prompt.save(prompt.add("MoESRUpscale", image=batch, model="tiny", scale=2.0, steady=0.5))
    heard = [message for message in messages(comfy, prompt) if isinstance(message, tuple)]
    frames = torch.from_numpy(np.stack([whole[30:62, 50 + k : 98 + k] for k in range(3)])).float() / 255
    model = moesr.load("tiny", device="cpu")
    expected = moesr.upscale_frames(model, frames, scale=2.0, batch_seed="same", steady=0.5)
    for found, want in zip(comfy.images(comfy.run(prompt), saved), expected, strict=True):
        assert np.abs(found - want.numpy() * 255).max() <= 2
    assert [data["image"] for kind, data in heard if kind == "moesr.step" and data["phase"] == "steady"] == [1, 2, 3]
    decode = next(data["node"] for kind, data in reversed(heard) if kind == "progress")
    values = [data["value"] for kind, data in heard if kind == "progress" and data["node"] == decode]
    assert values == sorted(values)


@pytest.mark.parametrize("where", ["sample", "decode", "steady"])
def test_interrupt_stops_within_two_seconds_and_the_next_prompt_works(comfy: Comfy, where: str) -> None:
    rng = np.random.default_rng(0)
    comfy.put("large.png", rng.integers(0, 255, (160, 160, 3), np.uint8))
    prompt, _ = three_nodes("large.png", steps=400 if where == "sample" else 1, seed=5)
    prompt["4"]["inputs"]["tile"] = 128
    if where == "steady":
        comfy.put("frame.png", rng.integers(0, 255, (24, 24, 3), np.uint8))
        prompt = Prompt()
        frames = prompt.add("RepeatImageBatch", image=prompt.load("frame.png"), amount=40)
        prompt.save(prompt.add("MoESRUpscale", image=frames, model="nano_ddpm", scale=32.0, steady=0.5))
    with comfy.listening() as socket:
        prompt_id = comfy.queue(prompt)
        while True:
            said = socket.recv()
            if isinstance(said, str):
                message = json.loads(said)
                if message["type"] == "moesr.step" and message["data"]["phase"] == where:
                    break
        start, before = time.monotonic(), comfy.worked()
        comfy.post("/interrupt", {})
        history = comfy.finish(prompt_id, 120)
        # On a busy machine the host waits for its turn; what it did meanwhile is what counts.
        took = min(time.monotonic() - start, comfy.worked() - before)
    told = [name for name, _ in history["status"]["messages"]]
    assert "execution_interrupted" in told
    assert took < 2
    after, saved = upscale()
    (picture,) = comfy.images(comfy.run(after), saved)
    assert picture.shape == (96, 144, 3)


def test_thirty_runs_leave_the_host_as_small(comfy: Comfy) -> None:
    sizes = []
    for seed in range(30):
        prompt, _ = three_nodes(steps=1, seed=1000 + seed, name="nano_ddpm")
        comfy.run(prompt)
        sizes.append(comfy.memory() / 2**20)
    # The first runs fill caches; a leak goes on.
    growth = np.median(sizes[-5:]) - np.median(sizes[8:13])
    assert growth < 12, [round(size) for size in sizes]


def test_models_that_the_host_dropped_are_gone(comfy: Comfy) -> None:
    for name in ("nano_ddpm", "tiny"):
        comfy.run(three_nodes(name=name, steps=1, seed=77)[0])
    assert comfy.watch()["models"] == ["tiny"]
    comfy.post("/free", {"unload_models": True, "free_memory": True})
    end = time.monotonic() + 20
    while comfy.watch()["models"] and time.monotonic() < end:
        time.sleep(0.5)
    state = comfy.watch()
    assert state["models"] == []
    assert not [kept for kept in state["loaded"] if kept["network"] in ("UNet", "Autoencoder", "SwinUNet")]
