"""NIQE (Mittal, Soundararajan and Bovik, 2013): distance of an image from the statistics of pristine photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import CheckpointError, ImageError
from ..images.resize import resize
from .metric_files import find_weights
from .metrics import luma

_SHAPES = {"mu_pris_param": (1, 36), "cov_pris_param": (36, 36), "gaussian_window": (7, 7)}
_BLOCK = 96
#: Neighbours (rows, columns) whose products with a pixel are looked at.
_SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))


class NIQE:
    """NIQE of images [B, 3, H, W] in [0, 1], as [B] in float64: lower is more natural; about 3 to 5 for photographs.

    As published and as the field reports it: Y rounded to grey levels, blocks of 96 x 96 at full and half size (MATLAB
    bicubic), 18 features of asymmetric generalised Gaussians each. weights: a folder with `niqe_pris_params.npz`, by
    default the one that MOESR_METRICS names. Raises CheckpointError for a file that is missing or damaged, ImageError
    for an image with fewer than two blocks.
    """

    def __init__(self, weights: str | Path | None = None) -> None:
        path = find_weights(weights, "niqe_pris_params.npz")
        try:
            with np.load(path) as file:
                values = {name: torch.from_numpy(file[name].astype(np.float64)) for name in _SHAPES}
        except Exception as error:  # NumPy and zipfile have many ways to say that a file is damaged
            raise CheckpointError(f"{path}: damaged ({type(error).__name__}); get it again") from error
        for name, shape in _SHAPES.items():
            if values[name].shape != shape:
                raise CheckpointError(f"{path}: {name} is {list(values[name].shape)} instead of {list(shape)}")
        self.mean = values["mu_pris_param"][0]
        self.covariance = values["cov_pris_param"]
        self.window = values["gaussian_window"]
        self.shapes = torch.arange(200, 10001, dtype=torch.float64) / 1000  # the gammas that a fit chooses from
        first, second, third = (torch.lgamma(n / self.shapes) for n in (1, 2, 3))
        self.ratios = (2 * second - first - third).exp()

    def __call__(self, image: Tensor) -> Tensor:
        grey = (255 * luma(image.double().cpu()) + 0.5).floor().float()
        return torch.stack([self._distance(plane) for plane in grey[:, 0]])

    def _distance(self, plane: Tensor) -> Tensor:
        """The distance of one plane [H, W] with values 0 to 255: eq. 10 of the paper."""
        rows, columns = (side // _BLOCK for side in plane.shape)
        if rows * columns < 2:
            raise ImageError(
                f"NIQE: {plane.shape[1]} x {plane.shape[0]} pixels are too few, it needs two blocks of 96 x 96"
            )
        plane = plane[: rows * _BLOCK, : columns * _BLOCK]
        half = resize(plane[None, None].double(), (rows * _BLOCK // 2, columns * _BLOCK // 2))[0, 0].float()
        features = torch.cat([self._features(plane, _BLOCK), self._features(half, _BLOCK // 2)], dim=1)  # [blocks, 36]
        whole = features[~features.isnan().any(dim=1)]
        if len(whole) < 2:
            raise ImageError("NIQE: fewer than two blocks of 96 x 96 have any texture")
        difference = self.mean - features.nanmean(dim=0)
        inverse = torch.linalg.pinv((self.covariance + torch.cov(whole.T)) / 2)
        return (difference @ inverse @ difference).sqrt()

    def _features(self, plane: Tensor, side: int) -> Tensor:
        """18 features of each block of side x side: [blocks, 18]. A block without texture has NaN among them.

        The normalisation is in float32, as everywhere: then a flat area is 0, and not what rounding leaves of it, whose
        sign would count.
        """
        mean = self._blur(plane)
        deviation = (self._blur(plane.square()) - mean.square()).abs().sqrt()
        normal = (plane - mean) / (deviation + 1)  # eq. 1
        blocks = normal.double().unfold(0, side, side).unfold(1, side, side).flatten(0, 1)  # [blocks, side, side]
        shape, left, right = self._fit(blocks)
        features = [shape, (left + right) / 2]
        for shift in _SHIFTS:
            shape, left, right = self._fit(blocks * blocks.roll(shift, (1, 2)))
            mean = (right - left) * (torch.lgamma(2 / shape) - torch.lgamma(1 / shape)).exp()  # eq. 8
            features += [shape, mean, left, right]
        return torch.stack(features, dim=1)

    def _blur(self, plane: Tensor) -> Tensor:
        """The Gaussian window's mean of a plane [H, W] with replicated borders; exact where the plane is flat."""
        radius = len(self.window) // 2
        padded = F.pad(plane[None, None], (radius,) * 4, mode="replicate").double()
        return F.conv2d(padded, self.window[None, None])[0, 0].float()

    def _fit(self, blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Shape, left and right scale of the asymmetric generalised Gaussian of each block, by moments: [blocks]."""
        values = blocks.flatten(1)
        left, right = (
            (values.square() * side).sum(dim=1).div(side.sum(dim=1)).sqrt() for side in (values < 0, values > 0)
        )
        balance = left / right
        ratio = values.abs().mean(dim=1).square() / values.square().mean(dim=1)
        ratio = ratio * (balance**3 + 1) * (balance + 1) / (balance.square() + 1).square()
        best = (self.ratios - ratio.nan_to_num(0.0)[:, None]).square().argmin(dim=1)
        shape = self.shapes[best]
        scale = ((torch.lgamma(1 / shape) - torch.lgamma(3 / shape)) / 2).exp()
        return shape, left * scale, right * scale
