"""The tab in A1111 and Forge, and the addresses for programs, which share a queue of jobs."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
import time
from collections.abc import AsyncIterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image
from torch.nn.modules.module import register_module_forward_pre_hook

from moesr.errors import MoESRError
from moesr.settings import RUN_SETTINGS, SETTINGS
from tests.webui.gradio_standin import Component
from tests.webui.standins import SCRIPT, Host, both_hosts, draw_picture, import_ours


@pytest.fixture
def tab(host: Host, loaded: ModuleType) -> Any:
    host.call("ui_tabs")
    return import_ours("tab")


def make_transfers(tab: Any) -> Any:
    return tab.Transfers(tab.job_queue(), tab.Handlers(tab.job_queue()))


def receive(tab: Any, image: Image.Image, text: str = "") -> Path:
    """A picture that another tab sends, where the tab puts it."""
    image.info["parameters"] = text
    return Path(make_transfers(tab).receive(image)[0][0])


def submit(tab: Any, path: Path, **settings: Any) -> Any:
    api, queue = import_ours("http_api"), tab.job_queue()
    return queue.submit(api.Job([api.accept(path, queue.host.upload_folders)], "nano", {"steps": 1, **settings}))


def finish(job: Any) -> Any:
    job.wait(120)
    assert (job.state, job.failures, job.error) == ("done", [], "")
    return job


def component(elem_id: str) -> Component:
    return next(c for c in Component.made if c.options.get("elem_id") == elem_id)


def test_the_tab_is_wired_to_the_host(host: Host, loaded: ModuleType) -> None:
    for elem_id in ("txt2img_gallery", "txt2img_send_to_extras", "img2img_send_to_extras"):
        for callback in host.callbacks["after_component"]:
            callback(Component(), elem_id=elem_id)
    [tabs] = host.call("ui_tabs")
    assert [(title, key) for _, title, key in tabs] == [("MoESR", "moesr")]
    ways = {(binding.tabname, bool(binding.source_image_component)) for binding in host.bindings}
    assert ways == {("moesr", True), ("txt2img", False), ("img2img", True), ("inpaint", True), ("extras", True)}
    assert len(host.bindings) == 5, "a gallery that is not there has no button"
    assert host.paste_fields["moesr"] is component("moesr-received")
    [(take, inputs, outputs, *_)] = component("moesr-received").events["change"]
    assert inputs == [component("moesr-received")]
    assert outputs == [component("moesr-files"), component("moesr-received")]
    assert take(None) == ({"__type__": "update"}, {"__type__": "update"})


@both_hosts
def test_a_job_is_the_hosts_and_its_result_is_kept(host: Host, tab: Any) -> None:
    job = finish(submit(tab, receive(tab, draw_picture(), "a cat\nSteps: 3"), scale=2, seed=9))
    assert host.state.log == ["begin MoESR", "end"]
    [saved] = host.saved
    assert saved["size"] == (14, 10)
    assert saved["path"] == host.opts.data["outdir_extras_samples"]
    assert saved["existing"]["parameters"] == "a cat\nSteps: 3"
    assert '"seed": 9' in saved["existing"]["moesr"]
    assert saved["info"].startswith("MoESR model: nano, MoESR model hash: ")
    transfers = make_transfers(tab)
    image, parameters = transfers.send(tab.job_queue().host.url(job.results[0].path))
    assert (image.size, parameters) == ((14, 10), "a cat\nSteps: 3")
    draw_picture().save(host.root / "secret.png")
    assert transfers.send(f"file={host.root / 'secret.png'}") == transfers.send("") == (None, "")


def test_a_folder_is_upscaled_into_another(host: Host, tab: Any, tmp_path: Path) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        draw_picture().save(folder / name)
    (folder / "notes.txt").write_text("no picture")

    def run(where: Path, into: str) -> tuple[Any, ...]:
        controls = import_module("moesr.page.controls")
        values = ["nano", "x2", None, "jpg", *(SETTINGS[name].default for name in controls.CONTROLS)]
        return list(make_transfers(tab).run_folder(str(where), into, *values))[-1]

    for names in ({"a_x2.jpg", "b_x2.jpg"}, {"a_x2.jpg", "a_x2-2.jpg", "b_x2.jpg", "b_x2-2.jpg"}):
        assert "Done: 2 pictures" in run(folder, f" {output} ")[0]
        assert {path.name for path in output.iterdir()} == names
    assert host.saved == []
    assert "Done: 2 pictures" in run(folder, "")[0]
    assert len(host.saved) == 2
    assert {path.name for path in folder.iterdir()} == {"a.png", "b.png", "notes.txt"}
    assert "there is no such folder" in run(folder / "none", "")[0]
    assert "it has no pictures" in run(output.parent / "models", "")[0]
    host.flags.hide_ui_dir_config = True
    assert "--hide-ui-dir-config" in run(folder, "")[0]


def test_the_queue_is_the_hosts_and_its_interrupt_ends_one_job(host: Host, tab: Any) -> None:
    path = receive(tab, draw_picture(32, 32))

    def press(*_: Any) -> None:
        assert host.state.job == "MoESR"
        host.state.interrupt()

    with host.lock:
        job = submit(tab, path)
        job.wait(0.3)
        assert job.state == "waiting"
        assert host.state.log == []
        handle = register_module_forward_pre_hook(press)
    job.wait(120)
    handle.remove()
    assert (job.state, job.error) == ("cancelled", "cancelled")
    finish(submit(tab, path))
    assert not host.state.interrupted
    assert not host.lock.locked()


@both_hosts
def test_the_model_is_one_for_tab_and_upscaler(host: Host, tab: Any) -> None:
    path, engine = receive(tab, draw_picture()), import_ours("opened_models").engine()
    finish(submit(tab, path))
    networks = engine.networks
    for data in reversed(host.upscalers):
        data.scaler.upscale(draw_picture(), 4, data.data_path)
        assert (engine.networks is networks) == ("nano" in data.name)
    assert networks.handles() == [], "one model at a time is in memory"
    finish(submit(tab, path))
    assert engine.networks is networks


def test_options_reach_events_that_forge_has_wrapped(loaded: ModuleType) -> None:
    given = {}

    class EventWrapper:
        """modules/gradio_extensions.py of Forge."""

        def __init__(self, replaced_event: Any) -> None:
            self.replaced_event = replaced_event

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return self.replaced_event(*args, **kwargs)

    def click(fn: Any, inputs: Any = None, outputs: Any = None, *, js: Any = None, queue: bool = True) -> None:
        given.update(js=js, queue=queue)

    compat = import_module("moesr.page.gradio_versions")
    compat.on(EventWrapper(click), None, js="f", queue=False)
    assert given == {"js": "f", "queue": False}
    with pytest.raises(AssertionError, match="visibel"):  # these stand-ins find typing errors
        compat.make(Component, visibel=False)


@both_hosts
def test_reload_leaves_nothing_behind(host: Host, tab: Any) -> None:
    folder = tab.job_queue().host.folder
    assert folder.is_dir()
    host.call("script_unloaded")
    assert not folder.exists()
    for callbacks in host.callbacks.values():
        callbacks.clear()
    host.load_script(SCRIPT)
    host.call("ui_tabs")
    assert tab.job_queue().host.folder.is_dir()


# The API


def encode(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


class Request:
    """Of Starlette: a body, then nothing until the client leaves."""

    def __init__(self, body: Any, leaves_after: float = 1e9) -> None:
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.leaves_after = leaves_after

    async def stream(self) -> AsyncIterator[bytes]:
        yield self.body

    async def receive(self) -> dict[str, Any]:
        await asyncio.sleep(self.leaves_after)
        return {"type": "http.disconnect"}


def post(tab: Any, body: Any, **more: Any) -> dict[str, Any]:
    return asyncio.run(import_ours("http_api").answer(tab.job_queue(), Request(body, **more)))


def test_api(host: Host, tab: Any) -> None:
    image = "data:image/png;base64," + encode(draw_picture(mode="RGBA"))
    answer = post(tab, {"image": image, "scale": 2.5, "steps": 1, "seed": -1, "fidelity": None})
    result = Image.open(io.BytesIO(base64.b64decode(answer["image"])))
    assert (result.size, result.mode) == ((18, 13), "RGBA")
    assert (answer["width"], answer["height"], answer["settings"]["model"]) == (18, 13, "nano")
    assert 0 <= answer["settings"]["seed"] < 2**32
    assert host.saved == [], "a program has its answer"
    assert list(tab.job_queue().host.received.iterdir()) == []
    assert {"name": "nano", "scale": 4, "steps": 4} in import_ours("http_api").describe_models()


def test_what_the_api_is_told_to_protect_has_fidelity_1(tab: Any) -> None:
    def run(**more: Any) -> tuple[bytes, dict[str, Any]]:
        answer = post(tab, {"image": encode(draw_picture()), "steps": 1, "color_fix": "none", **more})
        return Image.open(io.BytesIO(base64.b64decode(answer["image"]))).tobytes(), answer["settings"]

    white = encode(Image.new("L", (3, 3), 255))
    generative, _ = run(fidelity=0)
    faithful, record = run(fidelity=0, protect="data:image/png;base64," + white)
    assert faithful == run(fidelity=1)[0] != generative
    assert record["protect"]
    assert list(tab.job_queue().host.received.iterdir()) == []


PICTURE = {"image": encode(draw_picture())}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "give a picture in base64"),
        (b"{", "no JSON"),
        ([], "no JSON object"),
        ({"image": "!"}, "no base64"),
        ({"image": base64.b64encode(b"text").decode()}, "image: not a PNG"),
        ({**PICTURE, "protect": base64.b64encode(b"text").decode()}, "protect: not a PNG"),
        ({**PICTURE, "model": "gone"}, "'gone' is not in the library"),
        ({**PICTURE, "steps": 0}, "steps 0"),
        ({**PICTURE, "scale": "abc"}, "scale 'abc': give a number from 0.1 to 64"),
        ({**PICTURE, "scal": 2}, "scal: there is no such setting"),
    ],
)
def test_what_the_api_cannot_do_is_said(tab: Any, body: Any, message: str) -> None:
    with pytest.raises(MoESRError, match=message) as raised:
        post(tab, body)
    assert import_ours("http_api").find_status(raised.value) == 422


def test_a_client_of_the_api_that_leaves_or_is_interrupted_ends_its_job(host: Host, tab: Any) -> None:
    slow = {"image": encode(draw_picture(64, 64)), "steps": 1000}
    for interrupt, more in ((False, {"leaves_after": 0.5}), (True, {})):
        if interrupt:
            threading.Timer(1.0, host.state.interrupt).start()
        began = time.monotonic()
        with pytest.raises(MoESRError) as raised:
            post(tab, slow, **more)
        assert time.monotonic() - began < 30
        assert import_ours("http_api").find_status(raised.value) == 409
        assert not tab.job_queue()._running


def test_the_api_describes_its_fields_and_is_there_with_the_flag_only(host: Host, loaded: ModuleType) -> None:
    fields = import_ours("http_api").describe_request()["properties"]
    scale = {"type": "number", "minimum": 0.1, "maximum": 64, "default": None}
    assert fields["scale"] == {**scale, "description": SETTINGS["scale"].sentence}
    assert fields["seed"]["minimum"] == -1, "a client that was made from the schema can ask for any seed"
    assert set(fields) == {"image", "model", "protect", *RUN_SETTINGS}
    host.flags.api = False
    host.call("app_started", None, None)  # touches no app


def test_the_api_asks_for_the_hosts_password(loaded: ModuleType) -> None:
    is_permitted = import_ours("http_api").is_permitted

    def encode_header(text: str) -> str:
        return "Basic " + base64.b64encode(text.encode()).decode()

    assert is_permitted(None, "")
    assert is_permitted("a:b,c:d", encode_header("c:d"))
    for header in (encode_header("a:x"), "", "Basic ?", "Bearer a:b"):
        assert not is_permitted("a:b", header)
