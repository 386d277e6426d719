"""All metrics at once: those whose weights are there, by name, in the order of their columns."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import ImageError, MoESRError
from .dists import DISTS
from .fid import FID
from .lpips import LPIPS
from .metrics import grid_power, lr_psnr, psnr_y, ssim_y
from .musiq import MUSIQ
from .niqe import NIQE

#: (result, reference, LR) -> one value per image. Results and references [1, 3, H, W] in [0, 1].
Measure = Callable[[Tensor, Tensor, Tensor], Tensor]
_SMALLEST = 32  # AlexNet's pools leave nothing of smaller images


@dataclass(frozen=True)
class Column:
    """How a metric is printed."""

    #: Its name in JSON, and in tables.
    key: str
    title: str
    #: Decimals.
    digits: int
    #: "higher" or "lower".
    better: str
    #: What it is computed on.
    about: str


COLUMNS = (
    Column("psnr_y", "PSNR-Y", 2, "higher", "dB, on Y, border of 4 pixels cut"),
    Column("ssim_y", "SSIM-Y", 4, "higher", "on Y, border of 4 pixels cut"),
    Column("lpips_alex", "LPIPS-alex", 4, "lower", "v0.1, whole image"),
    Column("lpips_vgg", "LPIPS-vgg", 4, "lower", "v0.1, whole image"),
    Column("dists", "DISTS", 4, "lower", "structure and texture, whole image; never a training loss"),
    Column("niqe", "NIQE", 2, "lower", "without a reference, whole image"),
    Column("musiq", "MUSIQ", 2, "higher", "without a reference, whole image"),
    Column("lr_psnr", "LR-PSNR", 2, "higher", "dB, RGB of the result, reduced by MATLAB's bicubic, against the LR"),
    Column("grid", "grid", 2, "lower", "power at multiples of 1/8 cycle per pixel against its neighbours; 3 is a grid"),
    Column("fid", "FID", 2, "lower", "of all images together"),
)


def columns_of(keys: Collection[str]) -> list[Column]:
    """The columns of these metrics, in order."""
    return [column for column in COLUMNS if column.key in keys]


class Suite:
    """The metrics whose weights are in a folder, and those that need none.

    weights: a folder, by default the one that MOESR_METRICS names. `left_out` has a line for each metric that cannot be
    measured, `keys` the names of the others, in order. FID is among them, but measures the whole set: see `score_set`.
    """

    def __init__(self, weights: str | Path | None = None, device: str | torch.device = "cpu") -> None:
        self.left_out: list[str] = []
        self._device = device
        self._measures: dict[str, Measure] = {
            "psnr_y": lambda sr, hr, lr: psnr_y(sr, hr),
            "ssim_y": lambda sr, hr, lr: ssim_y(sr, hr),
            "lr_psnr": lambda sr, hr, lr: lr_psnr(sr, lr),
            "grid": lambda sr, hr, lr: grid_power(sr),
        }
        self._fid: FID | None = None
        for net in ("alex", "vgg"):
            self._try(f"LPIPS-{net}", lambda net=net: self._add_network(f"lpips_{net}", LPIPS(net, weights), 2, -1))
        self._try("DISTS", lambda: self._add_network("dists", DISTS(weights), 1, 0))
        for key, metric in (("niqe", NIQE), ("musiq", lambda weights: MUSIQ(weights, device))):
            self._try(key.upper(), lambda key=key, metric=metric: self._add_blind(key, metric(weights)))
        self._try("FID", lambda: setattr(self, "_fid", FID(weights, device)))
        there = {*self._measures, *(["fid"] if self._fid else [])}
        self.keys = [c.key for c in columns_of(there)]

    @torch.inference_mode()
    def score(self, result: Tensor, reference: Tensor, lr: Tensor) -> tuple[dict[str, float | None], list[str]]:
        """Every metric of one result, and a line for each that this image does not allow (its value is None).

        result, reference: [1, 3, H, W], lr: [1, 3, h, w], all in [0, 1]. Raises ImageError for unequal sizes.
        """
        if result.shape != reference.shape:
            raise ImageError(f"result {list(result.shape)} and reference {list(reference.shape)} differ in size")
        values: dict[str, float | None] = {}
        notes = []
        for key in self.keys:
            try:
                if key != "fid":
                    values[key] = float(self._measures[key](result, reference, lr))
            except ImageError as error:
                values[key] = None
                notes.append(str(error))
        if self._fid is not None:
            self._fid.add(result, reference)
        return values, notes

    def score_set(self) -> dict[str, float | None]:
        if self._fid is None:
            return {}
        try:
            return {"fid": self._fid.value()}
        except ImageError:
            return {"fid": None}

    def _add_network(self, key: str, network: nn.Module, factor: int, offset: int) -> None:
        """Add a distance of deep features. It is given images in [0, 1] times `factor` plus `offset`."""
        network = network.to(self._device)

        def measure(sr: Tensor, hr: Tensor, lr: Tensor) -> Tensor:
            if min(sr.shape[-2:]) < _SMALLEST:
                raise ImageError(f"{key.replace('_', '-')}: needs {_SMALLEST} x {_SMALLEST} pixels")
            return network(*((factor * x.float() + offset).to(self._device) for x in (sr, hr)))

        self._measures[key] = measure

    def _add_blind(self, key: str, metric: Callable[[Tensor], Tensor]) -> None:
        self._measures[key] = lambda sr, hr, lr: metric(sr)

    def _try(self, title: str, add: Callable[[], None]) -> None:
        try:
            add()
        except MoESRError as error:
            self.left_out.append(f"{title} is left out: {error}")
        except Exception as error:  # a damaged file of one metric must not take the others with it
            reason = " ".join(str(error).split())[:200]
            self.left_out.append(f"{title} is left out: its weights cannot be used ({type(error).__name__}: {reason})")
