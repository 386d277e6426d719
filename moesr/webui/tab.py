"""The tab: the page's builder over the host, pictures sent to it by other tabs, and results sent on."""

from __future__ import annotations

import logging
import secrets
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..errors import MoESRError
from ..page.builder import build
from ..page.gradio_versions import gradio, make, on, update
from ..page.job_queue import JobQueue
from ..page.uploads import accept
from . import webui_api
from .tab_host import TabHost

log = logging.getLogger(__name__)

NAME, TITLE = "moesr", "MoESR"
SYMBOL = "🔬"

#: Tabs of the host that results go to; txt2img takes the generation parameters only.
TARGETS = ("txt2img", "img2img", "inpaint", "extras")
#: Tabs whose gallery can send to ours.
SOURCES = ("txt2img", "img2img", "extras")

_queue: JobQueue | None = None
_galleries: dict[str, Any] = {}


def job_queue() -> JobQueue:
    """The jobs of the tab and the API, until `close`."""
    global _queue
    if _queue is None:
        _queue = JobQueue(TabHost())
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
    transfers = Transfers(job_queue())
    with built.blocks:
        with built.after:
            sends = {
                target: make(gr.Button, f"Send to {target}", size="sm", elem_id=f"moesr-send-{target}", min_width=90)
                for target in TARGETS
            }
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

    def __init__(self, queue: JobQueue) -> None:
        assert isinstance(queue.host, TabHost)
        self._host, self._results = queue.host, queue.results

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
