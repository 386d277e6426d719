"""MoESR as Upscale Model: for the host's "Upscale Image (using Model)" and for tiled upscalers of other packs."""

from __future__ import annotations

from typing import Any

from ..moesr.errors import SettingError
from . import widgets
from .comfyui import io, make_schema


class UpscaleModel:
    """A model as those nodes expect it: called with [B, 3, H, W] in [0, 1], it gives [B, 3, scale H, scale W].

    They cut the picture into tiles of their own, each of which is a run by itself here; so colours are held to the
    source locally, and noise is that of the seed in every tile.
    """

    input_channels = output_channels = 3

    def __init__(self, model: Any, steps: int | None, seed: int, fidelity: float | None) -> None:
        self._model, self._steps, self._seed, self._fidelity = model, steps, seed, fidelity
        self.scale = model.hosted.sr.scale

    @property
    def model(self) -> Any:
        """The network whose size the host counts."""
        return self.patcher.model

    @property
    def patcher(self) -> Any:
        return self._model.patcher

    @property
    def device(self) -> Any:
        return self._model.hosted.networks.keeper.device

    def to(self, *_: Any, **__: Any) -> UpscaleModel:
        """The same: the host's memory manager has the networks moved when they are used."""
        return self

    def eval(self) -> UpscaleModel:
        return self

    def __call__(self, image: Any) -> Any:
        from ..moesr.pipeline import upscale

        if image.shape[1] != self.input_channels:
            raise SettingError(
                f"image: it has {image.shape[1]} channels, and this node of the host makes pictures with 3; take "
                "MoESR Upscale, which keeps transparency"
            )
        self._model.hosted.begin_run(image.shape[3] * self.scale, image.shape[2] * self.scale)
        settings = {"steps": self._steps, "seed": self._seed, "fidelity": self._fidelity, "color_fix": "wavelet"}
        result = upscale(self._model.hosted.sr, image.movedim(1, -1), **settings)
        return result.movedim(-1, 1).to(image.device)


class MoESRAsUpscaleModel(io.ComfyNode):
    """A MOESR_MODEL in, an UPSCALE_MODEL out."""

    @classmethod
    def define_schema(cls) -> Any:
        return make_schema(
            node_id="MoESRAsUpscaleModel",
            search_aliases=[*widgets.ALIASES, "upscale model", "ultimate sd upscale"],
            inputs=[widgets.model(), widgets.automatic("steps"), widgets.seed(), widgets.automatic("fidelity")],
            outputs=[io.UpscaleModel.Output("upscale_model")],
        )

    @classmethod
    def validate_inputs(cls, steps: Any = None, fidelity: Any = None) -> bool | str:
        return widgets.check(steps=steps, fidelity=fidelity)

    @classmethod
    def execute(cls, model: Any, steps: Any, seed: int, fidelity: Any) -> Any:
        steps, fidelity = widgets.read("steps", steps), widgets.read("fidelity", fidelity)
        return io.NodeOutput(UpscaleModel(model, steps, seed, fidelity))
