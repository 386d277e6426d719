"""The nodes over HTTP in the genuine ComfyUI: what they show, that their results are those of the library, errors."""

from __future__ import annotations

import json
import os
import re
import time
from typing import Any

import numpy as np
import pytest
import torch

import moesr
from moesr.hosting.sigma_model import SigmaModel
from moesr.settings import SETTINGS
from tests.hosts.comfyui import Comfy
from tests.hosts.packs import ROOT
from tests.hosts.prompts import Prompt, three_nodes, upscale
from tests.small_models import save_nano

LOCALES = ROOT / "locales"
NODES = list(json.loads((LOCALES / "en" / "nodeDefs.json").read_text(encoding="utf-8")))


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    """To one grey level."""
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1


@pytest.fixture(scope="session")
def tiny() -> moesr.SRModel:
    return moesr.load("tiny", device="cpu")


@pytest.mark.parametrize("name", NODES)
def test_object_info_shows_the_node_with_tooltips(comfy: Comfy, name: str) -> None:
    info = comfy.get("/object_info/" + name)[name]
    assert info["category"] == "image/upscaling"
    assert info["display_name"].startswith(("MoESR", "Frequency-Compensated"))
    assert len(info["description"]) > 40
    assert "moesr" in info.get("search_aliases", ["moesr"])  # newer hosts tell and search them
    inputs = {**info["input"]["required"], **info["input"].get("optional", {})}
    for key, (_, options) in inputs.items():
        assert len(options["tooltip"]) > 15, key
    assert all(len(tooltip) > 8 for tooltip in info["output_tooltips"])


@pytest.mark.parametrize("locale", ["zh", "ja"])
def test_locales_have_every_word(comfy: Comfy, locale: str) -> None:
    english = comfy.get("/i18n")["en"]["nodeDefs"]
    theirs = comfy.get("/i18n")[locale]["nodeDefs"]
    for name in NODES:
        assert theirs[name]["display_name"]
        assert theirs[name]["description"] != english[name]["description"]
        for put in ("inputs", "outputs"):
            assert theirs[name][put].keys() == english[name][put].keys()
            for words in theirs[name][put].values():
                assert words["name"]
                assert words["tooltip"]


def test_models_of_all_folders_are_offered_and_the_embedded_one_first(comfy: Comfy) -> None:
    options = comfy.get("/object_info/MoESRLoader")["MoESRLoader"]["input"]["required"]["model"][1]["options"]
    assert options == ["tiny", "nano_ddpm.safetensors", "nano_residual_shift.safetensors"]


def test_upscale_equals_the_library(comfy: Comfy, tiny: moesr.SRModel, photo: np.ndarray) -> None:
    prompt, saved = upscale(scale=2.5)
    (found,) = comfy.images(comfy.run(prompt), saved)
    assert found.shape == (60, 90, 3)
    assert_same(found, moesr.upscale(tiny, photo, scale=2.5))


def test_advanced_inputs_and_a_number_from_a_link(comfy: Comfy, tiny: moesr.SRModel, photo: np.ndarray) -> None:
    prompt, saved = upscale()
    advanced = {"seed": 9, "fidelity": prompt.add("PrimitiveFloat", value=0.4), "tile": "64", "max_resolution": 72}
    next(node for node in prompt.values() if node["class_type"] == "MoESRUpscale")["inputs"].update(advanced)
    (found,) = comfy.images(comfy.run(prompt), saved)
    assert_same(found, moesr.upscale(tiny, photo, scale=2.0, seed=9, fidelity=0.4, tile=64))


