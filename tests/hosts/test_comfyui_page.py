"""ComfyUI's page in a browser: every template loads and runs, Run is clicked, the result and the help page are there.

The pack is there twice, as happens when it is installed by hand and by the Manager.
"""

from __future__ import annotations

import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.hosts.browser import Window, read, window
from tests.hosts.comfyui import Comfy, running
from tests.hosts.packs import ROOT, put_moesr
from tests.hosts.setup_comfyui import CACHE, Installation

TEMPLATES = sorted((ROOT / "example_workflows").glob("*.json"))
#: Those that need nothing that the pack does not bring.
WHOLE = [path for path in TEMPLATES if not path.stem.startswith(("SD 1.5", "MoESR video"))]


@pytest.fixture(scope="module")
def twice(installation: Installation, tmp_path_factory: pytest.TempPathFactory, photo: np.ndarray) -> Iterator[Comfy]:
    """A host with two copies of the pack."""
    base = tmp_path_factory.mktemp("comfyui_page")
    for name in ("ComfyUI-MoESR", "ComfyUI-MoESR-copy"):
        put_moesr(base, name)
    folder = base / "input" / "my_pictures"
    folder.mkdir(parents=True)
    Image.fromarray(photo).save(folder / "one.png")
    Image.fromarray(photo[:, :20]).save(folder / "two.png")
    with running(installation, base, "--preview-method", "auto") as host:
        host.put("moesr_example.png", photo)
        yield host


@pytest.fixture(scope="module")
def page(twice: Comfy) -> Iterator[Window]:
    """Its page; screenshots are kept in .cache/hosts/screenshots."""
    with window(twice.url, CACHE / "screenshots") as shown:
        yield shown


def sizes(comfy: Comfy, outputs: dict[str, Any]) -> list[tuple[int, ...]]:
    saved = [e for out in outputs.values() for e in out.get("images", []) if e["type"] == "output"]
    return sorted(comfy.image({k: e[k] for k in ("filename", "subfolder", "type")}).shape for e in saved)


def test_two_copies_load(twice: Comfy) -> None:
    assert "IMPORT FAILED" not in twice.text().split("comfy_extras")[0]
    copies = {path for path in twice.get("/extensions") if path.endswith("moesr.js")}
    assert copies == {f"/extensions/{name}/moesr.js" for name in ("ComfyUI-MoESR", "ComfyUI-MoESR-copy")}


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_templates_load_whole_with_a_thumbnail(page: Window, twice: Comfy, path: Path) -> None:
    if "batch" in path.stem and "LoadImageDataSetFromFolder" not in twice.get("/object_info"):
        pytest.skip("this host has no node that loads a folder")
    assert page.open(read(path), path.stem) == []
    assert page.run("() => window.app.graph.nodes.length") == len(read(path)["nodes"])
    if path not in WHOLE and "video" not in path.stem:  # the page offers the checkpoint that is not there
        page.page.get_by_text("v1-5-pruned-emaonly-fp16.safetensors").first.wait_for()
        dismiss(page)
    assert path.stem in twice.get("/workflow_templates")["ComfyUI-MoESR"]
    address = f"{twice.url}/api/workflow_templates/ComfyUI-MoESR/{urllib.parse.quote(path.stem)}.jpg"
    with urllib.request.urlopen(address) as answer:
        picture = Image.open(answer)
        assert picture.format == "JPEG"
        assert picture.width >= 200


@pytest.mark.parametrize("path", WHOLE, ids=lambda path: path.stem)
def test_templates_run_to_a_saved_image_of_exact_size(page: Window, twice: Comfy, path: Path) -> None:
    if "batch" in path.stem and "LoadImageDataSetFromFolder" not in twice.get("/object_info"):
        pytest.skip("this host has no node that loads a folder")
    page.open(read(path), path.stem)
    found = sizes(twice, twice.run(page.prompt()))
    kinds = {"MoESR batch of a folder": [(96, 80, 3), (96, 144, 3)], "MoESR restore a web picture": [(48, 72, 3)]}
    assert found == kinds.get(path.stem, [(96, 144, 3)])


