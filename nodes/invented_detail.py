"""MoESR Invented Detail: a map of what differs from try to try."""

from __future__ import annotations

from typing import Any

from . import widgets
from .comfyui import Progress, io, make_schema, to_output


class MoESRInventedDetail(io.ComfyNode):
    """An image in, the map of the spread between tries and two numbers out."""

    @classmethod
    def define_schema(cls) -> Any:
        return make_schema(
            node_id="MoESRInventedDetail",
            search_aliases=[*widgets.ALIASES, "hallucination", "uncertainty", "trust", "seed variance"],
            inputs=[
                widgets.model(),
                io.Image.Input("image"),
                io.Int.Input("seeds", default=4, min=2, max=16),
                widgets.seed(),
                widgets.automatic("fidelity"),
                widgets.automatic("tile"),
                io.Mask.Input("protect", optional=True),
            ],
            outputs=[io.Image.Output("map"), io.Float.Output("share"), io.Float.Output("consistency")],
        )

    @classmethod
    def validate_inputs(cls, fidelity: Any = None, tile: Any = None) -> bool | str:
        return widgets.check(fidelity=fidelity, tile=tile)

    @classmethod
    def execute(
        cls, model: Any, image: Any, seeds: int, seed: int, fidelity: Any, tile: Any, protect: Any = None
    ) -> Any:
        """The map, float [B, H, W, 3]; the share of pixels that differ to the eye, 0 to 1; the consistency in dB."""
        import torch

        from ..moesr.evaluation.invented_detail import invention
        from ..moesr.hosting.model_facts import plan_steps

        sr, tile = model.hosted.sr, widgets.read("tile", tile)
        fidelity, progress = widgets.read("fidelity", fidelity), Progress(0, 1, plan_steps(sr.config))
        model.hosted.begin_run(image.shape[2] * sr.scale, image.shape[1] * sr.scale, tile)
        found = invention(sr, image, seeds, seed=seed, fidelity=fidelity, protect=protect, tile=tile, callback=progress)
        picture = to_output(torch.from_numpy(found.draw()).float() / 255)
        progress.finish(picture)
        return io.NodeOutput(picture, found.share, found.lr_consistency)
