"""LPIPS v0.1 (Zhang et al., arXiv 1801.03924): distance of deep features, as a metric and as a training loss.

Written here rather than taken from the `lpips` package because that one needs torchvision, which has to match torch's
build to the letter. Weights are files with torchvision's and lpips' key names; nothing is downloaded.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from .metric_files import find_weights

#: Widths of VGG16's convolutions; "M" is a 2 x 2 max pool.
_VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512)
_FEATURES = {"alex": "alexnet_features.safetensors", "vgg": "vgg16_features.safetensors"}
#: Indices of the ReLUs whose outputs are compared.
_TAPS = {"alex": (1, 4, 7, 9, 11), "vgg": (3, 8, 15, 22, 29)}


class LPIPS(nn.Module):
    """Perceptual distance of two batches in [-1, 1]: forward(a, b [N, 3, H, W]) -> [N], 0 for equal images.

    net: "alex" or "vgg". weights: a folder with `alexnet_features.safetensors` or `vgg16_features.safetensors`
    (torchvision's convolution features) and `lpips_heads.safetensors` (the linear heads); default is the folder named
    by MOESR_METRICS. All parameters are frozen. Raises CheckpointError when a file is missing.
    """

    def __init__(self, net: str = "alex", weights: str | Path | None = None) -> None:
        super().__init__()
        files = [find_weights(weights, word) for word in (_FEATURES[net], "lpips_heads.safetensors")]
        with torch.device("meta"):  # the network never has random weights, which take time
            self.features = _alexnet() if net == "alex" else _vgg16()
        tensors = load_file(files[0])
        state = {k.removeprefix("features."): v.float() for k, v in tensors.items()}
        self.features.load_state_dict(state, assign=True)
        heads = load_file(files[1])
        self.heads = nn.ParameterList([heads[f"{net}.lin{i}.model.1.weight"].float() for i in range(5)])
        self.taps = _TAPS[net]
        self.shift: Tensor
        self.scale: Tensor
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))
        self.requires_grad_(False).eval()

    def embed(self, image: Tensor) -> list[Tensor]:
        """Unit-length features at the five taps of images [N, 3, H, W] in [-1, 1]."""
        h, out = (image - self.shift) / self.scale, []
        for i, layer in enumerate(self.features):
            h = layer(h)
            if i in self.taps:
                out.append(h / (h.float().square().sum(1, keepdim=True).sqrt() + 1e-10))
        return out

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.distance(self.embed(a), self.embed(b))

    def distance(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        """What forward returns, of images whose features `embed` has computed: [N]."""
        total = torch.zeros(a[0].shape[0], device=a[0].device)
        for x, y, head in zip(a, b, self.heads):
            total = total + F.conv2d((x - y).float().square(), head).mean(dim=(1, 2, 3))
        return total


def _alexnet() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(),
    )  # fmt: skip


def _vgg16() -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 3
    for width in _VGG16:
        if isinstance(width, str):
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
    return nn.Sequential(*layers)
