"""MoESR Loader: a model by name, its number format, and how its experts share the memory."""

from __future__ import annotations

from typing import Any

from . import model as models
from .comfyui import io, make_schema
from .widgets import ALIASES, check_choice


class MoESRLoader(io.ComfyNode):
    """Chooses a model; nothing is loaded onto the device before it is used."""

    @classmethod
    def define_schema(cls) -> Any:
        return make_schema(
            node_id="MoESRLoader",
            search_aliases=[*ALIASES, "load upscale model", "resshift", "ldm super resolution"],
            inputs=[
                io.Combo.Input("model", options=models.list_models()),
                io.Combo.Input("dtype", options=list(models.DTYPES), default="auto"),
                io.Combo.Input("experts", options=list(models.RESIDENCIES), default="auto"),
            ],
            outputs=[models.MODEL.Output("model_out")],
            advanced=("dtype", "experts"),
        )

    @classmethod
    def validate_inputs(cls, model: str | None) -> bool | str:
        return (model is not None and models.find_problem(model)) or True

    @classmethod
    def fingerprint_inputs(cls, model: str, dtype: str, experts: str) -> str:
        return models.fingerprint(model)

    @classmethod
    def execute(cls, model: str, dtype: str, experts: str) -> Any:
        """The model; its files are checked, its weights are read when they are used."""
        check_choice("dtype", dtype, models.DTYPES)
        check_choice("experts", experts, models.RESIDENCIES)
        return io.NodeOutput(models.load(model, dtype, experts))
