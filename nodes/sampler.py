"""MoESR Sampler: the latent of a larger picture, denoised by the time experts in turn."""

from __future__ import annotations

from typing import Any

from ..moesr.errors import SettingError
from ..moesr.progress import PHASES
from ..moesr.settings import SETTINGS
from . import widgets
from .comfyui import ADVANCED, Progress, io, make_schema, read_prompt_inputs, to_output


class MoESRSampler(io.ComfyNode):
    """An image in, the latent of its enlargement out."""

    @classmethod
    def define_schema(cls) -> Any:
        return make_schema(
            node_id="MoESRSampler",
            search_aliases=[*widgets.ALIASES, "ksampler", "tiled diffusion", "tile", "seamless", "resshift"],
            inputs=[
                widgets.model(),
                io.Image.Input("image"),
                widgets.seed(),
                widgets.automatic("steps"),
                widgets.choice("sampler"),
                widgets.number("eta"),
                io.Combo.Input("batch_seed", options=list(widgets.BATCH_SEED_WORDS), default="per image"),
                widgets.automatic("tile"),
                widgets.wrap(),
                io.Mask.Input("mask", optional=True),
                widgets.automatic("tile_batch", optional=True),
                widgets.automatic("fidelity", optional=True),
                widgets.automatic("restore", optional=True),
                io.Mask.Input("protect", optional=True),
                widgets.automatic("tile_overlap", optional=True),
            ],
            advanced=(*ADVANCED, "fidelity", "restore"),
            outputs=[io.Latent.Output("samples"), io.String.Output("plan")],
        )

    @classmethod
    def validate_inputs(
        cls, steps: Any = None, tile: Any = None, tile_batch: Any = None, fidelity: Any = None, restore: Any = None,
        tile_overlap: Any = None,
    ) -> bool | str:  # fmt: skip
        return widgets.check(
            steps=steps, tile=tile, tile_batch=tile_batch, tile_overlap=tile_overlap, fidelity=fidelity, restore=restore
        )

    @classmethod
    def execute(
        cls, model: Any, image: Any, seed: int, steps: Any, sampler: str, eta: float, batch_seed: str, tile: Any,
        wrap: bool, mask: Any = None, tile_batch: Any = "auto", fidelity: Any = "auto", restore: Any = "auto",
        protect: Any = None, tile_overlap: Any = "auto",
    ) -> Any:  # fmt: skip
        """Latents of the batch, and the plan of experts with what had to be assumed about the model."""
        from ..moesr.hosting.model_facts import plan_steps
        from ..moesr.pipeline import sample_latents

        widgets.check_choice("sampler", sampler, SETTINGS["sampler"].choices)
        widgets.check_choice("batch_seed", batch_seed, list(widgets.BATCH_SEED_WORDS))
        sr = model.hosted.sr
        if read_prompt_inputs().get("scale", 0) not in (0, sr.scale):  # of an older prompt; the host leaves it out
            raise SettingError("scale: the Sampler has none any more; set it in Frequency-Compensated Decode")
        steps, tile = widgets.read("steps", steps), widgets.read("tile", tile)
        plan = plan_steps(sr.config, steps=steps, sampler=sampler)
        progress = Progress(0, PHASES["sample"][1], plan)
        model.hosted.begin_run(image.shape[2] * sr.scale, image.shape[1] * sr.scale, tile)
        automatic = {"tile_batch": tile_batch, "tile_overlap": tile_overlap, "fidelity": fidelity, "restore": restore}
        samples = sample_latents(
            sr, image, steps=steps, sampler=sampler, eta=eta, seed=seed, tile=tile, wrap=wrap, mask=mask,
            batch_seed=widgets.BATCH_SEED_WORDS[batch_seed], protect=protect, callback=progress,
            **widgets.read_all(automatic),
        )  # fmt: skip
        progress.finish()
        latent = {"samples": to_output(samples)}
        if mask is not None:
            latent["noise_mask"] = mask
        return io.NodeOutput(latent, "\n".join([plan.describe(), *sr.notes]))
