"""Inverted residuals as they are used: batch norms folded into the convolutions, a band of rows at a time.

The four times wider features inside are what costs memory and time: whole, they are written to memory and read again by
every layer. A band of them stays in a CPU's cache. All is derived from the weights at every call, so nothing here can
be older than they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Bytes of wide features that exist at a time: on a CPU a part of its cache, elsewhere enough for one large launch.
CPU_BAND, DEVICE_BAND = 20 * 2**20, 64 * 2**20
#: Of the leaky ReLUs between the convolutions.
SLOPE = 0.1
#: A batch of so many takes oneDNN's kernel for 1 x 1 convolutions on a single thread too; a smaller one does not.
BATCH = 16


def band_bytes(device: torch.device) -> int:
    """Bytes of working memory that one band should take on the device."""
    return CPU_BAND if device.type == "cpu" else DEVICE_BAND


def can_fold(x: Tensor, short: nn.Conv2d, *layers: tuple[nn.Conv2d, nn.BatchNorm2d]) -> bool:
    """True if `inverted_residual` may take the place of these modules.

    Not where gradients are recorded, a norm is in training mode, or a host keeps weights somewhere else than x.
    """
    if torch.is_grad_enabled() or any(norm.training for _, norm in layers):
        return False
    return all(conv.weight.device == x.device for conv in (short, *(conv for conv, _ in layers)))


def fold_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that does what `conv`, without bias, and `norm` do; folded in float32."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.float() * torch.rsqrt(norm.running_var.float() + norm.eps)
    weight = conv.weight.float() * scale[:, None, None, None]
    return weight.to(dtype), (norm.bias.float() - norm.running_mean.float() * scale).to(dtype)


def inverted_residual(
    layers: Sequence[tuple[Tensor, Tensor]], x: Tensor, skip: bool, short: nn.Conv2d, source: Tensor
) -> Tensor:
    """reduce(act(depthwise(act(expand(x))))) + short(source), plus x with `skip`; act is a leaky ReLU of 0.1.

    layers: weight and bias of expand, depthwise and reduce; x, source: [B, C, H, W]. Nothing is lost at the edges of
    bands: each sees the rows above and below it.
    """
    expand, depthwise, reduce = layers
    images, _, height, width = x.shape
    hidden = len(expand[0])
    rows = max(BATCH, band_bytes(x.device) // (width * hidden * x.element_size()) - 2)
    rows = math.ceil(height / math.ceil(height / rows))  # all bands alike
    last = x.is_contiguous(memory_format=torch.channels_last)
    out = torch.empty(
        (images, len(reduce[0]), height, width), dtype=x.dtype, device=x.device,
        memory_format=torch.channels_last if last else torch.contiguous_format,
    )  # fmt: skip
    for image in range(images):
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            inside = x[image : image + 1, :, top:bottom]
            h = pointwise(x[image : image + 1, :, max(top - 1, 0) : bottom + 1], *expand)
            h = F.leaky_relu(h, SLOPE, inplace=True)
            if rows < height and (top == 0 or bottom == height):
                # Beyond the border the depthwise convolution sees zeros, not what zeros expand to.
                h = F.pad(h, (0, 0, int(top == 0), int(bottom == height)))
            h = F.conv2d(h, *depthwise, padding=(int(rows == height), 1), groups=hidden)
            h = pointwise(F.leaky_relu(h, SLOPE, inplace=True), *reduce)
            h += pointwise(source[image : image + 1, :, top:bottom], short.weight, short.bias)
            out[image, :, top:bottom] = (h.add_(inside) if skip else h)[0]
    return out


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 1 x 1 convolution of one image [1, C, h, w]; its rows go as a batch, see BATCH, where that needs no copy."""
    if not x.is_contiguous(memory_format=torch.channels_last) or x.device.type != "cpu":
        return F.conv2d(x, weight, bias)
    _, channels, height, width = x.shape
    rows = x.permute(0, 2, 3, 1).view(height, 1, width, channels).permute(0, 3, 1, 2)  # [h, C, 1, w]
    out = F.conv2d(rows, weight, bias).permute(0, 2, 3, 1)
    return out.reshape(1, height, width, -1).permute(0, 3, 1, 2)
