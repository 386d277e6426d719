"""What a run writes while it trains: log.jsonl, contact sheets, and TensorBoard's files where it is installed."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..atomic_files import open_new

log = logging.getLogger(__name__)


class Board:
    """Writes below `folder`. Rows of an earlier run after step `start` are removed from the log."""

    def __init__(self, folder: Path, start: int) -> None:
        self.folder = folder
        _cut_log(folder / "log.jsonl", start)
        self._writer = None
        try:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)
        except ImportError:
            log.info("TensorBoard is not installed (pip install tensorboard): losses are in log.jsonl alone")

    def write_row(self, row: dict[str, float], step: int) -> None:
        """Write numbers by name."""
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        if self._writer is not None:
            for name in row.keys() - {"step", "seconds"}:
                self._writer.add_scalar(name, row[name], step)

    def write_sheet(self, images: Tensor, step: int) -> None:
        """Write images [B, 3, H, W] in [-1, 1] as one picture, one below the other."""
        column = ((torch.cat(list(images.float().cpu()), dim=1) + 1) / 2).clamp(0, 1)
        path = self.folder / "sheets" / f"{step:06d}.png"
        path.parent.mkdir(exist_ok=True)
        pixels = (column * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        Image.fromarray(np.ascontiguousarray(pixels)).save(path)
        if self._writer is not None:
            self._writer.add_image("LR, result, HR", column, step)

    def close(self) -> None:
        """Write what TensorBoard has not written yet."""
        if self._writer is not None:
            self._writer.close()


def join_images(batch: dict[str, Tensor], *results: Tensor) -> Tensor:
    """LR images with each pixel as a square, results, and HR images side by side: [B, 3, H, n W]."""
    lr = F.interpolate(batch["lr"], size=batch["hr"].shape[-2:], mode="nearest")
    return torch.cat([lr, *(result.float().clamp(-1, 1) for result in results), batch["hr"]], dim=-1)


def _cut_log(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (json.JSONDecodeError, KeyError):  # cut off in the middle when the run was killed
            continue
    with open_new(path, replaces=True) as file:
        file.write("".join(line + "\n" for line in kept).encode())
