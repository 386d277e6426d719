"""MoESR Upscale: the three nodes in one, with their defaults."""

from __future__ import annotations

from typing import Any

from . import model as models
from .comfyui import GraphBuilder, io, make_schema
from .widgets import ALIASES, CATEGORY, number

#: What people type who want a larger picture, and find this node first.
WORDS = (
    "upscale", "upscaler", "superres", "enlarge", "enhance", "hires", "4x", "increase resolution", "image upscale",
    "video upscale", "restore", "jpeg", "tile", "超分", "高清", "放大",
)  # fmt: skip


class MoESRUpscale(io.ComfyNode):
    """An image in, a larger image out."""

    @classmethod
    def define_schema(cls) -> Any:
        """Inputs and outputs."""
        return make_schema(
            node_id="MoESRUpscale",
            category=CATEGORY,
            search_aliases=[*ALIASES, *WORDS],
            enable_expand=True,
            inputs=[
                io.Image.Input("image"),
                io.Combo.Input("model", options=models.list_models()),
                number("scale", default=4.0, round=0.001),
            ],
            outputs=[io.Image.Output("image_out")],
        )

    @classmethod
    def validate_inputs(cls, model: str | None) -> bool | str:
        """A line that names the widget if there is no such model."""
        return (model is not None and models.find_problem(model)) or True

    @classmethod
    def fingerprint_inputs(cls, model: str, scale: float, **_: Any) -> str:
        """Another value when a file of the model has changed."""
        return models.fingerprint(model)

    @classmethod
    def execute(cls, image: Any, model: str, scale: float) -> Any:
        """The three nodes, as a graph that the host runs; so the model stays in its cache while images change."""
        graph = GraphBuilder()
        loader = graph.node("MoESRLoader", "loader", model=model, dtype="auto", experts="auto")
        sampler = graph.node(
            "MoESRSampler",
            "sampler",
            model=loader.out(0),
            image=image,
            seed=0,
            steps=0,
            sampler="auto",
            eta=1.0,
            batch_seed="per image",
            tile=0,
            wrap=False,
        )
        decode = graph.node(
            "FrequencyCompensatedDecode",
            "decode",
            model=loader.out(0),
            samples=sampler.out(0),
            image=image,
            fidelity=1.0,
            color_fix="adain",
            tile=0,
            scale=scale,
        )
        return io.NodeOutput(decode.out(0), expand=graph.finalize())
