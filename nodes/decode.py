"""Frequency-Compensated Decode: the picture of a latent, held to its source image."""

from __future__ import annotations

import logging
from typing import Any

from ..moesr.errors import SettingError
from ..moesr.progress import PHASES, narrow_callback
from . import widgets
from .comfyui import Progress, io, make_schema, read_prompt_inputs, to_output

log = logging.getLogger(__name__)

#: Fraction of the node's time after which frames are steadied, where they are.
DECODED = 0.8


class FrequencyCompensatedDecode(io.ComfyNode):
    """A latent in, the picture out: of the MoESR Sampler or, with a KL f8 decoder, of Stable Diffusion 1.5."""

    @classmethod
    def define_schema(cls) -> Any:
        return make_schema(
            node_id="FrequencyCompensatedDecode",
            search_aliases=[*widgets.ALIASES, "vae decode", "fcd", "tiled decode", "tile"],
            inputs=[
                widgets.model(),
                io.Latent.Input("samples"),
                io.Image.Input("image", optional=True),
                widgets.automatic("fidelity"),
                widgets.choice("color_fix"),
                widgets.automatic("tile"),
                widgets.automatic("scale", optional=True),
                widgets.wrap(optional=True),
                io.Mask.Input("mask", optional=True),
                widgets.automatic("tile_batch", optional=True),
                io.Mask.Input("protect", optional=True),
                widgets.automatic("restore", optional=True),
                widgets.number("steady", optional=True),
                widgets.automatic("tile_overlap", optional=True),
            ],
            outputs=[io.Image.Output("image_out")],
        )

    @classmethod
    def validate_inputs(
        cls, color_fix: Any, fidelity: Any = None, tile: Any = None, scale: Any = None, tile_batch: Any = None,
        restore: Any = None, tile_overlap: Any = None,
    ) -> bool | str:  # fmt: skip
        return widgets.check(
            color_fix=color_fix, fidelity=fidelity, tile=tile, scale=scale, tile_batch=tile_batch, restore=restore,
            tile_overlap=tile_overlap,
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: Any, samples: dict[str, Any], fidelity: Any, color_fix: str, tile: Any, image: Any = None,
        scale: Any = "auto", wrap: bool = False, mask: Any = None, tile_batch: Any = "auto", protect: Any = None,
        restore: Any = "auto", steady: float = 0.0, tile_overlap: Any = "auto",
    ) -> Any:  # fmt: skip
        from ..moesr.frames import steady_frames
        from ..moesr.pipeline import decode_latents

        latents, tile, steady = samples["samples"], widgets.read("tile", tile), widgets.read("steady", steady)
        overlap = widgets.read("tile_overlap", tile_overlap)
        progress = Progress(*PHASES["decode"])
        if model.hosted.decoder is not None:
            if steady:
                raise SettingError("steady: a KL f8 decoder has no source to find the motion in; leave it at 0")
            factor = model.hosted.decoder.autoencoder.config.factor
            model.hosted.begin_run(latents.shape[-1] * factor, latents.shape[-2] * factor, tile)
            decoded = model.hosted.decoder.decode(latents, tile=tile, tile_overlap=overlap, callback=progress)
            picture = to_output(decoded)
            progress.finish(picture)
            return io.NodeOutput(picture)
        if image is None:
            raise SettingError("image: connect the source, the image that the MoESR Sampler was given")
        if not wrap and read_prompt_inputs("samples").get("wrap") is True:
            log.warning("MoESR: wrap is on in the Sampler and off in the Decode, so borders may not match")
        model.hosted.begin_run(image.shape[2] * model.hosted.sr.scale, image.shape[1] * model.hosted.sr.scale, tile)
        automatic = {"scale": scale, "fidelity": fidelity, "restore": restore, "tile_batch": tile_batch}
        picture = decode_latents(
            model.hosted.sr, latents, image, protect=protect, color_fix=color_fix, tile=tile, tile_overlap=overlap,
            wrap=wrap, mask=samples.get("noise_mask") if mask is None else mask,
            callback=narrow_callback(progress, 0, DECODED) if steady else progress, **widgets.read_all(automatic),
        )  # fmt: skip
        if steady:
            steady_frames(image, picture, steady, narrow_callback(progress, DECODED, 1))
        picture = to_output(picture)
        progress.finish(picture)
        return io.NodeOutput(picture)
