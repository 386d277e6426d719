"""`data`: check a folder of training images, and look at what a run would see of it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .common import positive, verbose


def add(commands: Any) -> None:
    """Add the command to the parser's."""
    data = commands.add_parser("data", help="check training images and look at LR/HR pairs")
    data.add_argument("folder", metavar="DIR", help="folder of photographs")
    data.add_argument("--preview", metavar="SHEET", help="write a contact sheet (.png, .jpg, .webp) of LR/HR pairs")
    degradations = "bicubic, mild, mixed:P (bicubic with probability P, else mild), blind, blind:usm"
    data.add_argument("--degradation", default="bicubic", metavar="NAME", help=f"{degradations} (default: bicubic)")
    data.add_argument("--scale", type=positive, default=4, help="between LR and HR (default: 4)")
    data.add_argument("--crop", type=positive, default=256, help="side of an HR crop in pixels (default: 256)")
    data.add_argument("--count", type=positive, default=12, help="pairs on the sheet (default: 12)")
    data.add_argument("--seed", type=int, default=0, help="as in the config of a run: the same pairs (default: 0)")
    data.set_defaults(run=_data)
    verbose(data)


def _data(options: argparse.Namespace) -> int:
    from ..images.files import write_image
    from ..training.data import PhotoCrops
    from ..training.degradation import degradation
    from ..training.photos import Folder
    from ..training.preview import sheet

    degrade = degradation(options.degradation, options.scale)
    crops = PhotoCrops(options.folder, options.crop, options.scale, degrade, options.count, options.seed)
    assert isinstance(crops.photos, Folder)
    if options.preview:
        write_image(Path(options.preview), sheet(crops, options.count))
        pairs = f"{options.count} pairs of {options.degradation} x{options.scale}"
        print(f"{options.preview}: {pairs} from {_summary(crops.photos)}")
    else:
        print(f"{options.folder}: {_summary(crops.photos)}")
    return 0


def _summary(photos: Any) -> str:
    count = len(photos)
    sides = [min(size) for size in photos.sizes]
    return f"{count} image{'s' * (count > 1)}, {photos.pixels / 1e6:.2f} MP, shorter sides {min(sides)} to {max(sides)}"
