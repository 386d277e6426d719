"""Noise belongs to the image: it is drawn on the CPU for the whole of it, from (seed, index of the image)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .. import canvas_memory


def make_generators(seed: int, batch_seed: str, images: Sequence[int]) -> list[torch.Generator]:
    """A CPU generator per image number, seeded with (seed, number), or with the seed alone for batch_seed "same"."""
    keys = [(seed % 2**64, 0 if batch_seed == "same" else i) for i in images]
    words = [int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]) for key in keys]
    return [torch.Generator().manual_seed(word % 2**63) for word in words]


def draw_noise(generators: Sequence[torch.Generator], shape: Sequence[int], canvas_device: torch.device) -> Tensor:
    """Standard normal noise of that shape for each generator, [B, *shape], on `canvas_device`."""
    size = (len(generators), *shape)
    pinned = canvas_device.type == "cuda"  # so that the copy to the device waits for nothing
    noise = torch.empty(size, pin_memory=True) if pinned else canvas_memory.zeros(size, torch.device("cpu"))
    for image, generator in zip(noise, generators):
        torch.randn(image.shape, generator=generator, out=image)
    return noise.to(canvas_device, non_blocking=pinned)
