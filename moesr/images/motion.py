"""Motion between two frames, and the last result moved along with it: what keeps the detail of a video steady."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .canvas import as_canvas

#: Half the side of the square around a pixel whose motion is taken to be one, in pixels of each pyramid level.
_REACH = 3
#: Smallest side of the coarsest pyramid level in pixels, and steps of the solver per level.
_COARSEST, _STEPS = 12, 4
#: Weight of "no motion" where there is no gradient to tell by, in squared levels of [0, 1].
_STILL = 1e-5
#: Difference of a frame from the last one, moved, at which little of the last result is taken: levels of [0, 1].
_CHANGED = 0.03


class Steadier:
    """Mixes every result with the last one, moved along with the picture: a recursive filter over time.

    share: how much of the last one, 0 to 1, where the picture is the same; where it changed the result stays as it is.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._last: tuple[Tensor, Tensor] | None = None  # frame and result

    def steady(self, frame: Tensor, result: Tensor) -> Tensor:
        """The result [1, 3, H, W] of a frame [1, 3, h, w], both in [0, 1], after mixing. Another size starts anew."""
        if self._last is not None and [x.shape for x in self._last] == [frame.shape, result.shape]:
            last, before = self._last
            motion = estimate_motion(frame.mean(1, keepdim=True), last.mean(1, keepdim=True))
            still, moved = (_blur((frame - x).abs().mean(1, keepdim=True), 2, 1) for x in (last, warp(last, motion)))
            motion = motion * (moved < still)  # what stands still is not resampled
            share = self._share * torch.exp(-(moved.minimum(still) / _CHANGED).square()) * _is_inside(motion)
            size = result.shape[-2:]
            share, motion = (F.interpolate(plane, size, mode="bilinear") for plane in (share, motion))
            scale = torch.tensor([size[1] / frame.shape[-1], size[0] / frame.shape[-2]]).view(1, 2, 1, 1)
            result = result.lerp(warp(before, motion * scale).clamp(0, 1), share)
        self._last = frame, result
        return result

    def steady_image(self, frame: Any, result: Any) -> Any:
        """The same for pictures of any kind that `upscale` takes; it comes back in the kind of the result."""
        source, canvas = as_canvas(frame), as_canvas(result)
        rgb = self.steady(source.rgb.cpu(), canvas.rgb.cpu())[0]
        out = canvas.empty(*rgb.shape[-2:])
        canvas.put(out, 0, 0, rgb, None if canvas.alpha is None else canvas.alpha[0])
        return canvas.restore(out)


def estimate_motion(new: Tensor, old: Tensor) -> Tensor:
    """Where each pixel of `new` was in `old`: [1, 2, H, W], how far to the right and down, in pixels.

    new, old: grey planes [1, 1, H, W] in [0, 1]. Lucas and Kanade (IJCAI 1981) over a pyramid: to about a tenth of a
    pixel where there is texture; none where there is not.
    """
    if min(new.shape[-2:]) < 2 * _COARSEST:
        motion = new.new_zeros(1, 2, *new.shape[-2:])
    else:
        smaller = estimate_motion(*(F.interpolate(x, scale_factor=0.5, mode="bilinear") for x in (new, old)))
        motion = 2 * F.interpolate(smaller, new.shape[-2:], mode="bilinear")
    for _ in range(_STEPS):
        moved = warp(old, motion)
        dx, dy = _compute_gradient((new + moved) / 2)
        error = new - moved
        products = torch.cat([dx * dx, dx * dy, dy * dy, dx * error, dy * error], dim=1)
        xx, xy, yy, xe, ye = _blur(products, _REACH, 2).split(1, 1)
        xx, yy = xx + _STILL, yy + _STILL
        step = torch.cat([yy * xe - xy * ye, xx * ye - xy * xe], dim=1) / (xx * yy - xy * xy)
        motion = motion + step.clamp(-1, 1)
    return motion


def warp(image: Tensor, motion: Tensor) -> Tensor:
    """The image [1, C, H, W] at the places that `motion` [1, 2, H, W], in pixels, points to; bicubic."""
    height, width = image.shape[-2:]
    grid = (_places(motion) + 0.5) * 2 / torch.tensor([width, height]) - 1
    return F.grid_sample(image, grid, mode="bicubic", padding_mode="border", align_corners=False)


def _places(motion: Tensor) -> Tensor:
    """Where `motion` points to, [1, H, W, 2], in pixels from the first one."""
    height, width = motion.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return motion.permute(0, 2, 3, 1) + torch.stack([x, y], dim=-1)


def _is_inside(motion: Tensor) -> Tensor:
    """1 where `motion` points into the picture, else 0: [1, 1, H, W]."""
    places, (height, width) = _places(motion), motion.shape[-2:]
    most = torch.tensor([width - 0.5, height - 0.5])
    return ((places >= -0.5) & (places <= most)).all(-1)[:, None].to(motion)


def _compute_gradient(image: Tensor) -> tuple[Tensor, Tensor]:
    padded = F.pad(image, (1, 1, 1, 1), mode="replicate")
    dx = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    return dx, (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2


def _blur(planes: Tensor, reach: int, times: int) -> Tensor:
    for _ in range(times):  # two boxes are about a Gaussian
        planes = F.avg_pool2d(planes, 2 * reach + 1, 1, reach, count_include_pad=False)
    return planes
