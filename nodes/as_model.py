"""MoESR as Model: a MODEL for the host's own samplers, with the latent and the conditioning that go with it."""

from __future__ import annotations

from typing import Any

from . import widgets
from .comfyui import io, make_model, make_schema, to_output


class MoESRAsModel(io.ComfyNode):
    """A MOESR_MODEL and an image in, what KSampler and SamplerCustom take out."""

    @classmethod
    def define_schema(cls) -> Any:
        return make_schema(
            node_id="MoESRAsModel",
            search_aliases=["moesr", "ksampler", "sampler custom", "sigmas", "load diffusion model"],
            is_experimental=True,
            inputs=[
                widgets.model(),
                io.Image.Input("image"),
                widgets.automatic("steps"),
                widgets.automatic("tile"),
                widgets.automatic("restore"),
            ],
            outputs=[
                io.Model.Output("model_out"),
                io.Conditioning.Output("conditioning"),
                io.Latent.Output("latent"),
                io.Sigmas.Output("sigmas"),
            ],
        )

    @classmethod
    def validate_inputs(cls, steps: Any = None, tile: Any = None, restore: Any = None) -> bool | str:
        return widgets.check(steps=steps, tile=tile, restore=restore)

    @classmethod
    def execute(cls, model: Any, image: Any, steps: Any, tile: Any, restore: Any) -> Any:
        """The model, an empty conditioning, an empty latent of the right size, and the sigmas of the steps."""
        import torch

        from ..moesr.hosting.sigma_model import SigmaModel

        sr, tile = model.hosted.sr, widgets.read("tile", tile)

        def begin_run() -> None:
            model.hosted.begin_run(image.shape[2] * sr.scale, image.shape[1] * sr.scale, tile)

        begin_run()
        steps, restore = widgets.read("steps", steps), widgets.read("restore", restore)
        images = SigmaModel(sr, image, steps=steps, tile=tile, restore=restore)
        latent = {"samples": to_output(torch.zeros(images.shape))}
        return io.NodeOutput(make_model(images, begin_run), [[torch.zeros(1, 1, 1), {}]], latent, images.schedule)