def test_blueprints_are_offered_and_their_widgets_reach_the_nodes(page: Window, twice: Comfy) -> None:
    paths = sorted((ROOT / "subgraphs").glob("*.json"))
    offered = [e for e in twice.get("/global_subgraphs").values() if e["info"]["node_pack"].endswith("ComfyUI-MoESR")]
    assert sorted(entry["name"] for entry in offered) == [path.stem for path in paths]
    for path in paths:
        assert page.open(read(path), path.stem) == []
        page.run("() => window.app.graph.nodes[0].widgets.find(w => w.name === 'fidelity').value = '0.5'")
        inputs = {node["class_type"]: node["inputs"] for node in page.prompt().values()}
        assert {put["fidelity"] for put in inputs.values() if "fidelity" in put} == {"0.5"}
    assert inputs["MoESRUpscale"]["steady"] == 0.4


def test_a_click_on_run_makes_the_image(page: Window, twice: Comfy) -> None:
    workflow = read(ROOT / "example_workflows" / "MoESR three nodes.json")
    sampler = next(node for node in workflow["nodes"] if node["type"] == "MoESRSampler")
    sampler["widgets_values"][0] = 4321  # not in the host's cache
    page.open(workflow, "run")
    dismiss(page)
    page.page.locator('button[data-testid="queue-button"], [data-testid="queue-button"] button').first.click()
    saver = next(node["id"] for node in workflow["nodes"] if node["type"] == "SaveImage")
    page.page.wait_for_function(
        "id => window.app.graph.getNodeById(id).imgs?.[0]?.naturalWidth > 0", arg=saver, timeout=180_000
    )
    width, height = page.run(
        "id => { const i = window.app.graph.getNodeById(id).imgs[0]; return [i.naturalWidth, i.naturalHeight]; }", saver
    )
    # The page may show a smaller copy of the file.
    assert width / height == pytest.approx(36 / 24, rel=0.02)
    timeline = page.page.locator('canvas[role="img"]')
    assert timeline.count() == 1
    assert timeline.get_attribute("aria-label") in ("done", "完了", "完成")
    drawn = page.run(
        "() => { const c = document.querySelector('canvas[role=\"img\"]'); const d = c.getContext('2d')"
        ".getImageData(0, 0, c.width, c.height).data; const seen = new Set(); for (let i = 0; i < d.length; i += 4)"
        " if (d[i + 3] === 255) seen.add(`${d[i]},${d[i + 1]},${d[i + 2]}`); return [...seen]; }"
    )
    assert {"146,190,224", "84,132,192", "118,92,168", "190,84,112"} <= set(drawn)
    fit(page)
    page.shot("run")


def test_an_older_workflow_keeps_its_scale_and_wrap(page: Window) -> None:
    workflow = read(ROOT / "example_workflows" / "MoESR seamless texture.json")
    (sampler,) = (node for node in workflow["nodes"] if node["type"] == "MoESRSampler")
    (decode,) = (node for node in workflow["nodes"] if node["type"] == "FrequencyCompensatedDecode")
    # As they were saved: the Sampler had `scale` after `eta`, and the Decode took both from the latent.
    place = next(i for i, put in enumerate(sampler["inputs"]) if put["name"] == "batch_seed")
    sampler["inputs"].insert(place, {"name": "scale", "type": "FLOAT", "widget": {"name": "scale"}, "link": None})
    sampler["widgets_values"].insert(5, 2.5)
    decode["widgets_values"][3:5] = [0, False]
    sampler["widgets_values"][2] = 0
    decode["widgets_values"][0] = 1
    page.open(workflow, "older")
    prompt = page.prompt()
    inputs = {node["class_type"]: node["inputs"] for node in prompt.values()}
    assert "scale" not in inputs["MoESRSampler"]
    assert (inputs["MoESRSampler"]["batch_seed"], inputs["MoESRSampler"]["wrap"]) == ("per image", True)
    assert [inputs["FrequencyCompensatedDecode"][name] for name in ("scale", "wrap")] == ["2.5", True]
    assert (inputs["MoESRSampler"]["steps"], inputs["FrequencyCompensatedDecode"]["fidelity"]) == ("auto", "1")
    workflow = read(ROOT / "example_workflows" / "MoESR quick x4.json")
    (upscale,) = (node for node in workflow["nodes"] if node["type"] == "MoESRUpscale")
    upscale["widgets_values"] = ["tiny", 4, 0, "auto", "auto", 0, "0.5", "longest side", 100]
    page.open(workflow, "without steady")
    (inputs,) = (node["inputs"] for node in page.prompt().values() if node["class_type"] == "MoESRUpscale")
    assert (inputs["restore"], inputs["steady"]) == ("0.5", 0)
    assert (inputs.get("size"), inputs.get("size.longest_side")) in ((None, None), ("longest side", 100))


