"""Small stand-ins of what A1111 1.10.1 and Forge (2025-06) give to extensions: just what MoESR uses of it.

Names, parameters and defaults were compared by hand with the genuine files, which are named at each of them.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.webui.gradio_standin import Component, Gradio, forbid_unknown

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "moesr_webui.py"

both_hosts = pytest.mark.parametrize("kind", ["A1111", "Forge"])


class State:
    """modules/shared_state.py."""

    def __init__(self) -> None:
        self.skipped = self.interrupted = self.stopping_generation = False
        self.job, self.job_no, self.job_count = "", 0, 0
        self.sampling_step = self.sampling_steps = 0
        self.current_image: Any = None
        self.textinfo: str | None = None
        self.log: list[str] = []

    def begin(self, job: str = "(unknown)") -> None:
        self.job, self.job_count, self.job_no, self.sampling_step = job, -1, 0, 0
        self.skipped = self.interrupted = self.stopping_generation = False
        self.log.append(f"begin {job}")

    def end(self) -> None:
        self.job, self.job_count = "", 0
        self.log.append("end")

    def interrupt(self) -> None:
        self.interrupted = True

    def assign_current_image(self, image: Image.Image) -> None:
        self.current_image = image


class OptionInfo:
    """modules/options.py."""

    def __init__(
        self, default=None, label="", component=None, component_args=None, onchange=None, section=None, refresh=None,
        comment_before="", comment_after="", infotext=None, restrict_api=False, category_id=None,
    ) -> None:  # fmt: skip
        self.default, self.label, self.component = default, label, component
        self.component_args: Any = component_args
        self.section, self.category_id, self.comment_after = section, category_id, comment_after

    def info(self, info: str) -> OptionInfo:
        self.comment_after += info
        return self

    def needs_reload_ui(self) -> OptionInfo:
        return self


class Options:
    """modules/options.py: settings by attribute, an AttributeError for what there is not."""

    def __init__(self) -> None:
        self.data: dict[str, Any] = {}
        self.data_labels: dict[str, OptionInfo] = {}

    def add_option(self, key: str, info: OptionInfo) -> None:
        self.data_labels[key] = info
        self.data.setdefault(key, info.default)

    def __getattr__(self, item: str) -> Any:
        if item in self.__dict__.get("data", {}):
            return self.__dict__["data"][item]
        raise AttributeError(item)


class Upscaler:
    """modules/upscaler.py, without what loads files."""

    name: str | None = None
    model_path: str | None = None
    scalers: list[Any]

    def __init__(self, create_dirs: bool = False) -> None:
        if self.model_path is None and self.name:
            self.model_path = str(Path(sys.modules["modules.shared"].models_path) / self.name)
        if self.model_path and create_dirs:
            Path(self.model_path).mkdir(parents=True, exist_ok=True)


class UpscalerData:
    """modules/upscaler.py."""

    def __init__(self, name: str, path: str, upscaler: Any = None, scale: int = 4, model: Any = None) -> None:
        self.name, self.data_path, self.local_data_path = name, path, path
        self.scaler, self.scale, self.model = upscaler, scale, model


class PostprocessedImage:
    """modules/scripts_postprocessing.py."""

    def __init__(self, image: Image.Image) -> None:
        self.image = image
        self.info: dict[str, Any] = {}
        self.shared = SimpleNamespace(target_width=None, target_height=None)


class UpscaleScript:
    """scripts/postprocessing_upscale.py: one or two upscalers of the list, blended, with a memory of results."""

    name = "Upscale"

    def process(self, pp, upscale_by=2.0, upscaler_1_name=None, upscaler_2_name=None, upscaler_2_visibility=0.0):
        def upscale(name: str) -> Image.Image:
            data = next(data for data in sys.modules["modules.shared"].sd_upscalers if data.name == name)
            if (name, upscale_by) not in upscale_cache:
                upscale_cache[name, upscale_by] = data.scaler.upscale(pp.image, upscale_by, data.data_path)
            return upscale_cache[name, upscale_by]

        image = upscale(str(upscaler_1_name))
        if upscaler_2_name not in (None, "None") and upscaler_2_visibility > 0:
            image = Image.blend(image, upscale(upscaler_2_name).convert(image.mode), upscaler_2_visibility)
        pp.image = image


upscale_cache: dict[Any, Image.Image] = {}


class Lanczos:
    """An upscaler of the host's: sizes are whole eights (modules/upscaler.py)."""

    def upscale(self, img, scale, selected_model=None) -> Image.Image:
        return img.resize(tuple(int(side * scale) // 8 * 8 for side in img.size), Image.Resampling.LANCZOS)


class ParamBinding:
    """modules/infotext_utils.py."""

    def __init__(
        self, paste_button, tabname, source_text_component=None, source_image_component=None, source_tabname=None,
        override_settings_component=None, paste_field_names=None,
    ) -> None:  # fmt: skip
        self.paste_button, self.tabname = paste_button, tabname
        self.source_text_component, self.source_image_component = source_text_component, source_image_component


class Host:
    """A host's modules in sys.modules while it is entered, with the folders of an installation below `root`."""

    def __init__(self, root: Path, *, forge: bool = False, **flags: Any) -> None:
        self.root, self.forge = root, forge
        kinds = ("ui_settings", "ui_tabs", "after_component", "app_started", "model_loaded", "script_unloaded")
        self.callbacks: dict[str, list[Any]] = {kind: [] for kind in kinds}
        self.saved: list[dict[str, Any]] = []
        self.bindings: list[ParamBinding] = []
        self.paste_fields: dict[str, Any] = {}
        self.moves: list[str] = []
        self.state, self.opts, self.lock = State(), Options(), threading.Lock()
        self.opts.data |= {"live_previews_enable": True, "outdir_samples": "", "samples_format": "png"}
        self.opts.data["outdir_extras_samples"] = str(root / "outputs" / "extras-images")
        self.flags = SimpleNamespace(api=True, api_auth=None, no_half=True, moesr_models_path=None, **flags)
        self.upscalers: list[Any] = []
        self.upscale_script = UpscaleScript()

    @contextmanager
    def entered(self) -> Iterator[Host]:
        before = {name: module for name, module in sys.modules.items() if _replaced(name)}
        for name in before:
            del sys.modules[name]
        Component.made = []
        made = {"gradio": Gradio("gradio"), "modules": ModuleType("modules"), **self._modules()}
        if self.forge:
            made |= {"modules_forge": ModuleType("modules_forge"), **self._backend()}
        for name, module in made.items():
            module.__spec__ = ModuleSpec(name, None)
            sys.modules[name] = module
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(made[parent], child, module)
        compat: Any = import_module("moesr.page.gradio_versions")
        compat.keep_known = forbid_unknown(compat.keep_known)  # of this import only: see below
        try:
            yield self
        finally:
            for name in [name for name in sys.modules if _replaced(name)]:
                del sys.modules[name]
            sys.modules.update(before)
            for name, module in before.items():  # a package's attribute is the module that was imported last
                parent, _, child = name.rpartition(".")
                if parent in sys.modules:
                    setattr(sys.modules[parent], child, module)

    def load_script(self, path: Path) -> ModuleType:
        """As scripts.py and script_loading.py do: the folder is on sys.path meanwhile, the script in no module."""
        spec = importlib.util.spec_from_file_location(path.name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        before = sys.path
        sys.path = [str(path.parent.parent), *sys.path]
        try:
            spec.loader.exec_module(module)
        finally:
            sys.path = before
        return module

    def call(self, name: str, *values: Any) -> list[Any]:
        """Run the callbacks of one kind."""
        return [callback(*values) for callback in self.callbacks[name]]

    def _modules(self) -> dict[str, ModuleType]:
        """Files of those names in `modules`."""
        return {
            "modules.call_queue": _module(queue_lock=self.lock),
            # devices.py, of both
            "modules.devices": _module(
                get_device_for=lambda task: torch.device("cpu"), torch_gc=lambda: self.moves.append("gc")
            ),
            "modules.images": _module(save_image=self._save_image, read_info_from_image=_read_info),
            "modules.infotext_utils": _module(
                ParamBinding=ParamBinding, register_paste_params_button=self.bindings.append,
                add_paste_fields=self._add_paste_fields,
            ),
            "modules.script_callbacks": _module(**{
                f"on_{kind}": lambda callback, *, name=None, kind=kind: self.callbacks[kind].append(callback)
                for kind in self.callbacks
            }),
            "modules.scripts": _module(
                Script=type("Script", (), {}), AlwaysVisible=object(),
                scripts_postproc=SimpleNamespace(scripts_in_preferred_order=lambda: [self.upscale_script]),
            ),
            "modules.scripts_postprocessing": _module(ScriptPostprocessing=type("ScriptPostprocessing", (), {})),
            # sd_models.py of A1111
            "modules.sd_models": _module(
                model_data=SimpleNamespace(sd_model=None),
                send_model_to_cpu=lambda m: self.moves.append(f"{m} off"),
                send_model_to_device=lambda m: self.moves.append(f"{m} back"),
            ),
            "modules.shared": _module(
                opts=self.opts, cmd_opts=self.flags, state=self.state, models_path=str(self.root / "models"),
                sd_upscalers=self.upscalers, OptionInfo=OptionInfo,
            ),
            "modules.ui_components": _module(InputAccordion=Component, FormRow=Component, ToolButton=Component),
            "modules.upscaler": _module(Upscaler=Upscaler, UpscalerData=UpscalerData),
        }  # fmt: skip

    def _backend(self) -> dict[str, ModuleType]:
        """backend/memory_management.py and backend/patcher/base.py of Forge."""

        class ModelPatcher:
            def __init__(self, model, load_device, offload_device, size=0, current_device=None, **kwargs) -> None:
                self.model, self.load_device, self.offload_device = model, load_device, offload_device

            def forge_patch_model(self, target_device=None) -> Any:
                self.patched_to = target_device
                return self.model

        there: list[ModelPatcher] = []  # current_loaded_models

        def load_models_gpu(models, memory_required=0, hard_memory_preservation=0) -> None:
            for patcher in [patcher for patcher in models if patcher not in there]:
                there.append(patcher)
                self.moves.append(f"load {type(patcher.model).__name__}")
                patcher.forge_patch_model(None)  # None is what low memory gives
                assert patcher.patched_to == patcher.load_device

        memory = _module(
            get_torch_device=lambda: torch.device("cpu"),
            unet_offload_device=lambda: torch.device("cpu"),
            load_models_gpu=load_models_gpu,
            get_free_memory=lambda dev=None, torch_free_too=False: 8 * 2**30,
            free_memory=lambda memory_required, device, keep_loaded=(), free_all=False: self.moves.append("free"),
            unload_all_models=lambda: self.moves.append("unload all"),
            should_use_fp16=lambda device=None, model_params=0, prioritize_performance=True, manual_cast=False: False,
        )
        return {
            "backend": ModuleType("backend"),
            "backend.memory_management": memory,
            "backend.patcher": ModuleType("backend.patcher"),
            "backend.patcher.base": _module(ModelPatcher=ModelPatcher),
        }

    def _save_image(
        self, image, path, basename, seed=None, prompt=None, extension="png", info=None, short_filename=False,
        no_prompt=False, grid=False, pnginfo_section_name="parameters", p=None, existing_info=None,
        forced_filename=None, suffix="", save_to_dirs=None,
    ) -> tuple[str, None]:  # fmt: skip
        assert self.lock.locked(), "the host saves while it has the queue"
        self.saved.append({"size": image.size, "path": path, "info": info, "existing": existing_info})
        return path, None

    def _add_paste_fields(self, tabname, init_img, fields, override_settings_component=None) -> None:
        self.paste_fields[tabname] = init_img


def _read_info(image: Image.Image) -> tuple[str | None, dict[str, Any]]:
    """images.py."""
    items: dict[Any, Any] = dict(image.info)
    return items.pop("parameters", None), items


def _module(**values: Any) -> ModuleType:
    module = ModuleType("stand-in")
    for name, value in values.items():
        setattr(module, name, value)
    return module


def _replaced(name: str) -> bool:
    first = name.split(".")[0]
    ours = name.startswith(("moesr.webui", "moesr.page"))
    return ours or first in ("modules", "modules_forge", "backend", "gradio")


def import_ours(name: str) -> Any:
    """A module of moesr.webui, as the host that is entered has it."""
    return import_module(f"moesr.webui.{name}")


def draw_picture(width: int = 7, height: int = 5, mode: str = "RGB") -> Image.Image:
    """Noise."""
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 255, (height, width, 4), np.uint8)).convert(mode)
