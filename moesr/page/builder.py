"""The one builder: the same blocks for the page and for a tab of another program, in any Gradio from 3.41 on."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..result_files import FORMATS
from ..result_sizes import BUTTONS, KINDS, choose_button
from ..settings import SETTINGS
from . import html
from .controls import CONTROLS, PRESETS, list_own_values, make_control
from .gradio_versions import by_index, gradio, gradio_version, make, on, with_client
from .handlers import Handlers
from .job_queue import JobQueue
from .protection import NO_PICTURE, make_painter

_HERE = Path(__file__).parent
CSS = (_HERE / "page.css", _HERE / "standalone.css")  # a host takes the first, by style.css
SCRIPTS = (_HERE / "compare.js", _HERE / "page.js")

# The page's script may come later than this; private windows have no storage.
_LAST_JOB = "() => { try { return [localStorage.getItem('moesr-job') || '']; } catch { return ['']; } }"

#: Pictures to try, with what they are and the preset that suits them.
EXAMPLES = (
    ("face.png", "Face", "Photograph"),
    ("text.png", "Text", "Faithful"),
    ("web.jpg", "Web picture", "Web picture (restore)"),
    ("old.jpg", "Old photo", "Web picture (restore)"),
    ("drawing.png", "Drawing", "Faithful"),
    ("cobbles.png", "Texture", "Texture (seamless)"),
)


@dataclass
class Built:
    """The page, and the parts that a host connects with its own."""

    blocks: Any
    handlers: Handlers
    #: The file field, to send pictures to.
    files: Any = None
    #: The field for what is protected.
    painter: Any = None
    #: A row below the results, for buttons that take one: it is there once there is one.
    after: Any = None
    #: The column of the controls.
    left: Any = None
    #: The inputs of `Handlers.run_uploads` after the pictures, and the outputs.
    values: tuple[Any, ...] = ()
    parts: tuple[Any, ...] = ()


def build(queue: JobQueue, title: str = "MoESR") -> Built:
    """The page over a job queue. A host renders `blocks` in a tab of its own; page.py launches them."""
    gr = gradio()
    host = queue.host
    handlers = Handlers(queue, _copy_examples(host.folder))
    config = host.facts.read_config(host.facts.default)
    own = list_own_values(config)
    # Gradio 6 takes them at launch; a host has its own theme, and gets CSS and script as files.
    look = build_looks() if host.standalone and gradio_version() < (6, 0) else {}
    with make(gr.Blocks, title=title, analytics_enabled=False, delete_cache=None, **look) as blocks:
        if host.standalone:
            _make_html(gr, html.HEADER)
        with make(gr.Row, elem_id="moesr-page"):
            with make(gr.Column, scale=4, min_width=300, elem_id="moesr-left") as left:
                built = Built(blocks, handlers, left=left)
                built.files = make(gr.File, file_count="multiple", label="Pictures", elem_id="moesr-files", height=150)
                chosen = _make_html(gr, "", elem_id="moesr-chosen")
                button, scale = choose_button(config.scale)
                choice = make(gr.Radio, [*BUTTONS, *KINDS], value=button, label="Size", elem_id="moesr-size")
                size = make(
                    gr.Number, value=scale, label=KINDS["Times"][0], visible=button not in BUTTONS,
                    elem_id="moesr-scale",
                )  # fmt: skip
                preset = make(gr.Radio, list(PRESETS), value=next(iter(PRESETS)), label="Kind", elem_id="moesr-preset")
                with make(gr.Row, elem_id="moesr-buttons"):
                    run = make(gr.Button, "Upscale", variant="primary", elem_id="moesr-run", scale=3, min_width=120)
                    cancel = make(gr.Button, "Cancel", interactive=False, elem_id="moesr-cancel", min_width=90)
                with make(gr.Accordion, "Protect a place", open=False, elem_id="moesr-protect"):
                    hint = _make_html(gr, html.draw_message(NO_PICTURE, "note"), elem_id="moesr-protect-hint")
                    built.painter = make_painter(gr)
                with make(gr.Accordion, "Advanced", open=False, elem_id="moesr-advanced"):
                    format_ = make(gr.Dropdown, list(FORMATS), value="png", label="Format", elem_id="moesr-format")
                    model = make(
                        gr.Dropdown, handlers.facts.list_names(), value=host.facts.default, label="Model",
                        elem_id="moesr-model",
                    )  # fmt: skip
                    controls = {}
                    for name in CONTROLS:
                        elem_id = f"moesr-{name.replace('_', '-')}"
                        controls[name] = make_control(name, elem_id=elem_id, **own.get(name, {}))
                    plan = _make_html(gr, handlers.draw_plan(host.facts.default, own["steps"]["value"]))
                gallery = _make_gallery(gr, handlers)
            with make(gr.Column, scale=6, min_width=300, elem_id="moesr-right"):
                progress = _make_html(gr, "", elem_id="moesr-progress")
                results = _make_html(gr, html.EMPTY, elem_id="moesr-results")
                with make(gr.Row, elem_id="moesr-after") as built.after:
                    again = make(gr.Button, "Use as input", size="sm", elem_id="moesr-again", min_width=90)
                    ask = make(gr.Button, "What was invented?", size="sm", elem_id="moesr-ask", min_width=90)
                invented = _make_html(gr, "", elem_id="moesr-invented")
        if host.standalone:
            _make_html(gr, html.FOOTER)
        job = make(gr.Textbox, "", visible=False, elem_id="moesr-job")
        address = make(gr.Textbox, "", visible=False)
        built.values = values = (model, choice, size, format_, *controls.values())
        built.parts = parts = (progress, results, run, cancel, job, invented)
        steps, sampler = controls["steps"], controls["sampler"]

        on(run.click, with_client(handlers.run), [built.files, built.painter, *values], parts)
        on(cancel.click, handlers.cancel, [job], [cancel], queue=False)
        on(choice.input, handlers.choose_size, [choice], [size], queue=False)
        for event in (built.files.change, choice.change, size.change):
            on(event, handlers.list_files, [built.files, choice, size], [chosen], queue=False)
        restored = [progress, plan, model, choice, size, *controls.values()]
        on(built.files.upload, handlers.restore_settings, [built.files], restored, queue=False)
        on(preset.input, handlers.choose_preset, [preset, model], [*controls.values()], queue=False)
        changed = [plan, choice, size, *(controls[name] for name in own)]
        on(model.input, handlers.change_model, [model], changed, queue=False)
        for event in (steps.change, sampler.change):
            on(event, handlers.draw_plan, [model, steps, sampler], [plan], queue=False)
        taken = on(
            gallery.select, by_index(handlers.choose_example), [], [built.files, preset, *controls.values()],
            queue=False,
        )  # fmt: skip
        on(taken.then, with_client(handlers.run_example), [built.files, *values], parts)
        on(built.files.change, handlers.offer_painting, [built.files], [hint, built.painter], queue=False)
        look = [progress, invented, ask, run, cancel, job]
        on(ask.click, with_client(handlers.find_invented), [address], look, js="() => [moesrAddress()]")
        on(again.click, handlers.use_again, [address], [built.files], js="() => [moesrAddress()]", queue=False)
        _make_api(gr, handlers)
        if host.standalone:
            on(blocks.load, handlers.list_models, [], [model], queue=False)
            on(blocks.load, None, js=build_script(), queue=False)
            on(blocks.load, handlers.reopen, [job], [progress, results], js=_LAST_JOB, queue=False)
    return built


def build_looks() -> dict[str, Any]:
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
        "checkbox_border_color": ("*neutral_500", "*neutral_400"),
        "button_primary_background_fill": ("*primary_600", "*primary_600"),
        "button_primary_background_fill_hover": ("*primary_700", "*primary_700"),
        "button_primary_text_color": ("white", "white"),
        "button_primary_border_color": ("*primary_600", "*primary_600"),
    }
    theme = theme.set(**{key: light for key, (light, _) in colours.items()})
    theme = theme.set(**{f"{key}_dark": dark for key, (_, dark) in colours.items()})
    return {"theme": theme, "css": "\n".join(path.read_text(encoding="utf-8") for path in CSS)}


def build_script() -> str:
    """The comparison element and what the page itself does, as a function that Gradio calls in the browser."""
    both = "\n".join(path.read_text(encoding="utf-8") for path in SCRIPTS)
    return f"() => {{ {both} }}"


def _make_html(gr: Any, value: str, **options: Any) -> Any:
    return make(gr.HTML, value, padding=False, elem_classes="moesr-html", **options)


def _make_gallery(gr: Any, handlers: Handlers) -> Any:
    pictures = [(str(path), caption) for (path, _), (_, caption, _) in zip(handlers.examples, EXAMPLES)]
    _make_html(gr, '<p class="moesr-or">Or try one of these:</p>')
    return make(
        gr.Gallery, value=pictures, label="Examples", show_label=False, columns=3, rows=2, height=270,
        object_fit="contain", allow_preview=False, show_share_button=False, show_download_button=False, buttons=[],
        interactive=False, elem_id="moesr-examples",
    )  # fmt: skip


def _make_api(gr: Any, handlers: Handlers) -> None:
    """The endpoint for programs, /upscale: it has no face. Its parameters are those of the table."""
    image = make(gr.File, label="image", visible=False)
    inputs = [make(gr.Textbox, handlers.facts.default, label="model", visible=False)]
    for name in ("scale", *CONTROLS):
        setting = SETTINGS[name]
        words = setting.choices or name == "fidelity"
        part = gr.Checkbox if setting.kind == "flag" else gr.Textbox if words else gr.Number
        # Clients take None for a value that is missing: see controls.read_form for what stands for the model's own.
        value = setting.default if setting.default is not None else "auto" if words else 0
        inputs.append(make(part, value=value, label=name, info=setting.sentence, visible=False))
    protect = make(gr.File, label="protect", visible=False)
    result = make(gr.File, label="result", visible=False)
    info = make(gr.JSON, label="info", visible=False)
    button = make(gr.Button, "API", visible=False)

    # Spelled out: its names are the parameters of the endpoint. Gradio finds the request by its type.
    def upscale(
        image, model, scale, steps, fidelity, color_fix, seed, tile, wrap, sampler, eta, restore, spacing,
        protect=None, request=None,
    ):  # fmt: skip
        values = (scale, steps, fidelity, color_fix, seed, tile, wrap, sampler, eta, restore, spacing)
        client = str(getattr(request, "session_hash", None) or "")
        yield from handlers.api(image, model, *values, protect=protect, client=client)

    upscale.__annotations__ = {"request": gr.Request}
    on(button.click, upscale, [image, *inputs, protect], [result, info], api="upscale")


def _copy_examples(folder: Path) -> list[tuple[Path, str]]:
    """The examples, copied to where the host lets files be read."""
    target = folder / "examples"
    shutil.copytree(_HERE / "examples", target, dirs_exist_ok=True)
    return [(target / name, preset) for name, _, preset in EXAMPLES]
