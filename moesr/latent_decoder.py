"""A decoder by itself, for latents of Stable Diffusion 1.5: KL f8 with the AFF U-Net (paper, section 3.3)."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from .checkpoints.detect import role
from .checkpoints.files import SUFFIXES, build, open_autoencoder
from .checkpoints.reading import View, Weights
from .config import AutoencoderConfig
from .diffusion.experts import Residency
from .errors import CheckpointError, NumericsError, SettingError
from .images.windows import Blender, crop, tile_windows
from .networks.autoencoder import Autoencoder
from .pipeline import SMALLEST_TILE, largest_tile
from .progress import Callback, Event
from .runtime import Runtime, shrinking


@dataclass(frozen=True, eq=False)
class DecoderParts:
    """A KL decoder in its file. Latents are those of a host's sampler: divided by the model's factor already."""

    config: AutoencoderConfig
    weights: View

    @property
    def path(self) -> Path:
        """The file."""
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
        if role(Weights(source)) != "autoencoder":
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

    def decoder(self) -> AbstractContextManager[Autoencoder]:
        """The network, on the device inside the block."""
        if self.keeper is None:
            return nullcontext(self.autoencoder)
        return cast("AbstractContextManager[Autoencoder]", self.keeper.use(0))

    def decode(self, latents: Tensor, *, tile: int | str = "auto", callback: Callback | None = None) -> Tensor:
        """Pictures, float32 [B, H, W, 3] in [0, 1], of latents [B, C, h, w]; H and W are `factor` times h and w.

        tile: largest side of a window of the picture in pixels, 0 for none. callback(Event) is called before every
        tile; what it raises stops the run. Raises SettingError for latents of another kind, NumericsError for NaN.
        """
        config = self.autoencoder.config
        if latents.ndim != 4 or latents.shape[1] != config.embed_dim:
            raise SettingError(
                f"latents of shape {list(latents.shape)}: this decoder draws latents of {config.embed_dim} channels, "
                "those of Stable Diffusion 1.5; connect a sampler of such a model"
            )
        height, width = latents.shape[2:]
        out = torch.empty(len(latents), 3, height * config.factor, width * config.factor)

        def attempt(side: int) -> None:
            windows = tile_windows(height, width, side, max(2, side // 8))
            blender = Blender([w.scaled(config.factor) for w in windows], *out.shape[2:])
            total = len(windows) * len(latents)
            out.zero_()
            with self.decoder() as network:
                for done in range(total):
                    image, window = done // len(windows), windows[done % len(windows)]
                    self.runtime.check()
                    if callback is not None:
                        callback(Event("decode", tile=done + 1, tiles=total))
                    z = crop(latents[image : image + 1], window).to(self.device, self.dtype)
                    blender.add(out[image], network.decode(z)[0].float(), window.scaled(config.factor))

        with torch.inference_mode():
            first = self._first_tile(tile, max(height, width))
            shrinking(self.runtime, first, min(first, SMALLEST_TILE // config.factor), attempt)
        if not bool(torch.isfinite(out).all()):
            raise NumericsError("the decoded picture is not a number everywhere: load the decoder in fp32 or bf16")
        return ((out + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1).contiguous()

    def _first_tile(self, tile: int | str, whole: int) -> int:
        if tile == 0:
            return whole
        config = self.autoencoder.config
        if tile == "auto":
            tile = largest_tile(config, self.dtype, self.runtime.free_memory(self.device))
        return min(whole, max(SMALLEST_TILE, int(tile)) // config.factor)
