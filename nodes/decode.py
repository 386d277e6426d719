"""Frequency-Compensated Decode: the picture of a latent, held to its source image."""

from __future__ import annotations

import logging
from typing import Any

from ..moesr.errors import SettingError
from ..moesr.settings import SETTINGS
from . import widgets
from .comfyui import Progress, io, make_schema, read_prompt_inputs

log = logging.getLogger(__name__)


class FrequencyCompensatedDecode(io.ComfyNode):
    """A latent in, the picture out: of the MoESR Sampler or, with a KL f8 decoder, of Stable Diffusion 1.5."""

    @classmethod
    def define_schema(cls) -> Any:
        """Inputs and outputs."""
        return make_schema(
            node_id="FrequencyCompensatedDecode",
            category=widgets.CATEGORY,
            search_aliases=[*widgets.ALIASES, "vae decode", "fcd", "tiled decode", "tile"],
            inputs=[
                widgets.model(),
                io.Latent.Input("samples"),
                io.Image.Input("image", optional=True),
                widgets.fidelity(),
                widgets.choice("color_fix"),
                widgets.tile(),
                widgets.scale(),
                widgets.wrap(optional=True),
                io.Mask.Input("mask", optional=True),
            ],
            outputs=[io.Image.Output("image_out")],
        )

    @classmethod
    def validate_inputs(cls, color_fix: str | None) -> bool | str:
        """Says before anything is sampled that there is no such colour fix; None stands for a link."""
        choices = SETTINGS["color_fix"].choices
        if color_fix is None or color_fix in choices:
            return True
        return f"color_fix: there is no {color_fix}; choose one of {', '.join(choices)}"

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
        from ..moesr.pipeline import decode_latents

        latents = samples["samples"]
        progress = Progress()
        if model.hosted.decoder is not None:
            factor = model.hosted.decoder.autoencoder.config.factor
            model.hosted.begin_run(latents.shape[-1] * factor, latents.shape[-2] * factor, tile)
            picture = model.hosted.decoder.decode(latents, tile=tile or "auto", callback=progress)
            progress.finish()
            return io.NodeOutput(picture)
        if image is None:
            raise SettingError("image: connect the source, the image that the MoESR Sampler was given")
        if not wrap and read_prompt_inputs("samples").get("wrap") is True:
            log.warning("MoESR: wrap is on in the Sampler and off in the Decode, so borders may not match")
        model.hosted.begin_run(image.shape[2] * model.hosted.sr.scale, image.shape[1] * model.hosted.sr.scale, tile)
        picture = decode_latents(
            model.hosted.sr,
            latents,
            image,
            scale=scale or None,
            fidelity=fidelity,
            color_fix=color_fix,
            tile=tile or "auto",
            wrap=wrap,
            mask=widgets.drop_unpainted(samples.get("noise_mask") if mask is None else mask),
            callback=progress,
        )
        progress.finish()
        return io.NodeOutput(picture)
