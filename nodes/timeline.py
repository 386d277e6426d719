"""MoESR Expert Timeline: a picture of which expert works at which step, and of the noise that is left."""

from __future__ import annotations

from typing import Any

from ..moesr.settings import SETTINGS
from . import widgets
from .comfyui import io, make_schema

#: In pixels of a node at 100 %, which has the labels large enough to read; the picture is twice as fine.
SIZE, ZOOM = (400, 150), 2
GROUND = (30, 32, 38)


class MoESRExpertTimeline(io.ComfyNode):
    """The plan of a run, without running it."""

    @classmethod
    def define_schema(cls) -> Any:
        return make_schema(
            node_id="MoESRExpertTimeline",
            search_aliases=["moesr", "mixture of experts", "schedule", "sigmas", "noise schedule"],
            inputs=[widgets.model(), widgets.automatic("steps"), widgets.choice("sampler")],
            outputs=[io.Image.Output("picture"), io.String.Output("plan")],
        )

    @classmethod
    def validate_inputs(cls, steps: Any = None) -> bool | str:
        return widgets.check(steps=steps)

    @classmethod
    def execute(cls, model: Any, steps: Any, sampler: str) -> Any:
        import numpy as np
        import torch
        from PIL import Image

        from ..moesr.hosting.model_facts import plan_steps
        from ..moesr.images.expert_timeline import draw_timeline

        widgets.check_choice("sampler", sampler, SETTINGS["sampler"].choices)
        plan = plan_steps(model.hosted.sr.config, steps=widgets.read("steps", steps), sampler=sampler)
        bars = draw_timeline(plan.experts, plan.noise, plan.timesteps, size=SIZE, ink=(200, 204, 212), zoom=ZOOM)
        picture = Image.new("RGBA", bars.size, (*GROUND, 255))
        picture.alpha_composite(bars)
        pixels = torch.from_numpy(np.array(picture.convert("RGB"), dtype=np.float32) / 255)
        return io.NodeOutput(pixels[None], plan.describe())
