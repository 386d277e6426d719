"""DISTS (Ding et al., arXiv 2004.07728): structure and texture of deep features. No training loss uses it."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from .lpips import LPIPS

#: Weights of texture (alpha) and structure (beta) of every channel, from DISTS_pytorch 0.1 (MIT, see NOTICE).
WEIGHTS = Path(__file__).parent / "dists.safetensors"
#: Channels of the image itself and of VGG16's five stages.
WIDTHS = (3, 64, 128, 256, 512, 512)
_SMALL = 1e-6


class DISTS(nn.Module):
    """Distance of two batches in [0, 1]: forward(a, b [N, 3, H, W]) -> [N], 0 for equal images.

    weights: a folder with the files of LPIPS's VGG. VGG16's max pools are replaced by blurs of the squared features
    (its equation 3), so that the distance does not change with a shift by a pixel. Raises CheckpointError without them.
    """

    def __init__(self, weights: str | Path | None = None) -> None:
        super().__init__()
        self.features = LPIPS("vgg", weights).features
        tensors = load_file(WEIGHTS)
        total = tensors["alpha"].sum() + tensors["beta"].sum()
        self.alpha: Tensor
        self.beta: Tensor
        self.kernel: Tensor
        self.register_buffer("alpha", tensors["alpha"] / total)
        self.register_buffer("beta", tensors["beta"] / total)
        taps = torch.tensor([0.5, 1.0, 0.5])  # a Hann window of 5 without its zeros
        self.register_buffer("kernel", taps[:, None] * taps / 4)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))
        self.requires_grad_(False).eval()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        similarity = torch.zeros(len(a), device=a.device)
        parts = zip(self._extract_stages(a), self._extract_stages(b), self.alpha.split(WIDTHS), self.beta.split(WIDTHS))
        for x, y, alpha, beta in parts:
            x, y = x.float().flatten(2), y.float().flatten(2)  # [N, C, H W]
            mean_x, mean_y = x.mean(2), y.mean(2)
            var_x, var_y = x.var(2, unbiased=False), y.var(2, unbiased=False)
            covariance = (x * y).mean(2) - mean_x * mean_y
            texture = (2 * mean_x * mean_y + _SMALL) / (mean_x.square() + mean_y.square() + _SMALL)
            structure = (2 * covariance + _SMALL) / (var_x + var_y + _SMALL)
            similarity = similarity + (alpha * texture + beta * structure).sum(1)
        return 1 - similarity

    def _extract_stages(self, image: Tensor) -> list[Tensor]:
        """The image, and the last features of every stage."""
        h, out = (image - self.mean) / self.std, [image]
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                out.append(h)
                h = self._pool(h)
            else:
                h = layer(h)
        return [*out, h]

    def _pool(self, x: Tensor) -> Tensor:
        kernel = self.kernel.expand(x.shape[1], 1, 3, 3)
        return (F.conv2d(x.square(), kernel, stride=2, padding=1, groups=x.shape[1]) + 1e-12).sqrt()
