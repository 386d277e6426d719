"""Resizes of whole batches by matrix products, every sample by its own factor."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ...images.resize import cubic

#: As torch's `interpolate` does them, without antialiasing (Real-ESRGAN's), then with: bilinear and MATLAB's bicubic.
AREA, BILINEAR, BICUBIC, SMOOTH_BILINEAR, SMOOTH_BICUBIC = range(5)


def resample(images: Tensor, sizes: np.ndarray, targets: np.ndarray, modes: np.ndarray) -> Tensor:
    """images [n, C, H, W] resized: sample i from sizes[i] to targets[i] (height, width) with modes[i].

    Only sizes[i] of each image count. The result is as large as the largest target; beyond its own target a sample
    repeats its last row and column. Neither clamped nor rounded.
    """
    device = images.device
    rows = matrices(sizes[:, 0], targets[:, 0], modes, images.shape[-2], device=device)
    square = images.shape[-2] == images.shape[-1] and (sizes[:, 0] == sizes[:, 1]).all()
    square = square and (targets[:, 0] == targets[:, 1]).all()
    columns = rows if square else matrices(sizes[:, 1], targets[:, 1], modes, images.shape[-1], device=device)
    return rows[:, None] @ images @ columns[:, None].transpose(-1, -2)


def matrices(
    sides: np.ndarray, targets: np.ndarray, modes: np.ndarray, length: int, *, device: torch.device | str
) -> Tensor:
    """float32 [n, largest target, length]: row j has the weights of output j; rows beyond a target repeat its last."""
    kinds = np.stack([sides, targets, modes], 1)
    unique, where = np.unique(kinds, axis=0, return_inverse=True)
    result = torch.zeros(len(unique), int(targets.max()), length, device=device)
    for mode in np.unique(modes):
        at = np.flatnonzero(unique[:, 2] == mode)
        n_in, n_out = (torch.as_tensor(unique[at, i], device=device)[:, None] for i in (0, 1))
        j = torch.minimum(torch.arange(result.shape[1], device=device)[None], n_out - 1)
        index, weight = _taps(j, n_in, n_out, int(mode), int(np.ceil((unique[at, 0] / unique[at, 1]).max())))
        part = torch.zeros(len(at), result.shape[1], length, dtype=torch.float64, device=device)
        part.scatter_add_(2, index, weight)
        result[torch.as_tensor(at, device=device)] = part.float()
    where = np.asarray(where).reshape(-1)
    return result if len(unique) == len(sides) and (where == np.arange(len(sides))).all() else (
        result[torch.as_tensor(where, device=device)]
    )  # fmt: skip


def _taps(j: Tensor, n_in: Tensor, n_out: Tensor, mode: int, shrink: int) -> tuple[Tensor, Tensor]:
    """Input positions and float64 weights [n, outputs, taps] of outputs j [n, outputs]; shrink: largest, rounded up."""
    ratio = n_in.double() / n_out.double()
    last = n_in[..., None] - 1
    if mode == AREA:
        start, stop = j * n_in // n_out, -((-(j + 1) * n_in) // n_out)
        index = start[..., None] + torch.arange(shrink + 2, device=j.device)
        weight = (index < stop[..., None]).double() / (stop - start)[..., None]
        return torch.minimum(index, last), weight
    centre = (j + 0.5) * ratio - 0.5
    if mode in (BILINEAR, BICUBIC):
        centre = centre.clamp(min=0) if mode == BILINEAR else centre
        index = centre.floor().long()[..., None] + torch.arange(-1, 3, device=j.device)
        x = (centre[..., None] - index).abs()
        weight = (1 - x).clamp(min=0) if mode == BILINEAR else cubic(x, -0.75)
        return torch.maximum(torch.minimum(index, last), torch.zeros_like(last)), weight
    stretch = ratio.clamp(min=1)[..., None]  # the kernel is stretched when shrinking: that is the antialiasing
    support = (2 if mode == SMOOTH_BICUBIC else 1) * shrink
    index = centre.floor().long()[..., None] + torch.arange(-support, support + 2, device=j.device)
    x = (centre[..., None] - index).abs() / stretch
    if mode == SMOOTH_BILINEAR:  # cut off at borders
        weight = (1 - x).clamp(min=0) * ((index >= 0) & (index <= last))
        index = torch.maximum(torch.minimum(index, last), torch.zeros_like(last))
    else:  # mirrored at borders, the last sample twice
        weight = cubic(x)
        index = index % (2 * n_in[..., None])
        index = torch.minimum(index, 2 * last + 1 - index)
    return index, weight / weight.sum(-1, keepdim=True)


def ceil_to(length: int, multiple: int) -> int:
    """The next multiple."""
    return math.ceil(length / multiple) * multiple
