"""Inception v3 as FID uses it (the 2015 network, pools that leave padding out), with the field's key names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Width, kernel (height, width) and stride of a convolution; a fork is two convolutions of the same input.
_Step = tuple[int, tuple[int, int], int]
_Branches = Mapping[str, Sequence[_Step | tuple[_Step, _Step]]]


def _conv(width: int, height: int = 1, wide: int | None = None, stride: int = 1) -> _Step:
    return width, (height, wide or height), stride


def _a() -> _Branches:
    return {
        "branch1x1": [_conv(64)],
        "branch5x5": [_conv(48), _conv(64, 5)],
        "branch3x3dbl": [_conv(64), _conv(96, 3), _conv(96, 3)],
    }


def _b() -> _Branches:
    return {
        "branch3x3": [_conv(384, 3, stride=2)],
        "branch3x3dbl": [_conv(64), _conv(96, 3), _conv(96, 3, stride=2)],
    }


def _c(c: int) -> _Branches:
    return {
        "branch1x1": [_conv(192)],
        "branch7x7": [_conv(c), _conv(c, 1, 7), _conv(192, 7, 1)],
        "branch7x7dbl": [_conv(c), _conv(c, 7, 1), _conv(c, 1, 7), _conv(c, 7, 1), _conv(192, 1, 7)],
    }


def _d() -> _Branches:
    return {
        "branch3x3": [_conv(192), _conv(320, 3, stride=2)],
        "branch7x7x3": [_conv(192), _conv(192, 1, 7), _conv(192, 7, 1), _conv(192, 3, stride=2)],
    }


def _e() -> _Branches:
    fork = (_conv(384, 1, 3), _conv(384, 3, 1))
    return {
        "branch1x1": [_conv(320)],
        "branch3x3": [_conv(384), fork],
        "branch3x3dbl": [_conv(448), _conv(384, 3), fork],
    }


class Inception(nn.Module):
    """Features of images for FID: forward(images [N, 3, H, W] in [0, 1]) -> [N, 2048], images resized to 299 x 299.

    Key names and the bilinear resize are those of pytorch-fid and torch-fidelity, whose files load once the classifier
    is left out. Frozen, in eval mode.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Conv(3, _conv(32, 3, stride=2))
        self.Conv2d_2a_3x3 = _Conv(32, _conv(32, 3), padded=False)
        self.Conv2d_2b_3x3 = _Conv(32, _conv(64, 3))
        self.Conv2d_3b_1x1 = _Conv(64, _conv(80))
        self.Conv2d_4a_3x3 = _Conv(80, _conv(192, 3), padded=False)
        self.Mixed_5b = _Mixed(192, _a(), "mean", 32)
        self.Mixed_5c = _Mixed(256, _a(), "mean", 64)
        self.Mixed_5d = _Mixed(288, _a(), "mean", 64)
        self.Mixed_6a = _Mixed(288, _b(), "halve", 0)
        self.Mixed_6b = _Mixed(768, _c(128), "mean", 192)
        self.Mixed_6c = _Mixed(768, _c(160), "mean", 192)
        self.Mixed_6d = _Mixed(768, _c(160), "mean", 192)
        self.Mixed_6e = _Mixed(768, _c(192), "mean", 192)
        self.Mixed_7a = _Mixed(768, _d(), "halve", 0)
        self.Mixed_7b = _Mixed(1280, _e(), "mean", 192)
        self.Mixed_7c = _Mixed(2048, _e(), "max", 192)  # not "mean" as elsewhere: so is the network of FID
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> Tensor:
        h = F.interpolate(images, size=(299, 299), mode="bilinear", align_corners=False) * 2 - 1
        h = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(h)))
        h = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(h, 3, 2)))
        h = F.max_pool2d(h, 3, 2)
        for name, block in self.named_children():
            if name.startswith("Mixed"):
                h = block(h)
        return h.mean(dim=(2, 3))


class _Conv(nn.Module):
    """Convolution, batch norm, ReLU. Padded to keep the size, unless it has a stride."""

    def __init__(self, channels: int, step: _Step, padded: bool = True) -> None:
        super().__init__()
        width, kernel, stride = step
        padding = (kernel[0] // 2, kernel[1] // 2) if padded and stride == 1 else 0
        self.conv = nn.Conv2d(channels, width, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(width, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class _Mixed(nn.Module):
    """Branches of convolutions side by side, and a pooled one, joined along the channels.

    pool: "mean" or "max" before a convolution of `pool_width`, or "halve", a max pool of stride 2 without one.
    """

    def __init__(self, channels: int, branches: _Branches, pool: str, pool_width: int) -> None:
        super().__init__()
        self.pool = pool
        self.branches: list[list[list[str]]] = []  # names of the convolutions of each step of each branch
        for branch, steps in branches.items():
            width, names = channels, []
            for i, step in enumerate(steps, 1):
                name = branch if len(steps) == 1 else f"{branch}_{i}"
                fork = isinstance(step[0], tuple)
                convolutions = {f"{name}a": step[0], f"{name}b": step[1]} if fork else {name: step}
                for key, convolution in convolutions.items():
                    self.add_module(key, _Conv(width, convolution))  # type: ignore[arg-type]  # the fork is told above
                names.append(list(convolutions))
                width = sum(c[0] for c in convolutions.values())  # type: ignore[misc]  # as above
            self.branches.append(names)
        if pool != "halve":
            self.branch_pool = _Conv(channels, _conv(pool_width))

    def forward(self, x: Tensor) -> Tensor:
        joined = []
        for steps in self.branches:
            h = x
            for names in steps:
                h = torch.cat([self.get_submodule(name)(h) for name in names], dim=1)
            joined.append(h)
        if self.pool == "halve":
            joined.append(F.max_pool2d(x, 3, 2))
        elif self.pool == "max":
            joined.append(self.branch_pool(F.max_pool2d(x, 3, 1, 1)))
        else:
            joined.append(self.branch_pool(F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)))
        return torch.cat(joined, dim=1)
