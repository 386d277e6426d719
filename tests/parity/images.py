"""Resize and colour fix."""

from __future__ import annotations

import math

import torch

from moesr.images import resize
from moesr.images.colour import Moments, match_moments

from .case import Case


def colour(case: Case) -> None:
    for tag in case.tags(r"(.+)\.content"):
        pairs = zip(case.inputs[f"{tag}.content"], case.inputs[f"{tag}.style"])
        case.compare(f"{tag}.y", torch.stack([match_moments(x, Moments(x), Moments(s)) for x, s in pairs]))


def imresize(case: Case) -> None:
    """MATLAB's bicubic of HW and HWC pictures, to a size or by a number. Keys: image.variant.type."""
    for key, want in case.outputs.items():
        image, _, rest = key.partition(".")
        variant, _, kind = rest.rpartition(".")
        picture = case.inputs[f"{image}.{kind}"]
        planes = picture.reshape(*picture.shape[:2], -1).permute(2, 0, 1)[None]
        if variant.startswith("scale"):
            scale = float(variant.removeprefix("scale"))
            size = math.ceil(scale * picture.shape[0]), math.ceil(scale * picture.shape[1])
            result = resize._resample(planes, size, (scale, scale))
        else:
            result = resize.resize(planes, (want.shape[0], want.shape[1]))
        case.compare(key, result[0].permute(1, 2, 0).reshape(*result.shape[-2:], *picture.shape[2:]))
