"""MoESR as an extension of A1111 and Forge, run against stand-ins of the hosts (webui_standins.py)."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import shutil
import threading
import time
from collections.abc import AsyncIterator, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from moesr.config import AutoencoderConfig
from moesr.errors import MoESRError
from moesr.library import models as library
from moesr.networks.autoencoder import Autoencoder
from moesr.settings import RUN_SETTINGS, SETTINGS
from tests.webui_standins import ROOT, Component, Host, Lanczos, PostprocessedImage, UpscalerData, wait_for

pytestmark = pytest.mark.parametrize("nano", ["residual_shift"], indirect=True)

SCRIPT = ROOT / "scripts" / "moesr_webui.py"


both = pytest.mark.parametrize("kind", ["A1111", "Forge"])


@pytest.fixture
def kind() -> str:
    """Which host, where a test does not run in `both`."""
    return "A1111"


@pytest.fixture
def host(kind: str, tmp_path: Path, nano: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """A host whose models/MoESR has one small model, `nano`, beside the embedded one."""
    monkeypatch.setattr(library, "_added", [])
    monkeypatch.setattr(library, "user_folders", lambda: [])
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    folder = tmp_path / "models" / "MoESR"
    folder.mkdir(parents=True)
    shutil.copy(nano, folder / "nano.safetensors")
    with Host(tmp_path, forge=kind == "Forge").entered() as made:
        yield made
        made.call("script_unloaded")


@pytest.fixture
def loaded(host: Host) -> ModuleType:
    """Our script, loaded as the host does it: settings, then upscalers, then the tab."""
    script = host.load_script(SCRIPT)
    host.call("ui_settings")
    host.opts.data |= {"moesr_model": "nano", "moesr_steps": 2}
    host.upscalers += script.UpscalerMoESR(None).scalers
    return script


def module(name: str) -> Any:
    return import_module(f"moesr.webui.{name}")


def picture(width: int = 7, height: int = 5, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 255, (height, width, 4), np.uint8)).convert(mode)


def named(host: Host, part: str) -> Any:
    return next(data for data in host.upscalers if part in data.name)


def component(elem_id: str) -> Component:
    return next(c for c in Component.made if c.options.get("elem_id") == elem_id)


# Loading


@both
def test_the_script_is_found_by_its_classes(host: Host, loaded: ModuleType) -> None:
    names = [data.name for data in host.upscalers]
    assert names == ["MoESR tiny x4", "MoESR nano x4"]
    assert loaded.MoESRExtras.name == "MoESR"
    assert issubclass(loaded.MoESRGeneration, module("webui_api").scripts.Script)
    assert not [name for name in vars(loaded) if name in ("Script", "Upscaler")], "the host would take these for ours"


def test_the_package_is_there_after_the_host_took_its_folder_off_the_path(loaded: ModuleType) -> None:
    assert module("api").is_permitted(None, "")


def test_a_second_copy_says_so_and_does_nothing(host: Host, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    second = tmp_path / "extensions" / "moesr-copy"
    (second / "scripts").mkdir(parents=True)
    shutil.copy(SCRIPT, second / "scripts")
    with caplog.at_level(logging.ERROR):
        script = host.load_script(second / "scripts" / SCRIPT.name)
    assert f"{second} is a second copy of MoESR" in caplog.text
    assert str(ROOT) in caplog.text
    assert not host.callbacks
    assert not hasattr(script, "UpscalerMoESR")


def test_other_extensions_may_have_folders_of_our_names(host: Host, tmp_path: Path) -> None:
    for name in ("web", "nodes"):
        other = tmp_path / "extensions" / f"other-{name}" / name
        other.mkdir(parents=True)
        (other / "__init__.py").write_text("raise RuntimeError('not ours')")
        (other.parent / "scripts").mkdir()
        (other.parent / "scripts" / "other.py").write_text("import sys\nassert sys.path[0].find('other-') > 0\n")
        host.load_script(other.parent / "scripts" / "other.py")
    assert host.load_script(SCRIPT).UpscalerMoESR(None).scalers


def test_models_of_the_flag_come_first(host: Host, nano: Path, tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.mkdir()
    shutil.copy(nano, given / "more.safetensors")
    shutil.copy(nano, given / "nano.safetensors")
    host.flags.moesr_models_path = str(given)
    host.load_script(SCRIPT)
    engine = module("engine").engine()
    assert {"more", "nano", "tiny"} <= set(engine.facts.list_names())
    assert engine.facts.find_path("nano").parent == given


@both
def test_settings(host: Host, loaded: ModuleType) -> None:
    defaults = module("webui_api").DEFAULTS
    labels = host.opts.data_labels
    # The host refuses a value whose type is not that of the default.
    assert {name: info.default for name, info in labels.items()}.items() <= defaults.items()
    assert set(defaults) - set(labels) == ({"moesr_checkpoint"} if host.forge else set())
    assert all(info.section == ("moesr", "MoESR") for info in labels.values())
    assert labels["moesr_decoder"].default == "None"
    choices: Any = labels["moesr_model"].component_args
    assert choices()["choices"] == ["tiny", "nano"]


# The upscaler


@pytest.mark.parametrize(
    ("scale", "size"), [(4.0, (28, 20)), (2.5, (18, 13)), (1.0, (7, 5)), (6.0, (42, 30)), (0.5, (4, 3))]
)
def test_the_size_is_exact_and_the_model_runs_once(
    host: Host, loaded: ModuleType, scale: float, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = import_module("moesr.hosting.runner")
    runs = []
    monkeypatch.setattr(run, "upscale", lambda *a, before=run.upscale, **k: runs.append(k) or before(*a, **k))
    data = named(host, "nano")
    result = data.scaler.upscale(picture(), scale, data.data_path)
    assert (result.size, result.mode) == (size, "RGB")
    assert [k["steps"] for k in runs] == ([2] if scale >= 1 else [])


@pytest.mark.parametrize("mode", ["RGBA", "L", "RGB", "P", "LA", "1", "CMYK", "I;16"])
def test_every_mode_of_picture(host: Host, loaded: ModuleType, mode: str) -> None:
    data = named(host, "nano")
    image = Image.new("I;16", (7, 5), 3000) if mode == "I;16" else picture(mode="RGB").convert(mode)
    image = picture(mode="RGBA").convert(mode) if mode in ("RGBA", "LA") else image
    result = data.scaler.upscale(image, 2, data.data_path)
    assert result.size == (14, 10)
    assert ("A" in result.mode) == ("A" in mode)
    if mode in ("RGB", "RGBA", "L"):
        assert result.mode == mode


def test_one_pixel_and_a_scale_beyond_the_page(host: Host, loaded: ModuleType) -> None:
    data = named(host, "nano")
    assert data.scaler.upscale(picture(1, 1), 32, data.data_path).size == (32, 32)


def test_pixels_are_taken_as_they_lie_whatever_exif_says(host: Host, loaded: ModuleType) -> None:
    data = named(host, "nano")
    image = picture()
    image.getexif()[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=image.getexif())
    assert data.scaler.upscale(Image.open(buffer), 4, data.data_path).size == (28, 20)


@both
def test_interrupt_ends_a_run_between_layers_and_a_good_one_follows(host: Host, loaded: ModuleType) -> None:
    data, image = named(host, "nano"), picture(32, 32)
    layers = []

    def stop(*_: Any) -> None:
        layers.append(1)
        host.state.interrupted = True

    handle = torch.nn.modules.module.register_module_forward_pre_hook(stop)
    try:
        stopped = data.scaler.upscale(image, 4, data.data_path)
    finally:
        handle.remove()
    assert len(layers) == 1, "the layer that follows does not begin"
    assert stopped.tobytes() == image.resize((128, 128), Image.Resampling.LANCZOS).tobytes()
    host.state.interrupted = False
    good = data.scaler.upscale(image, 4, data.data_path)
    assert good.size == (128, 128)
    assert good.tobytes() != stopped.tobytes()


def test_progress_is_told_and_the_hosts_own_figures_come_back(
    host: Host, loaded: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    before = module("webui_api").show_progress
    monkeypatch.setattr(
        module("webui_api"), "show_progress", lambda *a: before(*a) or seen.append((host.state.sampling_step, a[1]))
    )
    host.state.sampling_step, host.state.sampling_steps = 7, 20
    data = named(host, "nano")
    data.scaler.upscale(picture(), 4, data.data_path)
    assert (host.state.sampling_step, host.state.sampling_steps, host.state.textinfo) == (7, 20, None)
    assert [step for step, _ in seen] == sorted(step for step, _ in seen)
    assert "MoESR: tile 1/1, step 2/2" in [text for _, text in seen]


def test_a_large_picture_is_done_in_tiles(host: Host, loaded: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    before = module("webui_api").show_progress
    monkeypatch.setattr(module("webui_api"), "show_progress", lambda *a: before(*a) or seen.add(a[1]))
    host.opts.data["moesr_tile"] = "64"
    data = named(host, "nano")
    assert data.scaler.upscale(picture(40, 30), 4, data.data_path).size == (160, 120)
    assert "MoESR: tile 6/6, step 1/2" in seen


def test_a_missing_model_file_is_named(host: Host, loaded: ModuleType) -> None:
    data = named(host, "nano")
    Path(data.data_path).unlink()
    with pytest.raises(MoESRError, match=r"model nano: .* is not there any more; put it back or press Reload UI"):
        data.scaler.upscale(picture(), 4, data.data_path)
    embedded = named(host, "tiny")
    assert embedded.scaler.upscale(picture(), 1, embedded.data_path).size == (7, 5)


def test_a_broken_model_file_is_left_out_with_a_line(
    host: Host, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "models" / "MoESR" / "broken.safetensors").write_bytes(b"nothing")
    script = host.load_script(SCRIPT)
    with caplog.at_level(logging.WARNING):
        names = [data.name for data in script.UpscalerMoESR(None).scalers]
    assert names == ["MoESR tiny x4", "MoESR nano x4"]
    assert "left out: broken" in caplog.text


def test_autocast_of_the_host_does_not_reach_our_layers(host: Host, loaded: ModuleType) -> None:
    kinds = set()
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda _, __, out: kinds.add(out.dtype) if isinstance(out, torch.Tensor) else None
    )
    data = named(host, "nano")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            data.scaler.upscale(picture(), 4, data.data_path)
    finally:
        handle.remove()
    assert kinds == {torch.float32}


@pytest.mark.parametrize("name", ["realsr_x4_v3", "my-4x"])
def test_a_scale_in_a_name_is_not_said_twice(loaded: ModuleType, name: str) -> None:
    assert module("upscaler").make_title(name, 4) == f"MoESR {name}"
    assert module("upscaler").make_title(name, 2) == f"MoESR {name} x2"


# Memory


@both
def test_a_checkpoint_leaves_the_gpu_and_comes_back(
    host: Host, loaded: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = module("webui_api").import_module("modules.sd_models")
    models.model_data.sd_model = "checkpoint"
    data = named(host, "nano")

    def moves(wish: str) -> list[str]:
        host.opts.data["moesr_checkpoint"] = wish
        host.moves.clear()
        data.scaler.upscale(picture(), 4, data.data_path)
        return [move for move in host.moves if "checkpoint" in move]

    assert moves("never") == []
    assert moves("when memory is short") == [], "the CPU is never short of what the checkpoint has"
    assert moves("always") == ([] if host.forge else ["checkpoint off", "checkpoint back"])
    host.state.interrupted = True
    assert moves("always") == [], "nothing begins"


@both
def test_forge_loads_our_networks_by_its_patchers(host: Host, loaded: ModuleType) -> None:
    data = named(host, "nano")
    data.scaler.upscale(picture(), 4, data.data_path)
    loads = [move for move in host.moves if move.startswith("load")]
    # The encoder, which is the decoder too, and an expert for each of two steps; none of them twice.
    expected = ["load Autoencoder", "load UNet", "load UNet"]
    assert loads == (expected if host.forge else [])


@both
def test_networks_wait_in_system_memory_or_go(host: Host, loaded: ModuleType) -> None:
    engine = module("engine").engine()
    data = named(host, "nano")
    data.scaler.upscale(picture(), 4, data.data_path)
    assert engine.networks._built
    host.opts.data["moesr_keep"] = False
    data.scaler.upscale(picture(), 4, data.data_path)
    assert not engine.networks._built


class Card:
    """Networks of 100 bytes on a device with room for `room` of them."""

    def __init__(self, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
        keepers, networks = module("keepers"), import_module("moesr.hosting.networks")
        self.there: list[int] = []
        card = self

        class Part(torch.nn.Module):
            def __init__(self, i: int) -> None:
                super().__init__()
                self.i, self.weight = i, torch.nn.Parameter(torch.zeros(25))

            def to(self, device: torch.device) -> Part:  # type: ignore[override]
                if self.i in card.there:
                    card.there.remove(self.i)
                if device.type == "meta":
                    card.there.append(self.i)
                assert len(card.there) <= room
                return self

        free = lambda _: 120 * (room - len(card.there))  # noqa: E731
        monkeypatch.setattr(keepers.A1111Keeper, "measure_free_memory", free)
        sources = [networks.NetworkSource(100, lambda device, i=i: Part(i)) for i in range(3)]
        self.networks = networks.Networks(sources, keepers.A1111Keeper(torch.device("meta")))


def test_experts_take_turns_on_a_small_card(host: Host, loaded: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(2, monkeypatch)
    for i in (0, 0, 1):
        with card.networks.use(i):
            assert i in card.there
    assert card.there == [0, 1]
    with card.networks.use(2):
        assert card.there == [2]
    card.networks.release()
    assert card.there == []
    with card.networks.use(2):
        assert card.there == [2]
    card.networks.end_run(keep=True)
    assert card.there == []


# Extras


def run_extras(loaded: ModuleType, image: Image.Image, **values: Any) -> PostprocessedImage:
    script, pp = loaded.MoESRExtras(), PostprocessedImage(image)
    script.process_firstpass(pp, **values)
    script.process(pp, **values)
    return pp


def test_extras(host: Host, loaded: ModuleType) -> None:
    controls = loaded.MoESRExtras().ui()
    values = {name: control.options.get("value") for name, control in controls.items()}
    assert values["model"] == "nano"
    pp = run_extras(loaded, picture(), **{**values, "enabled": True, "scale": 3, "steps": 1, "seed": 5})
    assert pp.image.size == (21, 15)
    assert (pp.shared.target_width, pp.shared.target_height) == (21, 15)
    digest = module("engine").engine().facts.compute_hash("nano")
    assert pp.info == {
        "MoESR model": "nano", "MoESR model hash": digest, "MoESR scale": "3", "MoESR steps": 1, "MoESR seed": 5,
        "MoESR fidelity": "1", "MoESR colour fix": "adain", "MoESR sampler": "ddim",
    }  # fmt: skip


def test_extras_is_off_for_programs_that_do_not_know_it(loaded: ModuleType) -> None:
    names = list(loaded.MoESRExtras().ui())
    pp = run_extras(loaded, picture(), **dict.fromkeys(names))
    assert (pp.image.size, pp.info) == ((7, 5), {})


def test_extras_with_what_a_program_leaves_out(loaded: ModuleType) -> None:
    assert run_extras(loaded, picture(), enabled=True, steps=1).image.size == (28, 20)


def test_extras_interrupted_leaves_the_picture(host: Host, loaded: ModuleType) -> None:
    host.state.skipped = True
    pp = run_extras(loaded, picture(), enabled=True, scale=2)
    assert (pp.image.size, pp.info) == ((7, 5), {"MoESR": "interrupted, not upscaled"})


def run_upscale_script(host: Host, image: Image.Image, **values: Any) -> PostprocessedImage:
    host.flags.api = False
    host.call("app_started", None, None)
    pp = PostprocessedImage(image)
    host.upscale_script.process(pp, upscale_by=4.0, upscaler_1_name="MoESR nano x4", **values)
    return pp


def test_extras_blends_ours_with_another_upscaler_of_any_size(host: Host, loaded: ModuleType) -> None:
    host.upscalers.append(UpscalerData("Lanczos", "", Lanczos()))
    alone = run_upscale_script(host, picture(9, 7))
    assert alone.image.size == (36, 28)
    assert (alone.info["MoESR steps"], alone.info["MoESR seed"]) == (2, 0)
    both = run_upscale_script(host, picture(9, 7), upscaler_2_name="Lanczos", upscaler_2_visibility=0.5)
    assert both.image.size == (32, 24)
    host.opts.data["moesr_seed"] = 5
    assert run_upscale_script(host, picture(9, 7)).info["MoESR seed"] == 5, "the host remembers no old result"


def test_extras_says_that_an_interrupted_picture_was_not_upscaled(host: Host, loaded: ModuleType) -> None:
    host.state.interrupted = True
    pp = run_upscale_script(host, picture())
    assert pp.image.size == (28, 20)
    assert pp.info == {"MoESR": "interrupted, enlarged without a model"}


# The tab


@pytest.fixture
def tab(host: Host, loaded: ModuleType) -> Any:
    host.call("ui_tabs")
    return module("tab")


def send(tab: Any, name: str, image: Image.Image, text: str | None = None) -> Path:
    path = tab.job_queue().host.received / name
    image.info.update({"parameters": text} if text else {})
    ways = tab.Transfers(tab.job_queue())
    received = Path(ways.receive(image)[0][0])
    return received.replace(path)


def job_of(tab: Any, path: Path, **settings: Any) -> Any:
    queue = tab.job_queue()
    return queue.submit([module("api").accept(path, queue.host.upload_folders)], "nano", {"steps": 1, **settings})


def test_the_tab_is_wired_to_the_host(host: Host, loaded: ModuleType) -> None:
    for elem_id in ("txt2img_gallery", "txt2img_send_to_extras", "img2img_send_to_extras"):
        host.call("after_component", Component(elem_id=elem_id), *[])
        for callback in host.callbacks["after_component"]:
            callback(Component(), elem_id=elem_id)
    [tabs] = host.call("ui_tabs")
    assert [(title, key) for _, title, key in tabs] == [("MoESR", "moesr")]
    ways = {(binding.tabname, bool(binding.source_image_component)) for binding in host.bindings}
    assert ways == {("moesr", True), ("txt2img", False), ("img2img", True), ("inpaint", True), ("extras", True)}
    assert len(host.bindings) == 5, "a gallery that was not seen has no button"
    assert host.paste_fields["moesr"] is component("moesr-received")
    [(receive, inputs, outputs, *_)] = component("moesr-received").events["change"]
    assert inputs == [component("moesr-received")]
    assert outputs == [component("moesr-files"), component("moesr-received")]
    assert receive(None) == ({"__type__": "update"}, {"__type__": "update"})


@both
def test_a_job_is_the_hosts_and_its_result_is_kept(host: Host, tab: Any) -> None:
    path = send(tab, "sent.png", picture(), "a cat\nSteps: 3")
    job = job_of(tab, path, scale=2, seed=9)
    wait_for(lambda: job.is_finished)
    assert (job.state, job.failures) == ("done", [])
    assert host.state.log == ["begin MoESR", "end"]
    [saved] = host.saved
    assert saved["size"] == (14, 10)
    assert saved["path"] == host.opts.data["outdir_extras_samples"]
    assert saved["existing"]["parameters"] == "a cat\nSteps: 3"
    assert '"seed": 9' in saved["existing"]["moesr"]
    assert saved["info"].startswith("MoESR model: nano, MoESR model hash: ")
    address = tab.job_queue().host.url(job.results[0].path)
    image, parameters = tab.Transfers(tab.job_queue()).send(address)
    assert (image.size, parameters) == ((14, 10), "a cat\nSteps: 3")


def test_the_queue_is_the_hosts(host: Host, tab: Any) -> None:
    path = send(tab, "sent.png", picture())
    with host.lock:
        job = job_of(tab, path)
        job.wait(0.3)
        assert job.state == "waiting"
        assert host.state.log == []
    wait_for(lambda: job.is_finished)
    assert job.state == "done"


def test_interrupt_of_the_host_ends_a_job_and_the_next_is_done(host: Host, tab: Any) -> None:
    path = send(tab, "sent.png", picture(64, 64))
    began = threading.Event()

    def press(*_: Any) -> None:
        if host.state.job == "MoESR":
            began.set()
            host.state.interrupt()

    handle = torch.nn.modules.module.register_module_forward_pre_hook(press)
    try:
        job = job_of(tab, path)
        wait_for(lambda: job.is_finished)
    finally:
        handle.remove()
    assert began.is_set()
    assert (job.state, job.error) == ("cancelled", "cancelled")
    assert not host.state.interrupted
    assert not host.lock.lock.locked()
    good = job_of(tab, path)
    wait_for(lambda: good.is_finished)
    assert good.state == "done"


@both
def test_the_model_is_one_for_tab_and_upscaler(host: Host, tab: Any) -> None:
    path = send(tab, "sent.png", picture())
    job = job_of(tab, path)
    wait_for(lambda: job.is_finished)
    networks = module("engine").engine().networks
    for name in ("nano", "tiny", "nano"):
        data = named(host, name)
        data.scaler.upscale(picture(), 4, data.data_path)
        assert (module("engine").engine().networks is networks) == (name == "nano" and networks._built != {})
        networks = module("engine").engine().networks
    again = job_of(tab, path)
    wait_for(lambda: again.is_finished)
    assert (again.state, again.failures) == ("done", [])
    assert module("engine").engine().networks is networks


def test_cancel_changes_one_button(tab: Any) -> None:
    handlers = import_module("moesr.page.handlers").Handlers(tab.job_queue())
    assert handlers.cancel("") == {"__type__": "update", "interactive": False}


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

    import_module("moesr.page.compat").on(EventWrapper(click), None, js="f", queue=False)
    assert given == {"js": "f", "queue": False}


def test_only_results_are_sent_on(tab: Any, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    picture().save(secret)
    assert tab.Transfers(tab.job_queue()).send(f"file={secret}") == (None, "")
    assert tab.Transfers(tab.job_queue()).send("") == (None, "")


@both
def test_reload_leaves_nothing_behind(host: Host, tab: Any) -> None:
    folder = tab.job_queue().host.folder
    assert folder.is_dir()
    host.call("script_unloaded")
    assert not folder.exists()
    host.callbacks.clear()
    host.load_script(SCRIPT)
    host.call("ui_tabs")
    assert tab.job_queue().host.folder.is_dir()


# The API


def encoded(image: Image.Image) -> str:
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


def ask(tab: Any, body: Any, **more: Any) -> dict[str, Any]:
    return asyncio.run(module("api").answer(tab.job_queue(), Request(body, **more)))


def test_api(host: Host, tab: Any) -> None:
    image = "data:image/png;base64," + encoded(picture(mode="RGBA"))
    answer = ask(tab, {"image": image, "scale": 2.5, "steps": 1, "seed": -1, "fidelity": None})
    result = Image.open(io.BytesIO(base64.b64decode(answer["image"])))
    assert (result.size, result.mode) == ((18, 13), "RGBA")
    assert (answer["width"], answer["height"], answer["settings"]["model"]) == (18, 13, "nano")
    assert 0 <= answer["settings"]["seed"] < 2**32
    assert host.saved == [], "a program has its answer"
    assert list(tab.job_queue().host.received.iterdir()) == []
    assert {"name": "nano", "scale": 4, "steps": 4} in module("api").describe_models()


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({}, 422, "give a picture in base64"),
        (b"{", 422, "no JSON"),
        ([], 422, "no JSON object"),
        ({"image": "!"}, 422, "no base64"),
        ({"image": base64.b64encode(b"text").decode()}, 422, "image: not a PNG"),
        ({"image": encoded(picture()), "model": "gone"}, 422, "'gone' is not in the library"),
        ({"image": encoded(picture()), "steps": 0}, 422, "steps 0"),
        ({"image": encoded(picture()), "steps": 5000}, 422, "steps 5000"),
        ({"image": encoded(picture()), "scale": "abc"}, 422, "scale 'abc': give a number from 0.1 to 64"),
        ({"image": encoded(picture()), "scal": 2}, 422, "scal: there is no such setting"),
    ],
)
def test_what_the_api_cannot_do_is_said(tab: Any, body: Any, status: int, said: str) -> None:
    with pytest.raises(MoESRError, match=said) as raised:
        ask(tab, body)
    assert module("api").find_status(raised.value) == status


def test_a_client_of_the_api_that_leaves_or_is_interrupted_ends_its_job(host: Host, tab: Any) -> None:
    slow = {"image": encoded(picture(64, 64)), "steps": 1000}
    for interrupt, more in ((False, {"leaves_after": 0.5}), (True, {})):
        if interrupt:
            threading.Timer(1.0, host.state.interrupt).start()
        began = time.monotonic()
        with pytest.raises(MoESRError) as raised:
            ask(tab, slow, **more)
        assert time.monotonic() - began < 30
        assert module("api").find_status(raised.value) == 409
        assert not tab.job_queue()._running


def test_the_api_describes_its_fields(loaded: ModuleType) -> None:
    fields = module("api").describe_request()["properties"]
    assert fields["scale"] == {"type": "number", "minimum": 0.1, "maximum": 64, "default": None,
                               "description": SETTINGS["scale"].sentence}  # fmt: skip
    assert set(fields) == {"image", "model", *RUN_SETTINGS}


def test_the_api_asks_for_the_hosts_password(loaded: ModuleType) -> None:
    permitted = module("api").is_permitted

    def header(text: str) -> str:
        return "Basic " + base64.b64encode(text.encode()).decode()

    assert permitted(None, "")
    assert permitted("a:b,c:d", header("c:d"))
    assert not permitted("a:b", header("a:x"))
    assert not permitted("a:b", "")
    assert not permitted("a:b", "Basic ?")
    assert not permitted("a:b", "Bearer a:b")


def test_without_the_flag_there_is_no_api(host: Host, loaded: ModuleType) -> None:
    host.flags.api = False
    host.call("app_started", None, None)  # touches no app


# Generations


@pytest.fixture
def decoder(host: Host, tmp_path: Path) -> str:
    torch.manual_seed(0)
    network = Autoencoder(
        AutoencoderConfig(
            kind="kl", ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1, z_channels=4, embed_dim=4, lr_fusion=False
        )
    )
    torch.save(network.state_dict(), tmp_path / "models" / "MoESR" / "fa_vae.pth")
    return "fa_vae"


def checkpoint(is_sd1: bool) -> Any:
    own = lambda latents, *_: torch.full((len(latents), 3, 16, 16), 7.0)  # noqa: E731
    return SimpleNamespace(is_sd1=is_sd1, decode_first_stage=own)


@both
def test_a_generation_is_decoded_as_the_setting_says(host: Host, loaded: ModuleType, decoder: str) -> None:
    sd15, sdxl = checkpoint(True), checkpoint(False)
    for model in (sd15, sdxl, sd15):
        host.call("model_loaded", model)
    latents = torch.randn(1, 4, 2, 2) * 0.18215
    assert (sd15.decode_first_stage(latents) == 7).all(), "off by default"
    host.opts.data["moesr_decoder"] = decoder
    pictures = sd15.decode_first_stage(latents)
    assert pictures.shape == (1, 3, 16, 16)
    assert -1 <= pictures.min() < pictures.max() <= 1
    expected = module("engine").engine().decoder(decoder).decode(latents / 0.18215)
    assert torch.allclose(pictures, expected.movedim(-1, 1) * 2 - 1)
    assert (sdxl.decode_first_stage(latents) == 7).all()
    host.opts.data["moesr_decoder"] = "gone"
    assert (sd15.decode_first_stage(latents) == 7).all(), "better the host's picture than none"


def test_a_decoder_is_offered_for_generations_only(host: Host, loaded: ModuleType, decoder: str) -> None:
    assert module("engine").list_decoders() == ["None", decoder]
    assert decoder not in [data.name for data in loaded.UpscalerMoESR(None).scalers]
    assert decoder not in module("engine").list_models()


def test_generation_parameters(host: Host, loaded: ModuleType, decoder: str) -> None:
    def parameters(hires: str | None, is_sd1: bool = True) -> dict[str, Any]:
        p = SimpleNamespace(extra_generation_params={}, sd_model=checkpoint(is_sd1), enable_hr=True, hr_upscaler=hires)
        loaded.MoESRGeneration().process(p)
        return p.extra_generation_params

    assert parameters("Latent") == {}
    assert parameters("MoESR nano x4") == {"MoESR hires": "steps: 2, seed: 0, fidelity: auto, colour fix: adain"}
    host.opts.data["moesr_decoder"] = decoder
    assert parameters(None) == {"MoESR decoder": decoder}
    assert parameters(None, is_sd1=False) == {}
    host.opts.data["moesr_decoder"] = "gone"
    assert parameters(None) == {}
