"""The estimator of `restore`: how degraded an LR image is, from what its pixels look like from near (ours)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: How much fine detail is amplified before the first convolution; noise of few levels would be lost beside the colours.
GAIN = 8.0
#: A window with less detail than that everywhere (three quarters of a grey level) is flat, hence clean.
_FLAT = 0.75 / 127.5
#: Side of the windows that an image is judged by, and how many of them there are along a side at most.
WINDOW, WINDOWS = 64, 4


class RestoreEstimator(nn.Module):
    """About 8,000 parameters: convolutions of fine detail, then logarithms of their mean and spread.

    forward(lr [B, 3, H, W] in [-1, 1]) -> float32 [B], 0 for a clean image to 1 for a heavily degraded one. Of larger
    images up to WINDOWS x WINDOWS evenly spread windows are judged and averaged, which bounds the memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(),
            nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(16, 24, 3, stride=2, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.hidden = nn.Linear(48, 32)
        self.out = nn.Linear(32, 1)

    def forward(self, lr: Tensor) -> Tensor:
        height, width = min(WINDOW, lr.shape[-2]), min(WINDOW, lr.shape[-1])
        places = [
            (y, x) for y in _plan_starts(lr.shape[-2], height) for x in _plan_starts(lr.shape[-1], width)
        ]  # fmt: skip
        windows = torch.cat([lr[..., y : y + height, x : x + width] for y, x in places])  # [places B, 3, h, w]
        detail = GAIN * (windows - F.avg_pool2d(F.pad(windows, (1, 1, 1, 1), mode="replicate"), 3, stride=1))
        features = self.layers(detail).float().flatten(2)
        spread = (features.var(dim=2, unbiased=False) + 1e-5).sqrt()
        pooled = torch.log(torch.cat([features.mean(dim=2), spread], dim=1) + 1e-3).to(self.out.weight.dtype)
        found = torch.sigmoid(self.out(F.relu(self.hidden(pooled))).float())[:, 0]
        flat = detail.float().abs().amax(dim=(1, 2, 3)) < GAIN * _FLAT
        return found.masked_fill(flat, 0.0).view(len(places), len(lr)).mean(dim=0)


def _plan_starts(length: int, window: int) -> list[int]:
    """Where windows begin along a side: evenly spread, at most WINDOWS, as many as lie beside each other."""
    count = max(1, min(WINDOWS, length // window))
    return [round(i * (length - window) / max(1, count - 1)) for i in range(count)]
