"""MoESR as an extension of A1111 and Forge, run against stand-ins of the hosts: loading, upscalers, Extras, memory."""

from __future__ import annotations

import io
import logging
import shutil
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest
import torch
from PIL import Image
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from moesr.config import AutoencoderConfig
from moesr.errors import MoESRError
from moesr.networks.autoencoder import Autoencoder
from tests.webui.standins import (
    ROOT,
    SCRIPT,
    Host,
    Lanczos,
    PostprocessedImage,
    UpscalerData,
    both_hosts,
    draw_picture,
    import_ours,
)


def upscale(host: Host, image: Image.Image, scale: float = 4, model: str = "nano") -> Image.Image:
    data = next(data for data in host.upscalers if model in data.name)
    return data.scaler.upscale(image, scale, data.data_path)


# Loading


@both_hosts
def test_the_script_is_found_by_its_classes(host: Host, loaded: ModuleType) -> None:
    assert [data.name for data in host.upscalers] == ["MoESR tiny x4", "MoESR nano x4"]
    assert loaded.MoESRExtras.name == "MoESR"
    assert issubclass(loaded.MoESRGeneration, import_ours("webui_api").scripts.Script)
    assert not [name for name in vars(loaded) if name in ("Script", "Upscaler")], "the host would take these for ours"


