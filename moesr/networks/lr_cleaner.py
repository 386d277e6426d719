"""What takes noise, JPEG blocks and blur out of an LR image before a model enlarges it (ours)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import prefers_channels_last

#: Residual blocks at the size of the image, on either side of those at half of it.
_OUTER, _INNER = 2, 5
#: Pixels that a result depends on, in every direction, at most; a multiple of 2.
REACH = 32
#: Side of the parts in which large images are cleaned.
_PART = 384


class _Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(x)))


class LRCleaner(nn.Module):
    """Convolutions at full and half size that predict what is to be added to an LR image.

    forward(lr [B, 3, H, W] in [-1, 1], restore [B]) -> [B, 3, H, W] in [-1, 1], sides even. restore says how degraded
    the images are; who calls this leaves images of restore 0 as they are. A new network changes nothing.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.start = nn.Conv2d(4, channels, 3, padding=1)
        self.before = nn.Sequential(*(_Block(channels) for _ in range(_OUTER)))
        self.down = nn.Conv2d(channels, 2 * channels, 2, stride=2)
        self.inner = nn.Sequential(*(_Block(2 * channels) for _ in range(_INNER)))
        self.up = nn.Conv2d(2 * channels, 4 * channels, 1)
        self.after = nn.Sequential(*(_Block(channels) for _ in range(_OUTER)))
        self.end = nn.Conv2d(channels, 3, 3, padding=1)
        nn.init.zeros_(self.end.weight)
        self.end.bias = nn.Parameter(torch.zeros(3))

    def forward(self, lr: Tensor, restore: Tensor) -> Tensor:
        level = restore.to(lr).view(-1, 1, 1, 1).expand(-1, 1, *lr.shape[-2:])
        x = torch.cat([lr, level], dim=1)
        if prefers_channels_last(x.device, x.dtype):
            x = x.contiguous(memory_format=torch.channels_last)
        h = self.before(self.start(x))
        h = h + F.pixel_shuffle(self.up(self.inner(self.down(h))), 2)
        return (lr + self.end(self.after(h))).clamp(-1, 1)


def clean_in_parts(cleaner: LRCleaner, lr: Tensor, restore: Tensor, wrap: bool = False) -> Tensor:
    """cleaner(lr, restore) of images [B, 3, H, W] of any size, in parts that overlap: the result is that of the whole.

    wrap: the images continue at their opposite borders. Otherwise odd sides are continued by their last pixels.
    """
    height, width = lr.shape[-2:]
    edge = min(REACH, height // 2 * 2, width // 2 * 2) if wrap else 0
    whole = F.pad(lr, (edge,) * 4, mode="circular") if edge else lr
    whole = F.pad(whole, (0, width % 2, 0, height % 2), mode="replicate")
    out = torch.empty_like(lr)
    for top in range(edge, height + edge, _PART):
        for left in range(edge, width + edge, _PART):
            y, x = max(0, top - REACH), max(0, left - REACH)
            part = cleaner(whole[..., y : top + _PART + REACH, x : left + _PART + REACH], restore)
            target = out[..., top - edge : top - edge + _PART, left - edge : left - edge + _PART]
            target.copy_(part[..., top - y :, left - x :][..., : target.shape[-2], : target.shape[-1]])
    return out
