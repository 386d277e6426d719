"""FID (Heusel et al., arXiv 1706.08500): distance of the distributions of two sets of images."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..checkpoints.reading import Weights
from ..errors import CheckpointError, ImageError
from .files import fill, find, metrics_folder
from .inception import Inception

_CLASSES = 1008  # of the network that FID was defined with; torchvision's own Inception has 1000


class FID:
    """FID between the images that `add` was given and their references; 0 for equal sets, lower is better.

    Each image is one sample, resized as a whole. Small sets give large values (the estimate is biased), so compare only
    values of equally many images. weights: a folder with a file `*inception*.pth`, by default the one that
    MOESR_METRICS names. Raises CheckpointError for a file that is missing or of another network.
    """

    def __init__(self, weights: str | Path | None = None, device: str | torch.device = "cpu") -> None:
        self.network = load_inception(find(metrics_folder(weights), "inception")).to(device)
        self.device = device
        self._features: tuple[list[Tensor], list[Tensor]] = ([], [])

    @torch.inference_mode()
    def add(self, image: Tensor, reference: Tensor) -> None:
        """Take in images [B, 3, H, W] and references of any size, both in [0, 1]."""
        for batch, features in zip((image, reference), self._features):
            features.append(self.network(batch.float().to(self.device)).double().cpu())

    def value(self) -> float:
        """The distance of what was added. Raises ImageError for fewer than two images."""
        images, references = (torch.cat(f) if f else torch.zeros(0, 1) for f in self._features)
        return float(frechet_distance(images, references))


def frechet_distance(a: Tensor, b: Tensor) -> Tensor:
    """Fréchet distance of the Gaussians fitted to samples [n, d] and [m, d], float64: a scalar.

    |mean_a - mean_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)). With S = X^T X, X the centred samples over sqrt(n - 1), the
    last trace is the sum of the singular values of X_a X_b^T: exact, and no larger than the number of samples.
    Raises ImageError for fewer than two samples on a side.
    """
    if min(len(a), len(b)) < 2:
        raise ImageError("FID: needs at least two images")
    x, y = ((s - s.mean(dim=0)) / (len(s) - 1) ** 0.5 for s in (a, b))
    shift = (a.mean(dim=0) - b.mean(dim=0)).square().sum()
    return shift + x.square().sum() + y.square().sum() - 2 * torch.linalg.svdvals(x @ y.T).sum()


def load_inception(path: Path) -> Inception:
    """FID's network with the weights of a file. Raises CheckpointError, one line, for any other network's."""
    weights = Weights(path)
    classes = weights.shapes().get("fc.weight", (_CLASSES,))[0]
    if classes != _CLASSES:
        raise CheckpointError(f"{path}: an Inception of {classes} classes, not the one of FID (docs/metrics.md)")
    network = Inception()
    fill(network, weights, "the Inception of FID")
    return network
