"""TensorBoard while a stage trains: losses, and pictures for the stages that make some."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

log = logging.getLogger(__name__)


class Board:
    """Writes below `folder`/tensorboard; nothing where TensorBoard is not installed, which is said once.

    What an earlier run wrote after step `start` is hidden.
    """

    def __init__(self, folder: Path, start: int) -> None:
        writer = _writer()
        self._writer = None if writer is None else writer(str(folder / "tensorboard"), purge_step=start + 1)

    def numbers(self, values: dict[str, float], step: int) -> None:
        """Scalars by name."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def pictures(self, images: Tensor | None, step: int) -> None:
        """Images [B, 3, H, W] in [-1, 1], one below the other."""
        if self._writer is not None and images is not None:
            rows = F.pad(images.float().cpu(), (0, 0, 0, 4), value=1.0)  # a white line below each
            grid = torch.cat(list(rows), dim=1)  # [3, B (H + 4), W]
            self._writer.add_image("LR, result, HR", ((grid + 1) / 2).clamp(0, 1), step)

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()


def side_by_side(batch: dict[str, Tensor], out: Tensor) -> Tensor:
    """LR images, each pixel a square, results and HR images [B, 3, H, 3 W]."""
    lr = F.interpolate(batch["lr"], size=out.shape[-2:], mode="nearest")
    return torch.cat([lr, out.float().clamp(-1, 1), batch["hr"]], dim=-1)


@cache
def _writer() -> Any:
    """The writer's class, or None."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.warning("TensorBoard is not installed (pip install tensorboard): losses are in log.jsonl alone")
        return None
    return SummaryWriter
