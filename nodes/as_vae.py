"""MoESR FCD as VAE: a KL f8 decoder in place of Stable Diffusion 1.5's own."""

from __future__ import annotations

from typing import Any

from . import widgets
from .comfyui import io, make_schema, make_vae

#: The AFF U-Net, which the host's own network does not have.
OURS = "decoder.unet_1."


class MoESRFCDAsVAE(io.ComfyNode):
    """A decoder in, a VAE out."""

    @classmethod
    def define_schema(cls) -> Any:
        return make_schema(
            node_id="MoESRFCDAsVAE",
            search_aliases=["moesr", "vae", "fcd", "sd 1.5 decoder"],
            inputs=[widgets.model()],
            outputs=[io.Vae.Output("vae")],
        )

    @classmethod
    def execute(cls, model: Any) -> Any:
        import torch

        from ..moesr.errors import SettingError
        from ..moesr.tiling import LARGEST_TILE, estimate_tile_memory

        if model.hosted.decoder is None:
            raise SettingError(
                f"model: {model.hosted.name} decodes latents of its own; in the Loader choose a KL f8 decoder, "
                "fa_vae.pth for Stable Diffusion 1.5"
            )
        parts = model.hosted.parts
        weights = {name: parts.weights[name] for name in parts.weights if not name.startswith(OURS)}
        pixel = estimate_tile_memory(parts.config, torch.device("cuda"), LARGEST_TILE) // LARGEST_TILE**2
        return io.NodeOutput(make_vae(weights, parts.autoencoder, lambda _: pixel))
