"""A decoder by itself, for latents of Stable Diffusion 1.5: KL f8 with the AFF U-Net (paper, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from .canvas_memory import place_canvases
from .checkpoints.detect import find_role
from .checkpoints.model_files import SUFFIXES, build, open_autoencoder
from .checkpoints.weight_reading import View, Weights
from .config import AutoencoderConfig
from .diffusion.experts import Residency
from .errors import CheckpointError, NumericsError, SettingError
from .images.tile_windows import Window, crop, plan_windows
from .model import hold_decoder
from .networks.autoencoder import Autoencoder
from .pipeline_run import is_finite
from .progress import Callback, Reporter
from .runtime import Runtime
from .settings import check_settings
from .tiling import SMALLEST_TILE, TileSize, count_overlap_cells, decode_in_tiles, to_overlap


@dataclass(frozen=True, eq=False)
class DecoderParts:
    """A KL decoder in its file. Latents are those of a host's sampler: divided by the model's factor already."""

    config: AutoencoderConfig
    weights: View

    @property
    def path(self) -> Path:
        return self.weights.weights.path

    def autoencoder(self, dtype: torch.dtype, device: torch.device) -> Autoencoder:
        """The network, built in `dtype` on `device`. Raises CheckpointError if the file does not hold it any more."""
        return build(Autoencoder, self.config, self.weights, dtype, device, str(self.path))


def open_decoder(source: Path) -> DecoderParts | None:
    """The KL decoder in a file, or alone in a folder; None if it is something else, or unreadable."""
    if source.is_dir():
        inside = [path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES]
        return open_decoder(inside[0]) if len(inside) == 1 else None
    try:
        if find_role(Weights(source)) != "autoencoder":
            return None
        config, weights = open_autoencoder(source)
    except CheckpointError:
        return None
    return DecoderParts(replace(config, scale_factor=1.0), weights) if config.kind == "kl" else None


@dataclass(eq=False)
class LatentDecoder:
    """A decoder on a device. `keeper` is for hosts that move it on and off."""

    autoencoder: Autoencoder
    device: torch.device
    dtype: torch.dtype
    runtime: Runtime
    keeper: Residency | None = None

    def decode(
        self, latents: Tensor, *, tile: int | str = "auto", tile_overlap: int | str = "auto",
        callback: Callback | None = None,
    ) -> Tensor:  # fmt: skip
        """Pictures, float32 [B, H, W, 3] in [0, 1], of latents [B, C, h, w]; H and W are `factor` times h and w.

        tile: largest side of a window of the picture in pixels, 0 for none. tile_overlap: see settings.py.
        callback(Event) is called before every tile; what it raises stops the run. Raises SettingError for latents of
        another kind, NumericsError for NaN.
        """
        config = self.autoencoder.config
        if latents.ndim != 4 or latents.shape[1] != config.embed_dim:
            raise SettingError(
                f"latents of shape {list(latents.shape)}: this decoder draws latents of {config.embed_dim} channels, "
                "those of Stable Diffusion 1.5; connect a sampler of such a model"
            )
        check_settings(tile=tile, tile_overlap=tile_overlap)
        height, width = latents.shape[2:]
        reporter, free = Reporter(callback), self.runtime.free_memory(self.device)
        tiles = TileSize(
            tile, whole=max(height, width), smallest=SMALLEST_TILE // config.factor, multiple=1, config=config,
            device=self.device, runtime=self.runtime, free=free, reporter=reporter,
        )  # fmt: skip
        batch, overlap = tiles.batch(), to_overlap(tile_overlap, config.factor)
        out = torch.empty(len(latents), 3, height * config.factor, width * config.factor)
        canvas_device = place_canvases(4 * out[0].numel(), self.device, free)

        def decode(network: Autoencoder, image: int, windows: Sequence[Window]) -> Tensor:
            self.runtime.check()
            reporter.advance(len(windows))
            z = torch.cat([crop(latents[image : image + 1], window) for window in windows])
            return network.decode(z.to(self.device, self.dtype))

        def attempt(side: int, image: int) -> None:
            windows = plan_windows(height, width, side, count_overlap_cells(side, overlap, 2))
            reporter.begin("decode", tile=image * len(windows), tiles=len(windows) * len(latents))
            with hold_decoder(self.autoencoder, self.keeper) as network:
                for start, rows in decode_in_tiles(
                    partial(decode, network, image), windows, height=height, width=width, factor=config.factor,
                    tile_batch=batch, canvas_device=canvas_device,
                ):  # fmt: skip
                    out[image, :, start : start + rows.shape[1]] = rows

        with torch.inference_mode():
            for image in range(len(latents)):
                tiles.attempt(partial(attempt, image=image))
        if not is_finite(out):
            raise NumericsError("the decoded picture is not a number everywhere: load the decoder in fp32 or bf16")
        return ((out + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1).contiguous()
