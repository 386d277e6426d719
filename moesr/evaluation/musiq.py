"""MUSIQ (Ke et al., arXiv 2108.05997): quality of an image as people rate it, by a transformer over patches."""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoints.weight_reading import Weights
from ..errors import CheckpointError, explain
from .metric_files import find_weights

_PATCH, _GRID, _WIDTH, _HEADS, _LAYERS, _MLP = 32, 10, 384, 6, 14, 1152
#: Longer sides in pixels of the reduced copies that are rated beside the image itself.
_SIDES = (224, 384)


class MUSIQ:
    """MUSIQ of images [B, 3, H, W] in [0, 1], as [B]: higher is better; 0 to 100 with the KonIQ or SPAQ weights.

    Computed as pyiqa does, with its files and key names: weights is a folder with a file `*musiq*.pth`, by default the
    one that MOESR_METRICS names; of several, KonIQ's. Raises CheckpointError for a file that is missing or another
    network's.
    """

    def __init__(self, weights: str | Path | None = None, device: str | torch.device = "cpu") -> None:
        file = Weights(find_weights(weights, "musiq", "koniq"))
        state = {key.removeprefix("params."): file[key] for key in file}
        rating = state.get("head.0.weight")
        self.network, self.device = Network(1 if rating is None else len(rating)).to(device), device
        with explain(CheckpointError, f"{file.path}: not MUSIQ", "give the file of pyiqa", errors=RuntimeError):
            self.network.load_state_dict(state)

    @torch.inference_mode()
    def __call__(self, image: Tensor) -> Tensor:
        return self.network(image.float().to(self.device))


class Network(nn.Module):
    """The multi-scale transformer: forward(images [B, 3, H, W] in [0, 1]) -> [B]. classes: 1, or 10 for AVA's."""

    def __init__(self, classes: int = 1) -> None:
        super().__init__()
        self.conv_root = _StandardConv(3, 64, 7, 2)
        self.gn_root = nn.GroupNorm(32, 64, eps=1e-6)
        self.block1 = _Bottleneck()
        self.embedding = nn.Linear(256 * (_PATCH // 4) ** 2, _WIDTH)
        self.transformer_encoder = _Encoder()
        head = nn.Linear(_WIDTH, classes)
        self.head = head if classes == 1 else nn.Sequential(head, nn.Softmax(dim=-1))
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> Tensor:
        images = 2 * images - 1
        tokens = [self._embed_patches(self._reduce(images, side), scale) for scale, side in enumerate(_SIDES)]
        tokens.append(self._embed_patches(images, len(_SIDES)))
        ratings = self.head(self.transformer_encoder(torch.cat(tokens, dim=1)))  # [B, classes]
        return (ratings * torch.arange(1, ratings.shape[1] + 1, device=ratings.device)).sum(dim=1)

    def _embed_patches(self, images: Tensor, scale: int) -> Tensor:
        """An embedded token for each patch of 32 x 32, borders padded evenly: [B, patches, width]."""
        height, width = images.shape[-2:]
        rows, columns = math.ceil(height / _PATCH), math.ceil(width / _PATCH)
        padded = _pad(images, rows * _PATCH - height, columns * _PATCH - width)
        patches = padded.unfold(2, _PATCH, _PATCH).unfold(3, _PATCH, _PATCH)  # [B, 3, rows, columns, 32, 32]
        patches = patches.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
        h = F.relu(self.gn_root(self.conv_root(patches)))
        h = self.block1(F.max_pool2d(_pad(h, 1, 1), 3, 2))  # [B * patches, 256, 8, 8]
        h = self.embedding(h.permute(0, 2, 3, 1).flatten(1)).view(len(images), rows * columns, -1)
        return h + self.transformer_encoder.embed_places(rows, columns, scale)

    def _reduce(self, images: Tensor, side: int) -> Tensor:
        height, width = images.shape[-2:]
        ratio = side / max(height, width)
        size = (max(1, round(height * ratio)), max(1, round(width * ratio)))
        return F.interpolate(images, size, mode="bicubic", align_corners=False)


class _StandardConv(nn.Conv2d):
    """A convolution without bias whose weights are standardised, padded so that a stride divides the size exactly."""

    def __init__(self, channels: int, width: int, kernel: int, stride: int = 1) -> None:
        super().__init__(channels, width, kernel, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        weight = weight / (weight.std(dim=(1, 2, 3), keepdim=True) + 1e-5)
        extra = self.kernel_size[0] - self.stride[0]
        return F.conv2d(_pad(x, extra, extra), weight, stride=self.stride)


class _Bottleneck(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.gn1 = _StandardConv(64, 64, 1), nn.GroupNorm(32, 64, eps=1e-4)
        self.conv2, self.gn2 = _StandardConv(64, 64, 3), nn.GroupNorm(32, 64, eps=1e-4)
        self.conv3, self.gn3 = _StandardConv(64, 256, 1), nn.GroupNorm(32, 256, eps=1e-4)
        self.conv_proj, self.gn_proj = _StandardConv(64, 256, 1), nn.GroupNorm(32, 256, eps=1e-4)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.gn1(self.conv1(x)))
        h = F.relu(self.gn2(self.conv2(h)))
        return F.relu(self.gn3(self.conv3(h)) + self.gn_proj(self.conv_proj(x)))


class _Encoder(nn.Module):
    """Tokens [B, n, width] -> the class token's features [B, width]."""

    def __init__(self) -> None:
        super().__init__()
        self.posembed_input, self.scaleembed_input = nn.Module(), nn.Module()
        self.posembed_input.position_emb = nn.Parameter(torch.zeros(1, _GRID * _GRID, _WIDTH))
        self.scaleembed_input.scale_emb = nn.Parameter(torch.zeros(len(_SIDES) + 1, _WIDTH))
        self.cls = nn.Parameter(torch.zeros(1, 1, _WIDTH))
        self.transformer = nn.ModuleDict({f"encoderblock_{i}": _Layer() for i in range(_LAYERS)})
        self.encoder_norm = nn.LayerNorm(_WIDTH, eps=1e-6)

    def embed_places(self, rows: int, columns: int, scale: int) -> Tensor:
        """Where tokens come from, [rows * columns, width]: the place on a grid of 10 x 10, and the scale."""
        y, x = (torch.arange(n, device=self.cls.device) * _GRID // n for n in (rows, columns))
        places = self.posembed_input.get_parameter("position_emb")[0][(y[:, None] * _GRID + x).flatten()]
        return places + self.scaleembed_input.get_parameter("scale_emb")[scale]

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], dim=1)
        for layer in self.transformer.values():
            x = layer(x)
        return self.encoder_norm(x[:, 0])


class _Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(_WIDTH, eps=1e-6) for _ in range(2))
        self.attention = nn.ModuleDict({name: nn.Linear(_WIDTH, _WIDTH) for name in ("query", "key", "value", "out")})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(_WIDTH, _MLP), "fc2": nn.Linear(_MLP, _WIDTH)})

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        q, k, v = (self.attention[n](h).unflatten(2, (_HEADS, -1)).transpose(1, 2) for n in ("query", "key", "value"))
        x = x + self.attention["out"](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


def _pad(x: Tensor, rows: int, columns: int) -> Tensor:
    """Zeros on both sides; the odd one at the bottom and right."""
    return F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