def test_a_second_copy_says_so_and_does_nothing(host: Host, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    second = tmp_path / "extensions" / "moesr-copy"
    (second / "scripts").mkdir(parents=True)
    shutil.copy(SCRIPT, second / "scripts")
    with caplog.at_level(logging.ERROR):
        script = host.load_script(second / "scripts" / SCRIPT.name)
    assert f"{second} is a second copy of MoESR" in caplog.text
    assert str(ROOT) in caplog.text
    assert not any(host.callbacks.values())
    assert not hasattr(script, "UpscalerMoESR")


def test_models_of_the_flag_come_first(host: Host, nano: Path, tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.mkdir()
    for name in ("more", "nano"):
        shutil.copy(nano, given / f"{name}.safetensors")
    host.flags.moesr_models_path = str(given)
    host.load_script(SCRIPT)
    facts = import_ours("opened_models").engine().facts
    assert {"more", "nano", "tiny"} <= set(facts.list_names())
    assert facts.find_path("nano").parent == given


def test_a_broken_model_file_is_left_out(host: Host, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "models" / "MoESR" / "broken.safetensors").write_bytes(b"nothing")
    script = host.load_script(SCRIPT)
    with caplog.at_level(logging.WARNING):
        names = [data.name for data in script.UpscalerMoESR(None).scalers]
    assert names == ["MoESR tiny x4", "MoESR nano x4"]
    assert "left out: broken" in caplog.text


@both_hosts
def test_settings(host: Host, loaded: ModuleType) -> None:
    defaults, labels = import_ours("webui_api").DEFAULTS, host.opts.data_labels
    # The host refuses a value whose type is not that of the default.
    assert {name: info.default for name, info in labels.items()}.items() <= defaults.items()
    assert set(defaults) - set(labels) == ({"moesr_checkpoint"} if host.forge else set())
    assert all(info.section == ("moesr", "MoESR") for info in labels.values())
    choices: Any = labels["moesr_model"].component_args
    assert choices()["choices"] == ["tiny", "nano"]
    # A1111 updates all settings at once when its page is loaded; Gradio 3 takes no other options there.
    for arguments in (info.component_args for info in labels.values()):
        given = cast(Any, arguments() if callable(arguments) else arguments or {})
        assert set(given) <= {"choices", "minimum", "maximum", "step", "precision"}


# The upscaler


def test_sizes_are_exact_and_made_in_one_run(host: Host, loaded: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    run, runs = import_module("moesr.hosting.model_runner"), []
    monkeypatch.setattr(run, "upscale", lambda *a, before=run.upscale, **k: runs.append(k["steps"]) or before(*a, **k))
    sizes = (((7, 5), 2.5, (18, 13)), ((7, 5), 1.0, (7, 5)), ((1, 1), 32, (32, 32)), ((7, 5), 0.5, (4, 3)))
    for before, scale, after in sizes:
        assert upscale(host, draw_picture(*before), scale).size == after
    assert runs == [2, 2, 2], "what becomes smaller needs no model"


@pytest.mark.parametrize(
    ("mode", "expected"), [("RGBA", "RGBA"), ("L", "L"), ("P", "RGB"), ("LA", "LA"), ("I;16", "L")]
)
def test_modes_of_pictures(host: Host, loaded: ModuleType, mode: str, expected: str) -> None:
    image = draw_picture(mode="RGBA").convert("L").convert("I;16") if mode == "I;16" else draw_picture(mode=mode)
    result = upscale(host, image, 2)
    assert (result.size, result.mode) == ((14, 10), expected)


def test_pixels_are_taken_as_they_lie_whatever_exif_says(host: Host, loaded: ModuleType) -> None:
    image, buffer = draw_picture(), io.BytesIO()
    image.getexif()[0x0112] = 6
    image.save(buffer, "JPEG", exif=image.getexif())
    assert upscale(host, Image.open(buffer)).size == (28, 20)


@both_hosts
def test_interrupt_ends_a_run_between_layers_and_a_good_one_follows(host: Host, loaded: ModuleType) -> None:
    image, layers = draw_picture(32, 32), []

    def stop(*_: Any) -> None:
        layers.append(1)
        host.state.interrupted = True

    handle = register_module_forward_pre_hook(stop)
    try:
        stopped = upscale(host, image)
    finally:
        handle.remove()
    assert len(layers) == 1, "the layer that follows does not begin"
    assert stopped.tobytes() == image.resize((128, 128), Image.Resampling.LANCZOS).tobytes()
    host.state.interrupted = False
    good = upscale(host, image)
    assert good.size == (128, 128)
    assert good.tobytes() != stopped.tobytes()


def test_progress_is_shown_and_then_the_hosts_own(
    host: Host, loaded: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    webui_api, steps, texts = import_ours("webui_api"), [], []

    def show(fraction: float, text: str, before: Any = webui_api.show_progress) -> None:
        before(fraction, text)
        steps.append(host.state.sampling_step)
        texts.append(host.state.textinfo)

    monkeypatch.setattr(webui_api, "show_progress", show)
    host.opts.data["moesr_tile"] = "64"
    host.state.sampling_step, host.state.sampling_steps = 7, 20
    assert upscale(host, draw_picture(40, 30)).size == (160, 120)
    assert (host.state.sampling_step, host.state.sampling_steps, host.state.textinfo) == (7, 20, None)
    assert steps == sorted(steps)
    assert "MoESR: tile 6/6, step 1/2" in texts


def test_a_missing_model_file_is_named(host: Host, loaded: ModuleType) -> None:
    Path(next(data for data in host.upscalers if "nano" in data.name).data_path).unlink()
    with pytest.raises(MoESRError, match=r"model nano: .* is not there any more; put it back or press Reload UI"):
        upscale(host, draw_picture())
    assert upscale(host, draw_picture(), 1, model="tiny").size == (7, 5)


def test_autocast_of_the_host_does_not_reach_our_layers(host: Host, loaded: ModuleType) -> None:
    kinds = set()
    handle = register_module_forward_hook(
        lambda _, __, out: kinds.add(out.dtype) if isinstance(out, torch.Tensor) else None
    )
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            upscale(host, draw_picture())
    finally:
        handle.remove()
    assert kinds == {torch.float32}


def test_a_scale_in_a_name_is_not_said_twice(loaded: ModuleType) -> None:
    for name in ("realsr_x4_v3", "my-4x"):
        assert import_ours("upscaler").make_title(name, 4) == f"MoESR {name}"
        assert import_ours("upscaler").make_title(name, 2) == f"MoESR {name} x2"


# Memory


@both_hosts
def test_a_checkpoint_leaves_the_gpu_and_comes_back(host: Host, loaded: ModuleType) -> None:
    import_ours("webui_api").import_module("modules.sd_models").model_data.sd_model = "checkpoint"

    def list_moves(wish: str) -> list[str]:
        host.opts.data["moesr_checkpoint"] = wish
        host.moves.clear()
        upscale(host, draw_picture())
        return [move for move in host.moves if "checkpoint" in move]

    assert list_moves("never") == []
    assert list_moves("when memory is short") == [], "the CPU is never short of what the checkpoint has"
    assert list_moves("always") == ([] if host.forge else ["checkpoint off", "checkpoint back"])
    host.state.interrupted = True
    assert list_moves("always") == [], "nothing begins"


@both_hosts
def test_networks_are_loaded_once_by_forges_patchers_and_kept_or_not(host: Host, loaded: ModuleType) -> None:
    upscale(host, draw_picture())
    loads = [move for move in host.moves if move.startswith("load")]
    # The encoder, which is the decoder too, and an expert for each of two steps.
    assert loads == (["load Autoencoder", "load UNet", "load UNet"] if host.forge else [])
    networks = import_ours("opened_models").engine().networks
    assert networks.handles()
    host.opts.data["moesr_keep"] = False
    upscale(host, draw_picture())
    assert not networks.handles()


def test_networks_leave_a_small_card_for_others(loaded: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    there: list[int] = []

    class Network(torch.nn.Linear):
        """100 bytes."""

        def to(self, device: torch.device) -> Network:  # type: ignore[override]  # of all that `to` takes, a device
            there.append(id(self)) if device.type == "meta" else there.remove(id(self))
            return self

    keeper = import_ours("memory_keepers").A1111Keeper(torch.device("meta"))
    monkeypatch.setattr(keeper, "measure_free_memory", lambda: 120 * (2 - len(there)))
    networks = [Network(25, 1, bias=False) for _ in range(3)]
    first, second, third = map(id, networks)
    for wanted, expected in ((0, [first]), (0, [first]), (1, [first, second]), (2, [third])):
        others = [network for network in networks if network is not networks[wanted] and id(network) in there]
        keeper.load([networks[wanted]], others=others, working=0)
        assert there == expected
    keeper.end_run([networks[2]])
    assert there == []


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
    pp = run_extras(loaded, draw_picture(), **{**values, "enabled": True, "scale": 3, "steps": 1, "seed": 5})
    assert pp.image.size == (21, 15)
    assert (pp.shared.target_width, pp.shared.target_height) == (21, 15)
    digest = import_ours("opened_models").engine().facts.compute_hash("nano")
    assert pp.info == {
        "MoESR model": "nano", "MoESR model hash": digest, "MoESR scale": "3", "MoESR steps": 1, "MoESR seed": 5,
        "MoESR fidelity": "1", "MoESR colour fix": "adain", "MoESR sampler": "ddim",
    }  # fmt: skip
    unknown = run_extras(loaded, draw_picture(), **dict.fromkeys(controls))
    assert (unknown.image.size, unknown.info) == ((7, 5), {}), "off for programs that do not know it"
    assert run_extras(loaded, draw_picture(), enabled=True, steps=1).image.size == (28, 20), "the rest is the model's"
    host.state.skipped = True
    skipped = run_extras(loaded, draw_picture(), enabled=True, scale=2)
    assert (skipped.image.size, skipped.info) == ((7, 5), {"MoESR": "interrupted, not upscaled"})


def run_upscale_script(host: Host, image: Image.Image, **values: Any) -> PostprocessedImage:
    host.flags.api = False
    host.call("app_started", None, None)
    pp = PostprocessedImage(image)
    host.upscale_script.process(pp, upscale_by=4.0, upscaler_1_name="MoESR nano x4", **values)
    return pp


def test_extras_blends_ours_with_another_upscaler_of_any_size(host: Host, loaded: ModuleType) -> None:
    host.upscalers.append(UpscalerData("Lanczos", "", Lanczos()))
    alone = run_upscale_script(host, draw_picture(9, 7))
    assert alone.image.size == (36, 28)
    assert (alone.info["MoESR steps"], alone.info["MoESR seed"]) == (2, 0)
    blend = run_upscale_script(host, draw_picture(9, 7), upscaler_2_name="Lanczos", upscaler_2_visibility=0.5)
    assert blend.image.size == (32, 24)
    host.opts.data["moesr_seed"] = 5
    assert run_upscale_script(host, draw_picture(9, 7)).info["MoESR seed"] == 5, "the host remembers no old result"
    host.state.interrupted = True
    interrupted = run_upscale_script(host, draw_picture())
    assert interrupted.image.size == (28, 20)
    assert interrupted.info == {"MoESR": "interrupted, enlarged without a model"}


# Generations


@pytest.fixture
def decoder(host: Host, tmp_path: Path) -> str:
    torch.manual_seed(0)
    config = AutoencoderConfig(
        kind="kl", ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1, z_channels=4, embed_dim=4, lr_fusion=False
    )
    torch.save(Autoencoder(config).state_dict(), tmp_path / "models" / "MoESR" / "fa_vae.pth")
    return "fa_vae"


def make_checkpoint(is_sd1: bool) -> Any:
    return SimpleNamespace(is_sd1=is_sd1, decode_first_stage=lambda z, *_: torch.full((len(z), 3, 16, 16), 7.0))


@both_hosts
def test_a_generation_is_decoded_as_the_setting_says(host: Host, loaded: ModuleType, decoder: str) -> None:
    sd15, sdxl = make_checkpoint(True), make_checkpoint(False)
    for model in (sd15, sdxl, sd15):
        host.call("model_loaded", model)
    latents = torch.randn(1, 4, 2, 2) * 0.18215
    assert (sd15.decode_first_stage(latents) == 7).all(), "off by default"
    host.opts.data["moesr_decoder"] = decoder
    pictures = sd15.decode_first_stage(latents)
    assert pictures.shape == (1, 3, 16, 16)
    assert -1 <= pictures.min() < pictures.max() <= 1
    expected = import_ours("opened_models").engine().decoder(decoder).decode(latents / 0.18215)
    assert torch.allclose(pictures, expected.movedim(-1, 1) * 2 - 1)
    assert (sdxl.decode_first_stage(latents) == 7).all()
    host.opts.data["moesr_decoder"] = "gone"
    assert (sd15.decode_first_stage(latents) == 7).all(), "better the host's picture than none"


def test_generation_parameters(host: Host, loaded: ModuleType, decoder: str) -> None:
    def list_parameters(hires: str | None, is_sd1: bool = True) -> dict[str, Any]:
        model = make_checkpoint(is_sd1)
        p = SimpleNamespace(extra_generation_params={}, sd_model=model, enable_hr=True, hr_upscaler=hires)
        loaded.MoESRGeneration().process(p)
        return p.extra_generation_params

    assert import_ours("opened_models").list_decoders() == ["None", decoder]
    assert decoder not in import_ours("opened_models").list_models()
    assert list_parameters("Latent") == {}
    assert list_parameters("MoESR nano x4") == {"MoESR hires": "steps: 2, seed: 0, fidelity: auto, colour fix: adain"}
    host.opts.data["moesr_decoder"] = decoder
    assert list_parameters(None) == {"MoESR decoder": decoder}
    assert list_parameters(None, is_sd1=False) == {}
    host.opts.data["moesr_decoder"] = "gone"
    assert list_parameters(None) == {}