@pytest.mark.parametrize(
    ("size", "values", "shape"),
    [
        ("longest side", {"size.longest_side": 90}, (60, 90, 3)),
        ("fit in", {"size.width": 100, "size.height": 30}, (30, 45, 3)),
        ("megapixels", {"size.megapixels": 0.01}, (82, 122, 3)),
    ],
)
def test_sizes_that_find_the_scale(comfy: Comfy, size: str, values: dict[str, Any], shape: tuple[int, ...]) -> None:
    prompt, saved = upscale(size=size, **values)
    if "size" in comfy.get("/object_info/MoESRUpscale")["MoESRUpscale"]["input"]["optional"]:
        assert comfy.images(comfy.run(prompt), saved)[0].shape == shape
    else:
        assert f"this ComfyUI has no {size}" in comfy.failure(prompt)["exception_message"]


def test_restore_reaches_models_that_take_it_and_is_refused_by_others(comfy: Comfy, photo: np.ndarray) -> None:
    path = save_nano("ddpm", comfy.base / "models" / "moesr", restore=True)
    prompt, saved = upscale(name=path.name, restore="0.75")
    (found,) = comfy.images(comfy.run(prompt), saved)
    model = moesr.load(path, device="cpu")
    assert_same(found, moesr.upscale(model, photo, restore=0.75))
    assert np.abs(found.astype(int) - moesr.upscale(model, photo, restore=0.0)).max() > 2
    path.unlink()
    assert "leave it at auto" in comfy.failure(upscale(name="nano_ddpm", restore="1")[0])["exception_message"]


def test_three_nodes_at_their_defaults_equal_the_library(comfy: Comfy, tiny: moesr.SRModel, photo: np.ndarray) -> None:
    prompt, saved = three_nodes(steps=0)
    (found,) = comfy.images(comfy.run(prompt), saved)
    assert_same(found, moesr.upscale(tiny, photo))


