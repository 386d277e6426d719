"""A model's file in parts that small channels carry: each a safetensors file by itself, joined again to go on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ..errors import SettingError

#: Folder of a run's parts, and the largest part in bytes.
PARTS, LARGEST = "parts", 15 * 2**20


def split_file(path: Path, folder: Path) -> list[Path]:
    """Write the tensors of a safetensors file as files of at most LARGEST bytes; each has the file's header."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = load_file(path)
    with safe_open(str(path), "pt") as file:
        header = file.metadata() or {}
    groups: list[list[str]] = [[]]
    room = LARGEST - 2**18  # for the header
    for name, value in tensors.items():
        size = value.numel() * value.element_size()
        if size > room and groups[-1]:
            groups.append([])
            room = LARGEST - 2**18
        groups[-1].append(name)
        room -= size
    for old in find_parts(folder):
        old.unlink()
    paths = []
    for i, names in enumerate(groups, 1):
        paths.append(folder / f"{path.stem}-{i}-of-{len(groups)}.safetensors")
        save_file({name: tensors[name] for name in names}, paths[-1], header)
    return paths


def find_parts(folder: Path) -> list[Path]:
    """The parts of a model in a folder, in order; none if there are none."""
    return sorted(folder.glob("*-of-*.safetensors"))


def join_parts(paths: Sequence[Path], target: Path) -> Path:
    """Write the file that the parts are of. Raises SettingError if some are missing."""
    count = int(paths[0].stem.rpartition("-")[2])
    if len(paths) != count:
        raise SettingError(f"{paths[0].parent}: {len(paths)} of {count} parts; copy the others there too")
    with safe_open(str(paths[0]), "pt") as file:
        header = file.metadata() or {}
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value for path in paths for name, value in load_file(path).items()}, target, header)
    return target
