"""MATLAB's bicubic `imresize`, separable and antialiased: the resize of the super-resolution field."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..errors import ImageError, SettingError

_BLOCK = 64  # output samples that one small dense matrix makes

#: Matrices by (input samples, output samples, scale, device, dtype): of each block its first output, its first input,
#: and [outputs, inputs].
Matrices = dict[tuple[int, int, float, torch.device, torch.dtype], list[tuple[int, int, Tensor]]]


def resize(image: Tensor, size: tuple[int, int], matrices: Matrices | None = None) -> Tensor:
    """Bicubic resize (a = -0.5, antialiased when shrinking) that equals MATLAB's `imresize(image, size)`.

    image [B, C, H, W] of any floating type, or uint8; size (height, width). The type is kept. Floats are neither
    clamped nor rounded; uint8 is rounded and clipped after each of the two 1-D passes, as MATLAB does.
    matrices: kept from call to call by who resizes many images of one size, so that they are made and uploaded once.
    Raises ImageError for an empty image and SettingError for a size below 1.
    """
    height, width = image.shape[-2:]
    if not image.numel():
        raise ImageError(f"image of {width} x {height} pixels: nothing to resize; give at least one pixel")
    return _resample(image, size, (size[0] / height, size[1] / width), matrices)


def resize_rows(
    read: Callable[[int, int], Tensor], height: int, width: int, size: tuple[int, int], start: int, stop: int
) -> Tensor:
    """Rows start .. stop of `resize(image, size)` for an image that is never whole: [..., stop - start, size[1]].

    read(a, b): rows a .. b of the image of height x width, float [..., b - a, width]; called once, for the rows needed.
    """
    index, weight = _taps(height, size[0], size[0] / height)
    index, weight = index[start:stop], weight[start:stop]
    low, high = int(index.min()), int(index.max()) + 1
    part = _resample_axis(read(low, high), 1, size[1], size[1] / width)
    if size[0] == height:
        return part.narrow(-2, start - low, stop - start)
    matrix = weight.new_zeros(stop - start, high - low).scatter_add_(1, index - low, weight)
    return matrix.to(part.device, part.dtype) @ part


def resize_uint8(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`resize` for one uint8 picture, HW or HWC; size (height, width)."""
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or not array.size:
        raise ImageError(f"array of {array.dtype} {array.shape}: expected uint8 of height x width (x channels)")
    planes = np.ascontiguousarray(array.reshape(*array.shape[:2], -1).transpose(2, 0, 1))
    result = resize(torch.from_numpy(planes)[None], size)[0].permute(1, 2, 0)
    return np.ascontiguousarray(result.reshape(*size, *array.shape[2:]).numpy())


def _resample(
    image: Tensor, size: tuple[int, int], scales: tuple[float, float], matrices: Matrices | None = None
) -> Tensor:
    if min(size) < 1:
        raise SettingError(f"size {size[1]} x {size[0]}: an image has at least one pixel; use a larger scale")
    result = image.float() if image.dtype in (torch.float16, torch.bfloat16) else image
    # The smaller scale first: MATLAB's order, and less work. Rows first where they are equal.
    for axis in (0, 1) if scales[0] <= scales[1] else (1, 0):
        result = _resample_axis(result, axis, size[axis], scales[axis], matrices)
    return result.to(image.dtype)


def _resample_axis(
    image: Tensor, axis: int, count: int, scale: float, matrices: Matrices | None = None
) -> Tensor:  # fmt: skip
    """One 1-D pass along rows (axis 0) or columns (axis 1), by products with small blocks of the banded matrix."""
    dim = image.ndim - 2 + axis
    length = image.shape[dim]
    if count == length and scale == 1:
        return image
    work = image.dtype if image.dtype == torch.float32 else torch.float64
    matrices = {} if matrices is None else matrices
    key = (length, count, scale, image.device, work)
    if key not in matrices:
        matrices[key] = _make_blocks(*key)
    result = image.new_empty([count if d == dim else n for d, n in enumerate(image.shape)])
    for start, low, block in matrices[key]:
        part = image.narrow(dim, low, block.shape[1]).to(work)
        part = block @ part if axis == 0 else part @ block.T
        if image.dtype == torch.uint8:
            part = part.round_().clamp_(0, 255)
        result.narrow(dim, start, len(block)).copy_(part)
    return result


def _make_blocks(
    length: int, count: int, scale: float, device: torch.device, dtype: torch.dtype
) -> list[tuple[int, int, Tensor]]:
    """The blocks of one entry of Matrices."""
    index, weight = _taps(length, count, scale)
    blocks = []
    for start in range(0, count, _BLOCK):
        rows, values = index[start : start + _BLOCK], weight[start : start + _BLOCK]
        low, high = int(rows.min()), int(rows.max()) + 1
        block = values.new_zeros(len(rows), high - low).scatter_add_(1, rows - low, values)
        blocks.append((start, low, block.to(device, dtype)))
    return blocks


def _taps(length: int, count: int, scale: float) -> tuple[Tensor, Tensor]:
    """Input positions (int64) and weights (float64, sum 1) of every output sample: both [count, taps]."""
    shrink = min(scale, 1.0)  # below 1 the kernel is stretched by 1 / scale: that is the antialiasing
    width = 4 / shrink
    centre = (torch.arange(count, dtype=torch.float64) + 0.5) / scale - 0.5
    first = torch.floor(centre - width / 2)
    position = first[:, None] + torch.arange(math.ceil(width) + 2, dtype=torch.float64)
    weight = cubic((centre[:, None] - position) * shrink)
    weight /= weight.sum(1, keepdim=True)
    index = position.long() % (2 * length)  # symmetric reflection has period 2 * length, whatever the length
    return torch.where(index < length, index, 2 * length - 1 - index), weight


def cubic(x: Tensor, a: float = -0.5) -> Tensor:
    """Keys' cubic convolution kernel; zero outside [-2, 2]."""
    x = x.abs()
    inner = ((a + 2) * x - (a + 3)) * x * x + 1
    outer = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x <= 1, inner, torch.where(x <= 2, outer, torch.zeros_like(x)))