def test_the_timeline_shows_the_step_at_work(page: Window, twice: Comfy) -> None:
    workflow = read(ROOT / "example_workflows" / "MoESR three nodes.json")
    page.open(workflow, "steps")
    sampler = next(node["id"] for node in workflow["nodes"] if node["type"] == "MoESRSampler")
    event = {"node": str(sampler), "phase": "sample", "step": 3, "steps": 5, "expert": 2, "tile": 2, "tiles": 4}
    event |= {"type": "MoESRSampler", "image": 1, "images": 1, "left": 12, "note": "tiles of 256 instead of 512 pixels"}
    event |= {"experts": [3, 3, 2, 1, 0], "noise": [1.0, 0.8, 0.5, 0.3, 0.1]}
    page.run("e => window.app.api.dispatchCustomEvent('moesr.step', e)", event)
    page.page.wait_for_selector('canvas[role="img"][aria-label="expert 2 · step 3/5 · tile 2/4 · 12 s left"]')
    assert page.page.get_by_text("tiles of 256 instead of 512 pixels").count() == 1
    # A node of another kind that has the id in this tab.
    page.run("e => window.app.api.dispatchCustomEvent('moesr.step', e)", {**event, "node": "1"})
    page.page.wait_for_timeout(300)
    assert page.page.locator('canvas[role="img"]').count() == 1
    assert page.page.locator('canvas[role="img"]').bounding_box()["x"] > 0, "it lies on its node"  # not over the page
    fit(page)
    page.shot("timeline")
    page.run("() => window.app.api.dispatchCustomEvent('execution_interrupted', {prompt_id: 'x'})")
    page.page.wait_for_selector('canvas[role="img"][aria-label="stopped"]')
    # What the page asks of its makers' servers is refused by its own policy; the rest would be ours.
    assert not [line for line in page.said if line.startswith("pageerror") or "extensions/ComfyUI-MoESR" in line]


def test_the_help_panel_opens(page: Window) -> None:
    page.open(read(ROOT / "example_workflows" / "MoESR three nodes.json"), "help")
    dismiss(page)
    fit(page)
    x, y = page.run(
        "() => { const c = window.app.canvas; const n = window.app.graph.nodes.find(n => n.type === 'MoESRSampler');"
        " const at = c.canvas.getBoundingClientRect(); const [x, y] = c.ds.offset; return ["
        " at.left + (n.pos[0] + 80 + x) * c.ds.scale, at.top + (n.pos[1] - 15 + y) * c.ds.scale]; }"
    )
    page.page.mouse.click(x, y)
    page.page.locator('[data-testid="info-button"], .selection-toolbox button:has(.pi-question-circle)').first.click()
    help_page = page.page.locator(".node-help-content, .markdown-content").first
    help_page.wait_for(timeout=30_000)
    assert "batch seed" in help_page.inner_text()
    picture = help_page.locator("img").first
    page.page.wait_for_function("i => i.complete && i.naturalWidth > 100", arg=picture.element_handle())
    page.shot("help")


def dismiss(page: Window) -> None:
    """Close what the page puts over itself: messages, and the dialog that offers missing models."""
    page.run("() => document.querySelectorAll('.p-dialog-close-button').forEach(b => b.click())")
    page.page.wait_for_selector(".p-dialog-mask", state="detached")
    page.run("() => document.querySelectorAll('.p-toast-close-button, .p-toast-icon-close').forEach(b => b.click())")
    page.page.wait_for_timeout(300)


def fit(page: Window) -> None:
    page.run("async () => await window.app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    page.page.wait_for_timeout(1200)
