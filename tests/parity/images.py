"""Resize and colour fix."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from moesr.images import resize
from moesr.images.colour import adain

from .case import Case


def colour(case: Case) -> None:
    for tag in case.tags(r"(.+)\.content"):
        case.compare(f"{tag}.y", adain(case.inputs[f"{tag}.content"], case.inputs[f"{tag}.style"]))


def imresize(case: Case) -> None:
    """MATLAB's bicubic of HW and HWC pictures, to a size or by a number. Keys: image.variant.type."""
    for key, want in case.outputs.items():
        image, _, rest = key.partition(".")
        variant, _, kind = rest.rpartition(".")
        picture = case.inputs[f"{image}.{kind}"]
        if variant.startswith("scale"):
            case.compare(key, _by_number(picture, float(variant.removeprefix("scale"))))
        else:
            size = want.shape[0], want.shape[1]
            case.compare(key, _to_size(picture, size))


def _to_size(picture: Tensor, size: tuple[int, int]) -> Tensor:
    if picture.dtype == torch.uint8:
        return torch.from_numpy(resize.resize_uint8(picture.numpy(), size))
    return _picture(resize.resize(_planes(picture), size), picture)


def _by_number(picture: Tensor, scale: float) -> Tensor:
    if picture.dtype == torch.uint8:
        return torch.from_numpy(resize.rescale_uint8(picture.numpy(), scale))
    size = math.ceil(scale * picture.shape[0]), math.ceil(scale * picture.shape[1])
    return _picture(resize._resample(_planes(picture), size, (scale, scale)), picture)


def _planes(picture: Tensor) -> Tensor:
    return picture.reshape(*picture.shape[:2], -1).permute(2, 0, 1)[None]


def _picture(planes: Tensor, like: Tensor) -> Tensor:
    return planes[0].permute(1, 2, 0).reshape(*planes.shape[-2:], *like.shape[2:])
