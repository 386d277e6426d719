"""Frequency-Compensated Decode: the picture of a latent, held to its source image."""

from __future__ import annotations

import logging
from typing import Any

from . import widgets
from .comfyui import Progress, io, read_prompt_inputs, schema

log = logging.getLogger(__name__)


class FrequencyCompensatedDecode(io.ComfyNode):
    """A latent in, the picture out: of the MoESR Sampler or, with a KL f8 decoder, of Stable Diffusion 1.5."""

    @classmethod
    def define_schema(cls) -> Any:
        """Inputs and outputs."""
        return schema(
            node_id="FrequencyCompensatedDecode",
            category=widgets.CATEGORY,
            search_aliases=[*widgets.ALIASES, "vae decode", "fcd", "tiled decode"],
            inputs=[
                widgets.model(),
                io.Latent.Input("samples"),
                io.Image.Input("image", optional=True),
                widgets.fidelity(),
                io.Combo.Input("color_fix", options=list(widgets.COLOUR_FIXES), default="adain"),
                widgets.tile(),
                widgets.scale(optional=True),
                widgets.wrap(optional=True),
                io.Mask.Input("mask", optional=True),
            ],
            outputs=[io.Image.Output("image_out")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        samples: dict[str, Any],
        fidelity: float,
        color_fix: str,
        tile: int,
        image: Any = None,
        scale: float = 0.0,
        wrap: bool = False,
        mask: Any = None,
    ) -> Any:
        """The pictures, float [B, H, W, C]."""
        from ..moesr.errors import SettingError
        from ..moesr.pipeline import decode_latents

        widgets.listed("color_fix", color_fix, widgets.COLOUR_FIXES)
        latents = samples["samples"]
        progress = Progress()
        if model.decoder is not None:
            factor = model.decoder.autoencoder.config.factor
            model.hosted.begin_run(latents.shape[-1] * factor, latents.shape[-2] * factor, tile)
            picture = model.decoder.decode(latents, tile=tile or "auto", callback=progress)
            progress.done()
            return io.NodeOutput(picture)
        if image is None:
            raise SettingError("image: connect the source, the image that the MoESR Sampler was given")
        if not wrap and read_prompt_inputs("samples").get("wrap") is True:
            log.warning("MoESR: wrap is on in the Sampler and off in the Decode, so borders may not match")
        model.hosted.begin_run(image.shape[2] * model.sr.scale, image.shape[1] * model.sr.scale, tile)
        picture = decode_latents(
            model.sr,
            latents,
            image,
            scale=scale or None,
            fidelity=fidelity,
            color_fix=color_fix,
            tile=tile or "auto",
            wrap=wrap,
            mask=samples.get("noise_mask") if mask is None else mask,
            callback=progress,
        )
        progress.done()
        return io.NodeOutput(picture)
