"""What takes noise, JPEG blocks and blur out of an LR image before a model enlarges it (ours)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import prefers_channels_last

#: Residual blocks at the size of the image, on either side of those at half of it.
_OUTER, _INNER = 2, 5
#: Side in pixels of the squares whose mean colour stays what it was.
_SQUARE = 33
#: Non-local means: pixels around that are compared, those around each that are compared with it, and two noise levels.
_SEARCH, _PATCH, _NOISE_LEVELS = 4, 2, (4 / 127.5, 10 / 127.5)
#: Pixels that a result depends on, in every direction, at most; a multiple of 2.
REACH = 32 + _SEARCH + _PATCH + _SQUARE // 2
#: Side in pixels of the parts in which large images are cleaned, at most.
LARGEST_PART = 384


class _Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(x)))


class LRCleaner(nn.Module):
    """Convolutions at full and half size that predict what is to be added to an LR image.

    They see the image and what non-local means make of it, so that they tell noise from texture by few weights.
    forward(lr [B, 3, H, W] in [-1, 1], restore [B]) -> [B, 3, H, W] in [-1, 1], sides even. restore says how degraded
    the images are; who calls this leaves images of restore 0 as they are. So that colours do not drift, what is added
    loses its mean over the _SQUARE pixels around. A new network changes nothing.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.start = nn.Conv2d(4, channels, 3, padding=1)
        self.smoothed = nn.Conv2d(3 * len(_NOISE_LEVELS), channels, 3, padding=1, bias=False)
        self.before = nn.Sequential(*(_Block(channels) for _ in range(_OUTER)))
        self.down = nn.Conv2d(channels, 2 * channels, 2, stride=2)
        self.inner = nn.Sequential(*(_Block(2 * channels) for _ in range(_INNER)))
        self.up = nn.Conv2d(2 * channels, 4 * channels, 1)
        self.after = nn.Sequential(*(_Block(channels) for _ in range(_OUTER)))
        self.end = nn.Conv2d(channels, 3, 3, padding=1)
        nn.init.zeros_(self.smoothed.weight)
        nn.init.zeros_(self.end.weight)
        self.end.bias = nn.Parameter(torch.zeros(3))

    def forward(self, lr: Tensor, restore: Tensor) -> Tensor:
        level = restore.to(lr).view(-1, 1, 1, 1).expand(-1, 1, *lr.shape[-2:])
        x = torch.cat([lr, level], dim=1)
        if prefers_channels_last(x.device, x.dtype):
            x = x.contiguous(memory_format=torch.channels_last)
        smoothed = average_similar(lr, _NOISE_LEVELS) - lr.repeat(1, len(_NOISE_LEVELS), 1, 1)
        h = self.before(self.start(x) + self.smoothed(smoothed))
        h = h + F.pixel_shuffle(self.up(self.inner(self.down(h))), 2)
        change = self.end(self.after(h))
        mean = F.avg_pool2d(change, _SQUARE, stride=1, padding=_SQUARE // 2, count_include_pad=False)
        return (lr + change - mean).clamp(-1, 1)


@torch.no_grad()
def average_similar(images: Tensor, noise_levels: Sequence[float]) -> Tensor:
    """Non-local means: each pixel of [B, 3, H, W] becomes the mean of those around it whose surroundings look alike.

    noise_levels: standard deviations by which pixels may differ and still look alike. Returns one image per level,
    [B, 3 x levels, H, W].
    """
    height, width = images.shape[-2:]
    x = images.float()
    around = F.pad(x, (_SEARCH,) * 4, mode="replicate")
    totals = [torch.zeros_like(x) for _ in noise_levels]
    weights = [torch.zeros_like(x[:, :1]) for _ in noise_levels]
    for top in range(2 * _SEARCH + 1):
        for left in range(2 * _SEARCH + 1):
            other = around[..., top : top + height, left : left + width]
            distance = (x - other).square().mean(dim=1, keepdim=True)
            distance = F.avg_pool2d(distance, 2 * _PATCH + 1, stride=1, padding=_PATCH, count_include_pad=False)
            for noise, total, sum_of_weights in zip(noise_levels, totals, weights):
                weight = torch.exp(1.0 - (distance / noise**2).clamp(min=2.0) / 2.0)
                total.addcmul_(weight, other)
                sum_of_weights.add_(weight)
    return torch.cat([total / sum_of_weights for total, sum_of_weights in zip(totals, weights)], dim=1).to(images)


def clean_in_parts(
    cleaner: LRCleaner, lr: Tensor, restore: Tensor, *, side: int = LARGEST_PART, wrap: bool = False,
    check: Callable[[], object] = lambda: None,
) -> Tensor:  # fmt: skip
    """cleaner(lr, restore) of images [B, 3, H, W] of any size, in parts that overlap: the result is that of the whole.

    side: of a part in pixels, at most. wrap: borders are continued by those opposite, not by their last pixels. check
    is called before each part, and may end this by an exception.
    """
    height, width = lr.shape[-2:]
    edge = min(REACH, height, width) if wrap else 0
    whole = F.pad(lr, (edge,) * 4, mode="circular") if edge else lr
    rest = REACH - edge
    whole = F.pad(whole, (rest, rest + width % 2, rest, rest + height % 2), mode="replicate")
    out = torch.empty_like(lr)
    side = max(2, min(side, LARGEST_PART) // 2 * 2)
    for y in range(0, height, side):
        for x in range(0, width, side):
            check()
            part = cleaner(whole[..., y : y + side + 2 * REACH, x : x + side + 2 * REACH], restore)
            target = out[..., y : y + side, x : x + side]
            target.copy_(part[..., REACH : REACH + target.shape[-2], REACH : REACH + target.shape[-1]])
    return out
