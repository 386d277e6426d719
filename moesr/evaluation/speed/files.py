"""A file of the full-size model with random weights, as `convert` would write it of the released ones."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from ...checkpoints.detect import FIRST_STAGE
from ...checkpoints.header import make_header
from ...checkpoints.writing import Entry, write
from ...config import ModelConfig
from ...networks.autoencoder import Autoencoder
from ...networks.denoiser import denoiser

#: Random numbers that all tensors are cut from.
_POOL = 2**22


def full_size_file(path: Path, config: ModelConfig | None = None) -> Path:
    """Four experts and the decoder in float16 (1.2 GB for the full size), written one tensor at a time."""
    config = config or ModelConfig(name="full")
    pool = torch.randn(_POOL, generator=torch.Generator().manual_seed(0)).mul_(0.02).half()

    def entries(prefix: str, state: dict[str, Tensor]) -> list[Entry]:
        return [
            Entry(
                prefix + name,
                tensor.shape,
                torch.float16 if tensor.is_floating_point() else tensor.dtype,
                lambda name=name, tensor=tensor: _values(name, tensor, pool),
            )
            for name, tensor in state.items()
        ]

    with torch.device("meta"):
        unet, autoencoder = denoiser(config.unet).state_dict(), Autoencoder(config.autoencoder).state_dict()
    experts = [entry for i in range(len(config.stages)) for entry in entries(f"experts.{i}.", unet)]
    write(path, [*experts, *entries(FIRST_STAGE, autoencoder)], make_header(config))
    return path


def _values(name: str, like: Tensor, pool: Tensor) -> Tensor:
    if not like.is_floating_point():
        return torch.zeros(like.shape, dtype=like.dtype)
    if name.endswith("running_var"):
        return torch.ones(like.shape, dtype=torch.float16)
    count = like.numel()
    return pool.repeat(math.ceil(count / len(pool)))[:count].view(like.shape)
