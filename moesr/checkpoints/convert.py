"""Many training checkpoints into one file for inference, with one tensor in memory at a time."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..atomic_files import update_digest
from ..errors import CheckpointError, SettingError, explain
from ..library import find
from .detect import FIRST_STAGE
from .header import LICENCE, LICENCE_NOTE, Source, make_header, read_sources
from .model_files import ModelFiles, open_model
from .weight_reading import DTYPES, View
from .weight_writing import Entry, write

#: progress(bytes done, bytes in all, what is being done)
Progress = Callable[[int, int, str], None]


def convert(
    sources: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str], dtype: str = "fp16",
    scale: int | None = None, progress: Progress | None = None, timesteps: int | None = None,
) -> Path:  # fmt: skip
    """Write a model as one safetensors file that `moesr.load` opens, with the weights that it gives for the sources.

    sources: stage files and a decoder, a network of ResShift and its first stage, a folder with them, or a converted
    file. scale, timesteps: as for `moesr.load`. The file has the EMA weights if they are complete, FFN experts averaged
    (arXiv 2310.12004, section 3.2), and no training state; its header has the config, the scale, the sha256 of each
    source, a note on the licence, and whatever had to be assumed. One tensor is in memory at a time. Interrupted at any
    time, it leaves `out` as it was. Raises SettingError for options that do not work, CheckpointError for sources that
    are damaged or no model, for weights that are no numbers or too large for `dtype`, and for a full disk.
    """
    target = Path(out)
    if dtype not in DTYPES:
        raise SettingError(f"dtype {dtype!r} is unknown: choose {', '.join(DTYPES)}")
    if target.suffix.lower() != ".safetensors" or target.is_dir():
        raise SettingError(f"{target}: give the name of a file that ends in .safetensors")
    if not sources:
        raise SettingError("no model to convert: give stage files and a decoder, or a folder with them")
    paths = [find(str(s)) for s in sources]
    files = open_model(paths[0] if len(paths) == 1 else paths, scale, timesteps)
    if target.exists() and any(os.path.samefile(target, p) for p in files.paths):
        raise SettingError(f"{target}: is one of the sources; give another name")
    return _convert(files, target, DTYPES[dtype], progress or (lambda done, total, what: None))


def _convert(files: ModelFiles, target: Path, dtype: torch.dtype, progress: Progress) -> Path:
    entries = [
        _make_entry(prefix + name, view, name, dtype)
        for prefix, view in (*((f"experts.{i}.", e) for i, e in enumerate(files.experts)), (FIRST_STAGE, files.decoder))
        for name in view
    ]
    total = sum(p.stat().st_size for p in files.paths) + sum(e.size for e in entries)
    done = 0

    def advance(size: int, what: str) -> None:
        nonlocal done
        done += size
        progress(done, total, what)

    made_from = read_sources(files.converted) if files.converted else []
    for path, weights in {v.weights.path: v.weights for v in (*files.experts, files.decoder)}.items():
        weights.verify()
        with explain(CheckpointError, f"{path}: cannot be read", "check the file"):
            size = path.stat().st_size
            digest = update_digest(hashlib.sha256(), path, partial(advance, what=f"checking {path.name}"))
        made_from.append(Source(path.name, size, digest))
    name = files.config.name if files.converted else target.stem
    config = replace(files.config, name=name)
    licence = f"{LICENCE_NOTE} {files.licence}".strip()
    licence = files.converted.metadata.get(LICENCE, licence) if files.converted else licence
    header = make_header(config, made_from, licence, files.notes)
    write(target, entries, header, written=lambda entry: advance(entry.size, f"writing {target.name}"))
    return target


def _make_entry(name: str, view: View, key: str, dtype: torch.dtype) -> Entry:
    """The tensor `key` of a view under its name in the new file, read and cast when its turn comes."""
    wanted = dtype if view.dtype(key).is_floating_point else view.dtype(key)

    def read() -> Tensor:
        tensor = view[key]
        cast = tensor.to(wanted)
        if wanted.is_floating_point and not bool(torch.isfinite(cast).all()):
            largest = tensor.double().abs().max().item()
            way_out = "convert with --dtype bf16" if math.isfinite(largest) else "take an earlier state of its training"
            raise CheckpointError(f"{view.weights.path}: {key} goes up to {largest:.3g}; {way_out}")
        return cast

    return Entry(name, view.shape(key), wanted, read)
