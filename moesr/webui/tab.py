"""The tab: the page's builder over the host, pictures sent to it by other tabs, and results sent on."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..errors import MoESRError, SettingError
from ..images.files import READ_SUFFIXES
from ..page.builder import Built, build
from ..page.gradio_versions import gradio, make, on, update, with_client
from ..page.handlers import Handlers
from ..page.job_queue import JobQueue
from ..page.limits import Limits
from ..page.uploads import Upload, accept, clean_name
from . import webui_api
from .tab_host import TabHost

log = logging.getLogger(__name__)

NAME, TITLE = "moesr", "MoESR"
SYMBOL = "🔬"

#: Tabs of the host that results go to, with the mark of their button; txt2img takes the generation parameters only.
TARGETS = {"txt2img": "📝", "img2img": "🖼️", "inpaint": "🎨", "extras": "📐"}
#: Tabs whose gallery can send to ours.
SOURCES = ("txt2img", "img2img", "extras")

_queue: JobQueue | None = None
_galleries: dict[str, Any] = {}


def job_queue() -> JobQueue:
    """The jobs of the tab and the API, until `close`."""
    global _queue
    if _queue is None:
        _queue = JobQueue(TabHost(), Limits(files=2000))
    return _queue


def close() -> None:
    """Stop working; results that were not saved are deleted."""
    global _queue
    if _queue is not None:
        _queue.close()
        assert isinstance(_queue.host, TabHost)
        _queue.host.close()
    _queue = None
    _galleries.clear()


def add() -> list[tuple[Any, str, str]]:
    """The callback of on_ui_tabs."""
    gr = gradio()
    built = build(job_queue(), TITLE)
    transfers = Transfers(job_queue(), built.handlers)
    with built.blocks:
        with built.after:
            sends = {
                target: webui_api.ui_components.ToolButton(
                    mark, elem_id=f"moesr-send-{target}", tooltip=f"Send to {target}."
                )
                for target, mark in TARGETS.items()
            }
        if webui_api.allows_folders():
            _add_folder_batch(gr, built, transfers)
        # Parts that the host's own way of sending pictures needs; style.css hides them, as the browser leaves out
        # events of those that are invisible to Gradio.
        received = make(gr.Image, type="pil", label="received", elem_id="moesr-received", image_mode="RGBA")
        result = make(gr.Image, type="pil", label="result", elem_id="moesr-result", image_mode="RGBA")
        parameters = make(gr.Textbox, "", label="parameters", elem_id="moesr-parameters")
        address = make(gr.Textbox, "", label="address", elem_id="moesr-address")
        with make(gr.Row, elem_id="moesr-pastes"):
            pastes = {target: make(gr.Button, target, elem_id=f"moesr-paste-{target}") for target in TARGETS}
        for target, button in sends.items():
            sent = on(
                button.click, transfers.send, [address], [result, parameters], js="() => [moesrAddress()]", queue=False
            )  # fmt: skip
            on(sent.then, None, js=f"() => moesr_paste('{target}')", queue=False)
        on(received.change, transfers.receive, [received], [built.files, received], queue=False)
    for target, button in pastes.items():
        webui_api.infotext_utils.register_paste_params_button(
            webui_api.infotext_utils.ParamBinding(
                paste_button=button,
                tabname=target,
                source_text_component=parameters,
                source_image_component=None if target == "txt2img" else result,
            )
        )
    webui_api.infotext_utils.add_paste_fields(NAME, received, None)
    return [(built.blocks, TITLE, NAME)]


def _add_folder_batch(gr: Any, built: Built, transfers: Transfers) -> None:
    """Below the settings: all pictures of a folder, with the settings above, as the host's own batches have it."""
    with built.left, make(gr.Accordion, "Folder", open=False, elem_id="moesr-folder"):
        folder = make(gr.Textbox, "", label="Input folder", elem_id="moesr-folder-input")
        output = make(
            gr.Textbox, "", label="Output folder", elem_id="moesr-folder-output",
            info="Empty: where results of Extras are saved. Files that are there stay.",
        )  # fmt: skip
        run = make(gr.Button, "Upscale folder", elem_id="moesr-folder-run")
    on(run.click, with_client(transfers.run_folder), [folder, output, *built.values], built.parts)


def watch(component: Any, **options: Any) -> None:
    """The callback of on_after_component: beside each "send to extras" of the host a button that sends to our tab."""
    where = options.get("elem_id")
    for source in SOURCES:
        if where == f"{source}_gallery":
            _galleries[source] = component
        if where == f"{source}_send_to_extras" and source in _galleries:
            button = webui_api.ui_components.ToolButton(
                SYMBOL, elem_id=f"{source}_send_to_{NAME}", tooltip=f"Send image to the {TITLE} tab."
            )
            webui_api.infotext_utils.register_paste_params_button(
                webui_api.infotext_utils.ParamBinding(
                    paste_button=button, tabname=NAME, source_image_component=_galleries[source]
                )
            )


class Transfers:
    """Pictures on their way in and out of the tab."""

    def __init__(self, queue: JobQueue, handlers: Handlers) -> None:
        assert isinstance(queue.host, TabHost)
        self._host, self._results, self._handlers = queue.host, queue.results, handlers

    def run_folder(self, folder: str, output: str, *values: Any, client: str = "") -> Iterator[tuple[Any, ...]]:
        """Upscale all pictures of a folder of this machine into `output`; see Handlers.run_uploads.

        Without an output results go where those of Extras are.
        """

        def find_uploads() -> list[Upload]:
            if not webui_api.allows_folders():
                raise SettingError("folder: this host was started with --hide-ui-dir-config, which allows none")
            place = Path(folder.strip() or "-")
            if not place.is_dir():
                raise SettingError(f"folder {folder!r}: there is no such folder; give its whole path")
            paths = sorted(path for path in place.iterdir() if path.suffix.lower() in READ_SUFFIXES)
            if not paths:
                raise SettingError(f"folder {folder}: it has no pictures; those in folders below it are not taken")
            return [Upload(path, clean_name(path.name)) for path in paths]

        target = Path(output.strip()) if output.strip() else None
        yield from self._handlers.run_uploads(find_uploads, *values, client=client, output=target)

    def receive(self, image: Image.Image | None) -> tuple[Any, Any]:
        """A picture that another tab sent, as an upload; and an empty place for the next: (files, received)."""
        if image is None:
            return update(), update()
        path = self._host.received / f"received_{secrets.token_hex(4)}.png"
        if image.mode == "RGBA" and image.getchannel("A").getextrema() == (255, 255):
            image = image.convert("RGB")
        texts, parameters = PngInfo(), image.info.get("parameters")
        if isinstance(parameters, str):
            texts.add_text("parameters", parameters)
        image.save(path, pnginfo=texts)
        return [str(path)], None

    def send(self, address: str) -> tuple[Any, str]:
        """The result at an address of our page, and the generation parameters of its source."""
        path = Path(unquote(str(address).partition("file=")[2]))
        try:
            found = accept(path, [self._results])
        except MoESRError as error:
            log.info("MoESR: nothing to send: %s", error)
            return None, ""
        with Image.open(found.path) as image:
            image.load()
        return image, self._host.read_parameters(path)
