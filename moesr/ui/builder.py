"""The one builder: the same blocks for the page and for a tab of another program, in any Gradio from 3.41 on."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..service.desk import Desk
from . import pieces
from .compat import gradio, make, on, requested, selected, version
from .handlers import CONTROLS, LARGEST_SCALE, TILES, Handlers, defaults

_HERE = Path(__file__).parent
CSS = (_HERE / "page.css", _HERE / "standalone.css")  # a host takes the first, by style.css
SCRIPT = _HERE / "compare.js"
PAGE_SCRIPT = _HERE / "page.js"

#: Pictures to try, their captions, and what they need.
EXAMPLES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("coffee.png", "Photograph", {}),
    ("cup_cut_out.png", "Transparent", {}),
    ("cobbles.png", "Seamless", {"wrap": True}),
)


@dataclass
class Built:
    """The blocks, and the parts that a host connects with its own: sends pictures to `files`, takes `job` results."""

    blocks: Any
    handlers: Handlers
    files: Any
    controls: dict[str, Any] = field(default_factory=dict)
    run: Any = None
    results: Any = None


def build(desk: Desk, title: str = "MoESR") -> Built:
    """The page over a desk. A host renders `blocks` in a tab of its own; page.py launches them."""
    gr = gradio()
    handlers = Handlers(desk, _examples(desk.adapter.folder))
    first = defaults(desk)
    # Gradio 6 takes them at launch; a host has its own theme, and gets CSS and script as files.
    look = looks() if desk.adapter.standalone and version() < (6, 0) else {}
    with make(gr.Blocks, title=title, analytics_enabled=False, delete_cache=None, **look) as blocks:
        if desk.adapter.standalone:
            _html(gr, pieces.HEADER)
        with make(gr.Row, elem_id="moesr-page"):
            with make(gr.Column, scale=4, min_width=300, elem_id="moesr-left"):
                built = Built(blocks, handlers, _drop_zone(gr))
                chosen = _html(gr, "", elem_id="moesr-chosen")
                scale = make(
                    gr.Slider, 1, LARGEST_SCALE, value=first["scale"], step=0.5, label="How much larger",
                    elem_id="moesr-scale",
                )  # fmt: skip
                with make(gr.Row, elem_id="moesr-buttons"):
                    run = make(gr.Button, "Upscale", variant="primary", elem_id="moesr-run", scale=3, min_width=120)
                    cancel = make(gr.Button, "Cancel", interactive=False, elem_id="moesr-cancel", min_width=90)
                with make(gr.Accordion, "Advanced", open=False, elem_id="moesr-advanced"):
                    controls = _advanced(gr, first, handlers.models.names())
                    controls["scale"] = scale
                    plan = _html(gr, handlers.timeline(first["model"], first["steps"]))
                gallery = _gallery(gr, handlers)
            with make(gr.Column, scale=6, min_width=300, elem_id="moesr-right"):
                progress = _html(gr, "", elem_id="moesr-progress")
                results = _html(gr, pieces.EMPTY, elem_id="moesr-results")
        if desk.adapter.standalone:
            _html(gr, pieces.FOOTER)
        job = make(gr.Textbox, "", visible=False, elem_id="moesr-job")
        values = [controls[name] for name in CONTROLS]
        shown = [progress, results, run, cancel, job]
        model, steps, sampler = controls["model"], controls["steps"], controls["sampler"]

        on(run.click, requested(handlers.run), [built.files, *values], shown)
        on(cancel.click, handlers.cancel, [job], [cancel], queue=False)
        for event in (built.files.change, scale.change):
            on(event, handlers.picked, [built.files, model, scale], [chosen], queue=False)
        on(built.files.upload, handlers.restore, [built.files], [progress, plan, *values], queue=False)
        on(model.input, handlers.facts, [model], [scale, steps, plan], queue=False)
        for event in (steps.change, sampler.change):
            on(event, handlers.timeline, [model, steps, sampler], [plan], queue=False)
        taken = on(gallery.select, selected(handlers.example), [], [built.files, controls["wrap"]], queue=False)
        on(taken.then, requested(handlers.run), [built.files, *values], shown)
        _api(gr, handlers, values)
        if desk.adapter.standalone:
            on(blocks.load, handlers.library, [], [model], queue=False)
            on(blocks.load, None, js=script(), queue=False)
    built.controls, built.run, built.results = controls, run, results
    return built


def looks() -> dict[str, Any]:
    """Theme and CSS of the page, as options of Blocks (before 6) or of launch. No font is fetched from anywhere."""
    gr = gradio()
    fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"]
    theme = gr.themes.Base(
        primary_hue=gr.themes.colors.indigo,
        secondary_hue=gr.themes.colors.indigo,
        neutral_hue=gr.themes.colors.zinc,
        radius_size=gr.themes.sizes.radius_md,
        font=fonts,
        font_mono=["ui-monospace", "Consolas", "monospace"],
    )
    # Versions differ in what they draw pale, and in which blue: said once for all.
    colours = {
        "body_text_color_subdued": ("*neutral_500", "*neutral_400"),
        "slider_color": ("*primary_500", "*primary_500"),
        "button_primary_background_fill": ("*primary_600", "*primary_600"),
        "button_primary_background_fill_hover": ("*primary_700", "*primary_500"),
        "button_primary_text_color": ("white", "white"),
        "button_primary_border_color": ("*primary_600", "*primary_600"),
    }
    theme = theme.set(**{key: light for key, (light, _) in colours.items()})
    theme = theme.set(**{f"{key}_dark": dark for key, (_, dark) in colours.items()})
    return {"theme": theme, "css": "\n".join(path.read_text(encoding="utf-8") for path in CSS)}


def script() -> str:
    """The comparison element and what the page itself does, as a function that Gradio calls in the browser."""
    both = "\n".join(path.read_text(encoding="utf-8") for path in (SCRIPT, PAGE_SCRIPT))
    return f"() => {{ {both} }}"


def _html(gr: Any, value: str, **options: Any) -> Any:
    return make(gr.HTML, value, padding=False, elem_classes="moesr-html", **options)


def _drop_zone(gr: Any) -> Any:
    kind = {"type": "filepath"} if version() >= (4, 0) else {}
    return make(
        gr.File,
        file_count="multiple",
        file_types=["image"],
        label="Pictures",
        elem_id="moesr-files",
        height=190,
        **kind,
    )


def _advanced(gr: Any, first: dict[str, Any], models: list[str]) -> dict[str, Any]:
    return {
        "model": make(gr.Dropdown, models, value=first["model"], label="Model", elem_id="moesr-model"),
        "steps": make(
            gr.Slider, 1, first["most_steps"], value=first["steps"], step=1, label="Steps",
            info="more are slower and a little finer", elem_id="moesr-steps",
        ),
        "fidelity": make(
            gr.Slider, 0, 1, value=first["fidelity"], step=0.05, label="Fidelity",
            info="0 lets the decoder invent, 1 holds it to the input", elem_id="moesr-fidelity",
        ),
        "color_fix": make(
            gr.Radio, first["color_fixes"], value=first["color_fix"], label="Colour fix",
            info="the result's colours follow the input's", elem_id="moesr-color-fix",
        ),
        "seed": make(
            gr.Number, value=first["seed"], precision=0, label="Seed", info="another seed, other details; -1 for any",
            elem_id="moesr-seed",
        ),
        "tile": make(
            gr.Dropdown, list(TILES), value=first["tile"], label="Tile",
            info="largest side of a window in output pixels; 0 for none", allow_custom_value=True, elem_id="moesr-tile",
        ),
        "wrap": make(
            gr.Checkbox, value=first["wrap"], label="Wrap", info="a seamless texture stays seamless",
            elem_id="moesr-wrap",
        ),
        "sampler": make(
            gr.Dropdown, first["samplers"], value=first["sampler"], label="Sampler", elem_id="moesr-sampler"
        ),
        "eta": make(
            gr.Slider, 0, 1, value=first["eta"], step=0.05, label="Noise of each step (eta)",
            info="0 is deterministic, 1 ancestral", elem_id="moesr-eta",
        ),
    }  # fmt: skip


def _gallery(gr: Any, handlers: Handlers) -> Any:
    pictures = [(str(path), caption) for (path, _), (_, caption, _) in zip(handlers.examples, EXAMPLES)]
    _html(gr, '<p class="moesr-or">Or try one of these:</p>')
    return make(
        gr.Gallery, value=pictures, label="Examples", show_label=False, columns=len(pictures), rows=1, height=150,
        object_fit="contain", allow_preview=False, show_share_button=False, show_download_button=False, buttons=[],
        interactive=False, elem_id="moesr-examples",
    )  # fmt: skip


def _api(gr: Any, handlers: Handlers, values: list[Any]) -> None:
    """The endpoint for programs, /upscale: it has no face, and takes the defaults of the page's controls."""
    kind = {"type": "filepath"} if version() >= (4, 0) else {}
    image = make(gr.File, label="image", visible=False, **kind)
    result = make(gr.File, label="result", visible=False)
    told = make(gr.JSON, label="info", visible=False)
    button = make(gr.Button, "API", visible=False)

    # Spelled out: its names are the parameters of the endpoint. Gradio finds the request by its type.
    def upscale(image, model, scale, steps, fidelity, color_fix, seed, tile, wrap, sampler, eta, request):
        values = (model, scale, steps, fidelity, color_fix, seed, tile, wrap, sampler, eta)
        yield from handlers.api(image, *values, client=str(getattr(request, "session_hash", None) or ""))

    upscale.__annotations__ = {"request": gr.Request}
    on(button.click, upscale, [image, *values], [result, told], api="upscale")


def _examples(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The examples, copied to where the host lets files be read."""
    target = folder / "examples"
    target.mkdir(parents=True, exist_ok=True)
    found = []
    for name, _, changes in EXAMPLES:
        found.append((Path(shutil.copy(_HERE / "examples" / name, target / name)), changes))
    return found
