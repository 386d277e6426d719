"""What goes wrong in the nodes, over HTTP in the genuine ComfyUI: one line that names the widget or the cause."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.hosts.comfyui import Comfy
from tests.hosts.prompts import Prompt, three_nodes, upscale


def test_a_bad_file_is_a_clear_node_error(comfy: Comfy) -> None:
    path = comfy.base / "models" / "moesr" / "broken.safetensors"
    path.write_bytes(b"not a model")
    prompt, _ = three_nodes(name="broken")
    error = comfy.failure(prompt)
    path.unlink()
    assert error["node_type"] == "MoESRLoader"
    assert "broken.safetensors" in error["exception_message"]
    assert len(error["exception_message"].strip().splitlines()) == 1


def test_a_missing_model_names_the_widget(comfy: Comfy) -> None:
    prompt, _ = three_nodes(name="tinny")
    (error,) = comfy.find_errors(prompt)
    assert "model" in error["details"]
    assert "tinny" in error["details"]
    assert "did you mean tiny" in error["details"]


@pytest.mark.parametrize("name", ["", 5])
def test_what_is_no_name_of_a_model_is_one_line(comfy: Comfy, name: Any) -> None:
    for prompt in (three_nodes(name=name)[0], upscale(name=name)[0]):
        details = [error["details"] for error in comfy.find_errors(prompt)]
        assert details
        assert all("model" in said and len(said.splitlines()) == 1 for said in details)


def test_transparency_in_the_hosts_node_for_upscale_models_says_what_to_take(comfy: Comfy) -> None:
    prompt = Prompt()
    picture = prompt.load()
    rgba = prompt.add("JoinImageWithAlpha", image=picture, alpha=[picture[0], 1])
    made = prompt.add("MoESRAsUpscaleModel", model=prompt.model(), steps=2, seed=3, fidelity=1.0)
    prompt.save(prompt.add("ImageUpscaleWithModel", upscale_model=made, image=rgba))
    error = comfy.failure(prompt)
    assert "take MoESR Upscale" in error["exception_message"]
    assert error["exception_type"] == "moesr.SettingError"


def test_settings_out_of_range_name_the_widget(comfy: Comfy) -> None:
    prompt, _ = three_nodes(steps=1001, eta=-1.0)
    errors = comfy.find_errors(prompt)
    assert {"eta", "steps"} <= {error["extra_info"]["input_name"] for error in errors}
    # The host gives the line of a list to every list of the node.
    assert all("steps 1001" in error["details"] for error in errors if error["type"] == "custom_validation_failed")


@pytest.mark.parametrize("widget", ["sampler", "batch_seed", "dtype", "experts", "color_fix"])
def test_choices_that_do_not_exist_name_the_widget(comfy: Comfy, widget: str) -> None:
    prompt, _ = three_nodes()
    (node,) = (node for node in prompt.values() if widget in node["inputs"])
    node["inputs"][widget] = "nonsense"
    answer = comfy.post("/prompt", {"prompt": prompt, "client_id": comfy.client})
    # Newer hosts look by themselves; else the node does.
    if answer["node_errors"]:
        said = json.dumps(answer["node_errors"])
    else:
        messages = comfy.finish(answer["prompt_id"])["status"]["messages"]
        said = next(data["exception_message"] for name, data in messages if name == "execution_error")
    assert widget in said
    assert "nonsense" in said
    assert answer["node_errors"] or widget != "color_fix"  # before anything is sampled


@pytest.mark.parametrize("kind", ["channels", "size", "nan"])
def test_a_wrong_latent_is_a_clear_node_error(comfy: Comfy, kind: str) -> None:
    shape = {"channels": (1, 4, 24, 36), "size": (1, 24, 12, 18), "nan": (1, 24, 24, 36)}[kind]
    samples = torch.full(shape, float("nan")) if kind == "nan" else torch.zeros(shape)
    contents = {"latent_tensor": samples, "latent_format_version_0": torch.tensor([])}
    save_file(contents, comfy.base / "input" / f"{kind}.latent")
    prompt = Prompt()
    latent = prompt.add("LoadLatent", latent=f"{kind}.latent")
    prompt.save(prompt.decode(prompt.model(), latent, prompt.load()))
    error = comfy.failure(prompt)
    assert error["node_type"] == "FrequencyCompensatedDecode"
    assert {"channels": "channels", "size": "cells", "nan": "NaN"}[kind] in error["exception_message"]


def test_settings_that_the_decode_has_now_are_not_lost_in_silence(comfy: Comfy) -> None:
    prompt, _ = three_nodes(seed=21)
    prompt["3"]["inputs"]["scale"] = 2.0  # as older prompts have it; the host leaves it out
    error = comfy.failure(prompt)
    assert (error["node_type"], "set it in Frequency-Compensated Decode" in error["exception_message"]) == (
        "MoESRSampler",
        True,
    )
    prompt["3"]["inputs"] |= {"scale": 4.0, "wrap": True}
    comfy.run(prompt)
    assert "wrap is on in the Sampler and off in the Decode" in comfy.text()


def test_decode_without_its_source_says_so(comfy: Comfy) -> None:
    prompt = Prompt()
    model = prompt.model()
    prompt.save(prompt.decode(model, prompt.sample(model, prompt.load())))
    assert "image: connect the source" in comfy.failure(prompt)["exception_message"]
