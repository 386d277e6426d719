"""Runs a script of the host in a Python whose torchvision was built for another torch: its operators are declared."""

from __future__ import annotations

import importlib.abc
import runpy
import sys
from typing import Any


class Declare(importlib.abc.MetaPathFinder):
    """Declares the operators that torchvision expects of its own library, as soon as it is imported."""

    library: Any = None

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        if fullname == "torchvision" and self.library is None:
            import torch

            self.library = torch.library.Library("torchvision", "DEF")
            self.library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            self.library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


if __name__ == "__main__":
    sys.meta_path.insert(0, Declare())
    sys.argv = sys.argv[1:]
    sys.path[0] = sys.argv[0].rpartition("/")[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
