"""Which check a case wants, by its name; running it."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from pathlib import Path

from . import decoder, images, resshift, sampling, shifting, swin, training, unet
from .case import Case

CHECKS: dict[str, Callable[[Case], None]] = {
    "case*_unet_*_a_averaged": unet.averaged,
    "case*_unet_*_b_grouped": unet.grouped,
    "case3_schedule_buffers": sampling.buffers,
    "case3_schedule_[0-9]*": sampling.schedule,
    "case3_sampler_*": sampling.sampler,
    "case4_vqmodel_*": decoder.vq_model,
    "case5_affblock_*": decoder.frequency_block,
    "case5_afno_*": decoder.frequency_filter,
    "case5_unetaff*": decoder.frequency_unet,
    "case6_kl_*": decoder.kl_model,
    "case7_ewa_*": training.exchange,
    "case7_litema*": training.ema,
    "case8_adain*": images.colour,
    "case8_imresize*": images.imresize,
    "case9_ffl*": training.frequency_loss,
    "schedule*": resshift.schedule,
    "steps*": resshift.steps,
    "pred_types*": resshift.predictions,
    "vq_*": decoder.vq,
    "swin_block*": swin.block,
    "unet_*": swin.unet,
    "loop_*": shifting.loop,
    "e2e_*": shifting.picture,
    "tiling_starts*": shifting.tile_starts,
    "tiling_*": shifting.tiling,
    "training*": shifting.training,
}

#: Files that cases read; no cases themselves.
DATA = ("*_weights", "schedule_values")


def names(folder: Path) -> list[str]:
    """`subfolder/NAME` of every case in the folder, sorted."""
    files = (path.relative_to(folder).with_suffix("") for path in folder.rglob("*.json"))
    return sorted(f.as_posix() for f in files if not any(fnmatch.fnmatch(f.name, pattern) for pattern in DATA))


def run(folder: Path, name: str) -> None:
    """Raise AssertionError unless the case `name` agrees with what was recorded, or if its kind is unknown."""
    path = folder / name
    checks = [check for pattern, check in CHECKS.items() if fnmatch.fnmatch(path.name, pattern)]
    assert checks, f"{name}: no check is known for a case of this name"
    case = Case(path.parent, path.name)
    checks[0](case)
    case.finish()
