"""Random numbers that depend on the item of the data, not on its batch or its process."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor


def make_seed(*parts: int | str) -> int:
    """A seed of 32 bits (all that torch's CPU generator takes) from numbers and names."""
    return zlib.crc32("/".join(map(str, parts)).encode())


def draw_normal(like: Tensor, batch: dict[str, Tensor], seed: int, name: str) -> Tensor:
    """Standard normal numbers in the shape of `like` [B, ...]. Those of item k are a function of (seed, name, k).

    batch["index"] has k for every item; a batch without it gets numbers of torch's own generator.
    """
    if "index" not in batch:
        return torch.randn_like(like)
    rows = [torch.randn(like.shape[1:], generator=_generator(seed, name, k)) for k in batch["index"].tolist()]
    return torch.stack(rows).to(like.device, like.dtype)


def draw_integers(low: int, high: int, batch: dict[str, Tensor], like: Tensor, seed: int, name: str) -> Tensor:
    """int64 [B], low <= value < high, as `draw_normal`; B and the device are those of `like`."""
    if "index" not in batch:
        return torch.randint(low, high, (len(like),), device=like.device)
    rows = [torch.randint(low, high, (), generator=_generator(seed, name, k)) for k in batch["index"].tolist()]
    return torch.stack(rows).to(like.device)


def _generator(seed: int, name: str, index: int) -> torch.Generator:
    return torch.Generator().manual_seed(make_seed(seed, name, index))
