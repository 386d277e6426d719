"""MoESR Upscale: the three nodes in one, with their defaults."""

from __future__ import annotations

from typing import Any

from ..moesr.errors import SettingError
from ..moesr.result_sizes import TargetSize
from ..moesr.settings import SETTINGS
from . import model as models
from . import widgets
from .comfyui import GraphBuilder, io, make_schema, read_prompt_inputs

#: What people type who want a larger picture, and find this node first.
WORDS = (
    "upscale", "upscaler", "superres", "enlarge", "enhance", "hires", "4x", "increase resolution", "image upscale",
    "video upscale", "restore", "jpeg", "tile", "超分", "高清", "放大",
)  # fmt: skip
#: What the number shows at first: the embedded model's own scale.
FIRST_SCALE = 4.0
#: Of the result, in pixels.
LARGEST_SIDE = 16384
#: Ways to give the size of the result, with their inputs.
SIZES = {"scale": (), "longest side": ("longest_side",), "fit in": ("width", "height"), "megapixels": ("megapixels",)}
#: What the numbers show at first.
FIRST_SIDE, FIRST_MEGAPIXELS = 2048, 4.0


class MoESRUpscale(io.ComfyNode):
    """An image in, a larger image out."""

    @classmethod
    def define_schema(cls) -> Any:
        return make_schema(
            node_id="MoESRUpscale",
            search_aliases=[*widgets.ALIASES, *WORDS],
            enable_expand=True,
            inputs=[
                io.Image.Input("image"),
                io.Combo.Input("model", options=models.list_models()),
                widgets.number("scale", default=FIRST_SCALE, round=0.001),
                widgets.number("seed", optional=True, control_after_generate=False),
                widgets.automatic("fidelity", optional=True),
                widgets.automatic("tile", optional=True),
                io.Int.Input("max_resolution", default=0, min=0, max=LARGEST_SIDE, step=64, optional=True),
                widgets.automatic("restore", optional=True),
                widgets.number("steady", optional=True),
                io.Mask.Input("protect", optional=True),
                *_make_size_inputs(),
            ],
            advanced=("seed", "fidelity", "tile", "max_resolution", "restore", "steady"),
            outputs=[io.Image.Output("image_out")],
        )

    @classmethod
    def validate_inputs(
        cls, model: str | None, fidelity: Any = None, tile: Any = None, restore: Any = None, size: Any = None
    ) -> bool | str:
        """A line that names the widget if there is no such model or value. The host checks `size`, and gives it too."""
        problem = model is not None and models.find_problem(model)
        return problem or widgets.check(fidelity=fidelity, tile=tile, restore=restore)

    @classmethod
    def fingerprint_inputs(cls, model: str, **_: Any) -> str:
        return models.fingerprint(model)

    @classmethod
    def execute(
        cls, image: Any, model: str, scale: float, seed: int = 0, fidelity: Any = "auto", tile: Any = "auto",
        max_resolution: int = 0, restore: Any = "auto", size: dict[str, Any] | None = None, protect: Any = None,
        steady: float = 0.0,
    ) -> Any:  # fmt: skip
        """The three nodes, as a graph that the host runs; so the model stays in its cache while images change."""
        chosen = read_prompt_inputs().get("size", "scale")
        if chosen != (size or {}).get("size", "scale"):  # the host leaves out what it does not know
            raise SettingError(f"size: this ComfyUI has no {chosen}; give scale, and max_resolution where it matters")
        height, width = image.shape[1:3]
        scale = find_scale(scale, size or {}, width=width, height=height)
        if max_resolution:
            scale = max(SETTINGS["scale"].minimum, min(scale, max_resolution / max(width, height)))
        graph = GraphBuilder()
        loader = graph.node("MoESRLoader", "loader", model=model, dtype="auto", experts="auto")
        both = {"model": loader.out(0), "image": image, "fidelity": fidelity, "tile": tile, "restore": restore}
        both |= {} if protect is None else {"protect": protect}
        sampler = graph.node(
            "MoESRSampler", "sampler", seed=seed, steps="auto", sampler="auto", eta=SETTINGS["eta"].default,
            batch_seed="same for all" if steady else "per image", wrap=SETTINGS["wrap"].default, **both,
        )  # fmt: skip
        decode = graph.node(
            "FrequencyCompensatedDecode", "decode", samples=sampler.out(0), color_fix=SETTINGS["color_fix"].default,
            scale=scale, steady=widgets.read("steady", steady), **both,
        )  # fmt: skip
        return io.NodeOutput(decode.out(0), expand=graph.finalize())


def find_scale(scale: float, size: dict[str, Any], *, width: int, height: int) -> float:
    """Output pixels per input pixel along a side of a picture of width x height pixels.

    size: the values of the chosen one of SIZES by input; with none of them, it is `scale`. Raises SettingError.
    """
    longest = "Width" if width >= height else "Height"
    kinds = {"longest_side": longest, "width": "Width", "height": "Height", "megapixels": "Megapixels"}
    wanted = [TargetSize(kinds[name], value) for name, value in size.items() if name in kinds]
    return min((target.find_scale(width, height) for target in wanted), default=scale)


def _make_size_inputs() -> list[Any]:
    """The list of SIZES, whose choice decides which inputs are there; none where the host has no such list."""
    if not hasattr(io, "DynamicCombo"):  # before ComfyUI 0.4
        return []

    def make_number(name: str) -> Any:
        if name == "megapixels":
            return io.Float.Input(name, default=FIRST_MEGAPIXELS, min=0.01, max=256, step=0.1)
        return io.Int.Input(name, default=FIRST_SIDE, min=1, max=LARGEST_SIDE, step=1)

    options = [io.DynamicCombo.Option(key, [make_number(name) for name in names]) for key, names in SIZES.items()]
    return [io.DynamicCombo.Input("size", options=options, optional=True)]
