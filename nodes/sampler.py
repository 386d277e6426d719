"""MoESR Sampler: the latent of a larger picture, denoised by the time experts in turn."""

from __future__ import annotations

from typing import Any

from . import widgets
from .comfyui import Progress, io, read_prompt_inputs, schema
from .plan import plan_of


class MoESRSampler(io.ComfyNode):
    """An image in, the latent of its enlargement out."""

    @classmethod
    def define_schema(cls) -> Any:
        """Inputs and outputs."""
        return schema(
            node_id="MoESRSampler",
            category=widgets.CATEGORY,
            search_aliases=[*widgets.ALIASES, "ksampler", "tiled diffusion", "seamless", "resshift"],
            inputs=[
                widgets.model(),
                io.Image.Input("image"),
                widgets.seed(),
                widgets.steps(),
                widgets.sampler(),
                io.Float.Input("eta", default=1.0, min=0.0, max=2.0, step=0.05),
                io.Combo.Input("batch_seed", options=list(widgets.BATCH_SEEDS), default=widgets.BATCH_SEEDS[0]),
                widgets.tile(),
                widgets.wrap(),
                io.Mask.Input("mask", optional=True),
            ],
            outputs=[io.Latent.Output("samples"), io.String.Output("plan")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        image: Any,
        seed: int,
        steps: int,
        sampler: str,
        eta: float,
        batch_seed: str,
        tile: int,
        wrap: bool,
        mask: Any = None,
    ) -> Any:
        """Latents of the batch, and the plan of experts with what had to be assumed about the model."""
        from ..moesr.errors import SettingError
        from ..moesr.pipeline import sample_latents

        widgets.listed("sampler", sampler, widgets.SAMPLERS)
        widgets.listed("batch_seed", batch_seed, widgets.BATCH_SEEDS)
        sr = model.sr
        if read_prompt_inputs().get("scale", 0) not in (0, sr.scale):  # of an older prompt; the host leaves it out
            raise SettingError("scale: the Sampler has none any more; set it in Frequency-Compensated Decode")
        plan = plan_of(sr, steps, sampler)
        progress = Progress(plan.experts, plan.noise)
        model.hosted.begin_run(image.shape[2] * sr.scale, image.shape[1] * sr.scale, tile)
        samples = sample_latents(
            sr,
            image,
            steps=steps or None,
            sampler=sampler,
            eta=eta,
            seed=seed,
            batch_seed="same" if batch_seed == widgets.BATCH_SEEDS[1] else "per_image",
            tile=tile or "auto",
            wrap=wrap,
            mask=mask,
            callback=progress,
        )
        progress.done()
        latent = {"samples": samples.cpu()}
        if mask is not None:
            latent["noise_mask"] = mask
        return io.NodeOutput(latent, "\n".join([plan.text(), *sr.notes]))
