"""Weights that are made rather than stored: a hash of a tensor's name and of the entry's index gives its value.

Entry i of tensor k takes the output number crc32("salt/k") * 2^32 + i of splitmix64; its upper 24 bits, divided by
2^23, minus 1, are uniform in [-1, 1). The kind of the tensor says what becomes of that, in float64 and rounded at the
end.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: (offset, factor) of the kinds whose spread does not depend on the shape: value = offset + factor * uniform.
AFFINE = {"b": (0, 0.1), "nw": (1, 0.3), "nb": (0, 0.2), "rm": (0, 0.2), "rv": (1, 0.4), "emb": (0, 1.5)}


def weights(entries: Mapping[str, Any], salt: str, gains: Mapping[str, float] | None = None) -> dict[str, Tensor]:
    """The state dict of {key: [shape, kind]}. gains: {part of a key: factor} for kinds w and aw; last wins."""
    result = {}
    for key, (shape, kind) in entries.items():
        fitting = [gain for part, gain in (gains or {}).items() if part in key]
        result[key] = _tensor(f"{salt}/{key}", shape, kind, fitting[-1] if fitting else 1.0)
    return result


def _tensor(name: str, shape: list[int], kind: str, gain: float) -> Tensor:
    if kind == "nbt":  # number of batches that a batch norm has seen
        return torch.zeros(shape, dtype=torch.int64)
    values = _uniform(name, math.prod(shape))
    if kind in AFFINE:
        offset, factor = AFFINE[kind]
        values = values * factor + offset
    else:
        fan_in = {"w": math.prod(shape[1:]), "aw": shape[2] if len(shape) > 2 else 1}[kind]
        values = values * math.sqrt(3.0 / fan_in) * gain
    return torch.from_numpy(values.astype(np.float32)).reshape(shape)


def _uniform(name: str, count: int) -> np.ndarray:
    first = (zlib.crc32(name.encode()) << 32) + 1
    x = np.arange(first, first + count, dtype=np.uint64)
    x *= np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x ^= x >> np.uint64(shift)
        x *= np.uint64(factor)
    x ^= x >> np.uint64(31)
    x >>= np.uint64(40)
    return x * 2.0**-23 - 1.0
