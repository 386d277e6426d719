"""Losses of all stages (paper, eq. 6, and VQ-GAN)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..evaluation.metrics import block_power, grid_ratios


def focal_frequency_loss(
    prediction: Tensor,
    target: Tensor,
    *,
    alpha: float = 1.0,
    patches: int = 1,
    average_spectrum: bool = False,
    log_weights: bool = False,
    batch_weights: bool = False,
) -> Tensor:
    """Focal frequency loss (Jiang et al., arXiv 2012.12821; the paper's eq. 6 uses it times 10): a scalar.

    mean of w |F(prediction) - F(target)|^2 with an ortho FFT and w = |difference|^alpha, detached and divided by its
    maximum over each image's channel (or over everything, `batch_weights`). `patches` splits each side.
    prediction, target: [B, C, H, W] with H and W multiples of `patches`.
    """
    difference = _spectrum(prediction, patches) - _spectrum(target, patches)  # [B, P, C, h, w] complex
    if average_spectrum:
        difference = difference.mean(dim=0, keepdim=True)
    distance = difference.real.square() + difference.imag.square()
    with torch.no_grad():
        weight = distance.sqrt() ** alpha
        if log_weights:
            weight = torch.log(weight + 1)
        peak = weight.max() if batch_weights else weight.amax(dim=(-2, -1), keepdim=True)
        weight = torch.nan_to_num(weight / peak, nan=0.0).clamp(0, 1)
    return (weight * distance).mean()


def _spectrum(image: Tensor, patches: int) -> Tensor:
    b, c, h, w = image.shape
    split = image.float().view(b, c, patches, h // patches, patches, w // patches)
    return torch.fft.fft2(split.permute(0, 2, 4, 1, 3, 5).flatten(1, 2), norm="ortho")


def grid_loss(image: Tensor) -> Tensor:
    """How much power a batch has at the frequencies of a regular grid, beyond 1.5 times their neighbours': a scalar.

    Mean over the frequencies of log(ratio / 1.5) where that is above 0. The ratios are those of metrics.grid_power,
    averaged over the batch first: smooth images, where a grid shows most, then count like rough ones. image:
    [B, 3, H, W] in [-1, 1], sides at least 64.
    """
    ratios = grid_ratios(block_power((image.float() + 1) / 2)).mean(dim=0)
    return F.relu(torch.log(ratios / 1.5 + 1e-6)).mean()


def crop_randomly(*images: Tensor, most: int = 8) -> list[Tensor]:
    """The images [B, C, H, W] from a random row and column below `most`, the same for all.

    Features of strided networks (LPIPS, the adversary) depend on where their grid lies. With a fixed grid the decoder
    learns a pattern that only those networks like; with a moving one it cannot. Images below 64 pixels stay as they
    are.
    """
    if min(images[0].shape[-2:]) < 64:
        return list(images)
    y, x = torch.randint(most, (2,)).tolist()
    height, width = images[0].shape[-2] - most + 1, images[0].shape[-1] - most + 1
    return [image[..., y : y + height, x : x + width] for image in images]


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss of a discriminator's scores, any shape: a scalar."""
    return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2


def adaptive_weight(
    reconstruction: Tensor, adversarial: Tensor, last: Tensor, average: Callable[[Tensor], Tensor] = lambda mean: mean
) -> Tensor:
    """VQ-GAN's weight: the ratio of the reconstruction's gradient to the adversary's, at the last layer's weight.

    `average` is over the gradients of other processes.
    """
    r = average(torch.autograd.grad(reconstruction, last, retain_graph=True)[0]).norm()
    a = average(torch.autograd.grad(adversarial, last, retain_graph=True)[0]).norm()
    return (r / (a + 1e-4)).clamp(0, 1e4).detach()
