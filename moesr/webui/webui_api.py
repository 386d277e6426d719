"""All that is asked of A1111 and Forge: options, paths, queue, progress, checkpoint. No other file imports them.

Both have the package `modules`; Forge has its own `backend` beside it.
"""
# pyright: reportMissingImports=false

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from modules import (
    call_queue,
    devices,
    images,
    infotext_utils,
    script_callbacks,
    scripts,
    scripts_postprocessing,
    shared,
    ui_components,
    upscaler,
)
from PIL import Image

from ..hosting.model_runner import Stopped
from ..images.files import read_text
from ..settings import LOADING, SETTINGS

__all__ = [
    "infotext_utils",
    "script_callbacks",
    "scripts",
    "scripts_postprocessing",
    "shared",
    "ui_components",
    "upscaler",
]

FORGE = find_spec("modules_forge") is not None
FOLDER = "MoESR"

#: Settings of a run for the doors that have no controls of their own, as options `moesr_...`.
RUN_OPTIONS = ("steps", "fidelity", "restore", "color_fix", "seed", "wrap", "tile")
#: Options before the host has ours, and where they are missing in its settings.
DEFAULTS: dict[str, Any] = {
    "moesr_model": LOADING["model"].default,
    **{f"moesr_{name}": SETTINGS[name].default for name in RUN_OPTIONS},
    "moesr_steps": 0,  # the model's own
    "moesr_fidelity": "auto",  # the model's own
    "moesr_dtype": LOADING["dtype"].default,
    "moesr_checkpoint": "when memory is short",
    "moesr_keep": True,
    "moesr_save": True,
    "moesr_decoder": "None",
}


def get_option(name: str) -> Any:
    """The value of one of our settings."""
    return getattr(shared.opts, name, DEFAULTS[name])


def allows_folders() -> bool:
    """Whether users may name folders of this machine, as in the host's own batches."""
    return not getattr(shared.cmd_opts, "hide_ui_dir_config", False)


def find_model_folders() -> list[Path]:
    """Where models are looked for: --moesr-models-path, then models/MoESR of the host."""
    given = getattr(shared.cmd_opts, "moesr_models_path", None)
    return [*([Path(given)] if given else []), Path(shared.models_path) / FOLDER]


def find_temporary_folder() -> Path:
    """Where Gradio keeps uploads; what lies below is served to the page."""
    return Path(os.environ.get("GRADIO_TEMP_DIR") or Path(tempfile.gettempdir()) / "gradio").resolve()


def choose_device() -> torch.device:
    """The device for a model like ours; the CPU with --use-cpu all or --always-cpu."""
    return torch.device(devices.get_device_for("moesr"))


def uses_half_precision(device: torch.device) -> bool:
    """Whether the host would compute in 16 bits there."""
    if device.type != "cuda" or getattr(shared.cmd_opts, "no_half", False):
        return False
    return bool(forge_memory().should_use_fp16(device)) if FORGE else True


def forge_memory() -> Any:
    """Forge's memory management."""
    return import_module("backend.memory_management")


def forge_patcher() -> Any:
    """Forge's ModelPatcher."""
    return import_module("backend.patcher.base").ModelPatcher


@contextmanager
def begin_job(pictures: int) -> Iterator[None]:
    """A job of the host's own kind: in its queue, seen by its progress and Interrupt. Waits for its turn."""
    state = shared.state
    with call_queue.queue_lock:
        state.begin(job="MoESR")
        state.job_count = pictures
        try:
            yield
        finally:
            state.end()
            state.interrupted = state.skipped = state.stopping_generation = False
            state.textinfo = None


def check() -> None:
    """Raises Stopped if the host's user has pressed Interrupt or Skip."""
    if shared.state.interrupted or shared.state.skipped:
        raise Stopped("cancelled")


def show_progress(fraction: float, text: str, preview: bytes | None = None) -> None:
    """How far the picture at work is, 0 to 1, for the host's progress bar and API. preview: a JPEG."""
    state = shared.state
    state.sampling_steps, state.sampling_step = 100, int(100 * fraction)
    state.textinfo = text
    if preview is not None and shared.opts.live_previews_enable:
        with Image.open(io.BytesIO(preview)) as image:
            state.assign_current_image(image.convert("RGB"))


@contextmanager
def keep_progress() -> Iterator[None]:
    """Inside, `show_progress` may write into a job that the host counts; afterwards its figures are as before."""
    state = shared.state
    before = (state.sampling_steps, state.sampling_step, state.textinfo)
    try:
        yield
    finally:
        state.sampling_steps, state.sampling_step, state.textinfo = before


def empty_cache() -> None:
    """Give the device's cached memory back."""
    devices.torch_gc()


@contextmanager
def move_checkpoint_aside(short: bool) -> Iterator[None]:
    """A1111: the checkpoint is in system memory inside the block, if our setting says so; then it is brought back.

    short: memory of the device is. Forge moves models by itself.
    """
    wish = get_option("moesr_checkpoint")
    model = None
    if not FORGE and wish != "never" and (short or wish == "always"):
        # Not shared.sd_model: asking for that loads one.
        model = import_module("modules.sd_models").model_data.sd_model
    if model is None:
        yield
        return
    sd_models = import_module("modules.sd_models")
    sd_models.send_model_to_cpu(model)
    try:
        yield
    finally:
        sd_models.send_model_to_device(model)


def disable_autocast() -> Any:
    """A block without the host's autocast, which would lower the precision of layers that must keep theirs."""
    kind = choose_device().type
    return torch.autocast(kind, enabled=False) if kind in ("cuda", "cpu") else nullcontext()


def wrap_extras_upscaling(wrapper: Callable[..., None]) -> None:
    """The host's own upscaling in Extras calls `wrapper(process, pp, **arguments)` in place of process(...)."""
    for script in scripts.scripts_postproc.scripts_in_preferred_order():
        if script.name == "Upscale" and "process" not in vars(script):
            script.process = partial(wrapper, script.process)


def forget_upscaled(process: Any) -> None:
    """The host keeps results of its upscaling in Extras by upscaler and size; ours depend on our settings too."""
    function = getattr(process, "__func__", process)
    getattr(function, "__globals__", {}).get("upscale_cache", {}).clear()


def save_result(path: Path, info: str, texts: Mapping[str, str], source: Path) -> None:
    """Put a result where the host keeps those of Extras, in its format and under its kind of name.

    info: what was done, for the host's PNG info. texts: further chunks. source: the picture it was made from, whose
    generation parameters go on with the result.
    """
    known = {**read_text(path), **texts}  # prompt, workflow and other texts of the source are in the result
    with Image.open(source) as image:
        parameters, _ = images.read_info_from_image(image)
    if parameters:
        known["parameters"] = parameters
    folder = shared.opts.outdir_samples or shared.opts.outdir_extras_samples
    with Image.open(path) as result:
        result.load()
        result.info = {key: value for key, value in result.info.items() if key == "icc_profile"}
        images.save_image(
            result, path=folder, basename="", extension=shared.opts.samples_format, info=info, short_filename=True,
            no_prompt=True, grid=False, pnginfo_section_name="postprocessing", existing_info=known,
        )  # fmt: skip


def read_parameters(path: Path) -> str:
    """The generation parameters inside a picture, as the host writes them; empty if there are none."""
    with Image.open(path) as image:
        parameters, _ = images.read_info_from_image(image)
    return parameters or ""