@pytest.mark.parametrize("kind", ["KSampler", "SamplerCustom"])
def test_the_hosts_samplers_drive_the_model(
    comfy: Comfy, tiny: moesr.SRModel, photo: np.ndarray, kind: str
) -> None:  # fmt: skip
    prompt = Prompt()
    image, model = prompt.load(), prompt.model()
    node, _ = prompt.add("MoESRAsModel", model=model, image=image, steps="auto", tile="64", restore="auto")
    given: dict[str, Any] = {
        "model": [node, 0],
        "positive": [node, 1],
        "negative": [node, 1],
        "latent_image": [node, 2],
    }
    if kind == "KSampler":
        given |= {"seed": 3, "steps": 4, "cfg": 2.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    else:
        sampler = prompt.add("KSamplerSelect", sampler_name="euler")
        given |= {"add_noise": True, "noise_seed": 3, "cfg": 1.0, "sampler": sampler, "sigmas": [node, 3]}
    saved = prompt.save(prompt.decode(model, prompt.add(kind, **given), image, tile=64))
    (found,) = comfy.images(comfy.run(prompt), saved)
    waiting = SigmaModel(tiny, photo, tile=64)
    noise = torch.randn(waiting.shape, generator=torch.manual_seed(3))
    x = noise * (1 + waiting.schedule[0] ** 2).sqrt()
    with torch.inference_mode():
        for sigma, after in zip(waiting.schedule.tolist(), waiting.schedule[1:].tolist()):
            clean = waiting.denoise(x, sigma)
            x = clean + (x - clean) * (after / sigma)
    assert_same(found, moesr.decode_latents(tiny, waiting.to_latent(x), photo, tile=64))


def test_every_setting_reaches_the_library(comfy: Comfy, tiny: moesr.SRModel, photo: np.ndarray) -> None:
    prompt = Prompt()
    image, model = prompt.load(), prompt.model(dtype="fp32", experts="one at a time")
    samples = prompt.sample(model, image, seed=2**64 - 1, steps=3, sampler="ddim", eta=0.5, tile=64, wrap=True)
    decoding = {"fidelity": 0.5, "color_fix": "wavelet", "tile": 64, "scale": 3.0, "wrap": True}
    saved = prompt.save(prompt.decode(model, samples, image, **decoding))
    (found,) = comfy.images(comfy.run(prompt), saved)
    settings: dict[str, Any] = {"seed": 2**64 - 1, "steps": 3, "sampler": "ddim", "eta": 0.5, "scale": 3.0}
    more: dict[str, Any] = {"tile": 64, "wrap": True, "fidelity": 0.5, "color_fix": "wavelet"}
    expected = moesr.upscale(tiny, photo, **settings, **more)
    assert_same(found, expected)
    assert np.abs(expected.astype(int) - moesr.upscale(tiny, photo, scale=3.0).astype(int)).max() > 8


@pytest.mark.parametrize("name", ["nano_ddpm", "nano_residual_shift"])
def test_other_models_equal_the_library(comfy: Comfy, photo: np.ndarray, name: str) -> None:
    folder = comfy.base / ("models/moesr" if name == "nano_ddpm" else "elsewhere/sr")
    prompt, saved = three_nodes(name=name)
    (found,) = comfy.images(comfy.run(prompt), saved)
    model = moesr.load(folder / f"{name}.safetensors", device="cpu")
    assert_same(found, moesr.upscale(model, photo, steps=2))


@pytest.mark.parametrize("kind", ["per image", "same for all"])
def test_batch_of_three(comfy: Comfy, tiny: moesr.SRModel, photo: np.ndarray, kind: str) -> None:
    prompt = Prompt()
    first = prompt.load()
    second = prompt.add("ImageInvert", image=first)
    batch = prompt.add("ImageBatch", image1=first, image2=second)
    batch = prompt.add("ImageBatch", image1=batch, image2=first)
    model = prompt.model()
    saved = prompt.save(prompt.decode(model, prompt.sample(model, batch, batch_seed=kind, steps=4), batch))
    found = comfy.images(comfy.run(prompt), saved)
    frames = torch.from_numpy(np.stack([photo, 255 - photo, photo])).float() / 255
    expected = moesr.upscale(tiny, frames, steps=4, batch_seed=kind.split(" ")[0].replace("per", "per_image"))
    for one, other in zip(found, expected):
        assert_same(one, (other * 255).clamp(0, 255).byte().numpy())
    same = np.abs(found[0].astype(int) - found[2].astype(int)).max() <= 1
    assert same == (kind == "same for all")


def test_alpha_is_kept(comfy: Comfy, tiny: moesr.SRModel, photo: np.ndarray) -> None:
    alpha = np.zeros(photo.shape[:2], np.uint8)
    alpha[:, 18:] = 255
    comfy.put("cut_out.png", np.dstack([photo, alpha]))
    prompt = Prompt()
    picture = prompt.load("cut_out.png")
    rgba = prompt.add("JoinImageWithAlpha", image=picture, alpha=[picture[0], 1])
    saved = prompt.save(prompt.add("MoESRUpscale", image=rgba, model="tiny", scale=4.0))
    (found,) = comfy.images(comfy.run(prompt), saved)
    assert found.shape == (96, 144, 4)
    assert (found[:, :68, 3] == 0).all()
    assert (found[:, 76:, 3] == 255).all()
    expected = moesr.upscale(tiny, np.dstack([photo, alpha]))
    assert_same(found[..., :3] * (found[..., 3:] > 0), expected[..., :3] * (expected[..., 3:] > 0))


def test_mask_keeps_the_rest_as_it_is(comfy: Comfy, tiny: moesr.SRModel, photo: np.ndarray) -> None:
    prompt, saved = three_nodes()
    (whole,) = comfy.images(comfy.run(prompt), saved)
    black = prompt.add("SolidMask", value=0.0, width=36, height=24)
    white = prompt.add("SolidMask", value=1.0, width=18, height=24)
    mask = prompt.add("MaskComposite", destination=black, source=white, x=0, y=0, operation="add")
    prompt["3"]["inputs"]["mask"] = mask
    (found,) = comfy.images(comfy.run(prompt), saved)
    half = np.zeros(photo.shape[:2], np.float32)
    half[:, :18] = 1
    assert_same(found, moesr.upscale(tiny, photo, steps=2, mask=half))
    assert np.abs(found.astype(int) - whole).max() > 3
    # Load Image has a black mask for a picture without alpha: nobody painted it.
    prompt["3"]["inputs"]["mask"] = black
    assert_same(comfy.images(comfy.run(prompt), saved)[0], whole)


def test_unchanged_inputs_are_not_run_again_and_changed_files_are(comfy: Comfy) -> None:
    path = comfy.base / "models" / "moesr" / "edited.safetensors"
    path.write_bytes(path.with_name("nano_ddpm.safetensors").read_bytes())
    prompt, _ = three_nodes(name="edited")
    comfy.run(prompt)
    assert set(comfy.cached(prompt)) == set(prompt)
    later = time.time() + 10
    os.utime(path, (later, later))
    changed = set(prompt) - set(comfy.cached(prompt))
    assert {prompt[name]["class_type"] for name in changed} >= {"MoESRLoader", "MoESRSampler"}
    prompt["3"]["inputs"]["seed"] = 7
    assert {prompt[name]["class_type"] for name in comfy.cached(prompt)} == {"LoadImage", "MoESRLoader"}
    path.unlink()
    assert "edited" in json.dumps(comfy.find_errors(prompt))


def test_a_latent_may_go_through_a_file(comfy: Comfy) -> None:
    direct, saved = three_nodes()
    direct.add("SaveLatent", samples=["3", 0], filename_prefix="kept")
    (expected,) = comfy.images(comfy.run(direct), saved)
    kept = next((comfy.base / "output").glob("kept*.latent"))
    kept.rename(comfy.base / "input" / "kept.latent")
    prompt = Prompt()
    image, model = prompt.load(), prompt.model()
    saved = prompt.save(prompt.decode(model, prompt.add("LoadLatent", latent="kept.latent"), image))
    (found,) = comfy.images(comfy.run(prompt), saved)
    assert_same(found, expected)


def test_upscale_model_works_in_the_hosts_own_node(comfy: Comfy, tiny: moesr.SRModel, photo: np.ndarray) -> None:
    prompt = Prompt()
    made = prompt.add("MoESRAsUpscaleModel", model=prompt.model(), steps=2, seed=3, fidelity=1.0)
    saved = prompt.save(prompt.add("ImageUpscaleWithModel", upscale_model=made, image=prompt.load()))
    (found,) = comfy.images(comfy.run(prompt), saved)
    assert_same(found, moesr.upscale(tiny, photo, steps=2, seed=3, color_fix="wavelet"))


def test_timeline_and_plan(comfy: Comfy) -> None:
    prompt = Prompt()
    picture = prompt.add("MoESRExpertTimeline", model=prompt.model(), steps=8, sampler="ddim")
    saved = prompt.save(picture)
    shown = prompt.add("PreviewAny", source=[picture[0], 1])
    outputs = comfy.run(prompt)
    (found,) = comfy.images(outputs, saved)
    assert found.shape == (300, 800, 3)
    assert len(np.unique(found.reshape(-1, 3), axis=0)) > 50
    (text,) = outputs[shown[0]]["text"]
    lines = text.splitlines()
    assert lines[0] == "8 steps, 4 experts at work"
    assert [line.split(":")[0] for line in lines[1:]] == ["expert 3", "expert 2", "expert 1", "expert 0"]


def test_widgets_have_the_ranges_and_words_of_the_table_of_settings(comfy: Comfy) -> None:
    for node in NODES:
        info = comfy.get("/object_info/" + node)[node]["input"]
        for name, (_, options) in {**info["required"], **info.get("optional", {})}.items():
            setting = SETTINGS.get(name)
            if setting is None:
                continue
            begin = re.split(r"[,:;.]", setting.sentence)[0]
            assert options["tooltip"].startswith(begin), (node, name)
            if "options" in options:
                assert options["default"] == options["options"][0]
            elif setting.kind in ("int", "float"):
                assert options["max"] == setting.maximum
                assert options["min"] in (0, setting.minimum)
