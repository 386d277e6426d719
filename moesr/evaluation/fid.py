"""FID (Heusel et al., arXiv 1706.08500) by torchmetrics: distance of the distributions of two sets of images."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from ..checkpoints.weight_reading import Weights
from ..errors import ImageError, SettingError
from .metric_files import find_weights


class FID:
    """FID between the images that `add` was given and their references; 0 for equal sets, lower is better.

    Each image is one sample, resized as a whole. Small sets give large values (the estimate is biased), so compare only
    values of equally many images. weights: a folder with a file `*inception*.pth`, by default the one that
    MOESR_METRICS names. network: in place of Inception, features [N, d] of images [N, 3, H, W] in [0, 1]. Raises
    SettingError without torchmetrics, CheckpointError for a file that is missing.
    """

    def __init__(
        self, weights: str | Path | None = None, device: str | torch.device = "cpu", network: nn.Module | None = None
    ) -> None:
        found = {} if network else Weights(find_weights(weights, "inception"))
        try:
            from torchmetrics.image.fid import FrechetInceptionDistance

            if network:
                metric = FrechetInceptionDistance(network, normalize=True)
            else:
                with TemporaryDirectory() as folder:  # torch-fidelity 0.4 would run what a pickle asks for
                    path = str(Path(folder) / "inception.pth")
                    torch.save({name: found[name] for name in found}, path)
                    # pytorch-fid resizes without antialiasing
                    metric = FrechetInceptionDistance(
                        normalize=True, antialias=False, feature_extractor_weights_path=path
                    )
        except (ImportError, RuntimeError) as error:  # missing, or a torchvision that does not fit torch
            raise SettingError(
                "FID needs torchmetrics and torch-fidelity: pip install 'moesr[eval]', or 'torchmetrics[image]'"
            ) from error
        self._metric, self._device, self._count = metric.to(device), device, 0

    @torch.inference_mode()
    def add(self, image: Tensor, reference: Tensor) -> None:
        """Take in images [B, 3, H, W] and references of any size, both in [0, 1]."""
        for batch, real in ((image, False), (reference, True)):
            self._metric.update(batch.float().to(self._device), real=real)
        self._count += len(image)

    def value(self) -> float:
        """The distance of what was added. Raises ImageError for fewer than two images."""
        if self._count < 2:
            raise ImageError("FID: needs at least two images")
        return float(self._metric.compute())
