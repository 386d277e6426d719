"""Results on disk: a folder per job, names that do not clash, a zip of all, and the end of old ones."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import time
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..atomic_files import open_new
from ..input_files import Source
from ..result_files import FORMATS, Target, plan_targets
from .uploads import safe_stem

log = logging.getLogger(__name__)


def new_folder(parent: Path) -> Path:
    """A new folder with a name that cannot be guessed, for its owner only."""
    folder = parent / secrets.token_urlsafe(16)
    folder.mkdir(parents=True, mode=0o700)
    return folder


def plan_results(folder: Path, names: Sequence[str], tag: str = "x4", format: str = "png") -> list[Target]:
    """`<stem>_<tag>.png` in the folder for each picture, by its name; a clash gets -2, -3."""
    sources = [Source(Path(f"{safe_stem(name)}_{tag}{os.path.splitext(name)[1] or '.png'}")) for name in names]
    return list(plan_targets(sources, folder, suffix=FORMATS[format]))


def pack(paths: Sequence[Path], target: Path) -> Path:
    """A zip of the files, flat and without compression (PNGs have theirs); it appears whole or not at all."""
    with open_new(target) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for path in paths:
            archive.write(path, path.name)
    return target


def delete_old(folders: Iterable[Path], older_than: float, room: float, since: float = 0.0) -> None:
    """Delete what lies in the folders and is older than `older_than` seconds, then the oldest beyond `room` bytes.

    What was there before the time `since` is never touched. What cannot be deleted is logged.
    """
    now = time.time()
    entries = sorted((age, entry) for folder in folders for age, entry in _entries(folder) if age >= since)
    sizes = {entry: _size(entry) for _, entry in entries}
    total = sum(sizes.values())
    for age, entry in entries:
        if now - age > older_than or total > room:
            total -= sizes[entry]
            _delete(entry)


def _entries(folder: Path) -> list[tuple[float, Path]]:
    """What lies in a folder, with the time when it came there: copies may keep an older time of writing."""
    try:
        return [(max(p.lstat().st_mtime, p.lstat().st_ctime), p) for p in folder.iterdir()]
    except OSError:  # not there yet, or something in it has just gone: next time, then
        return []


def _size(path: Path) -> int:
    inside = path.rglob("*") if path.is_dir() and not path.is_symlink() else [path]
    try:
        return sum(p.lstat().st_size for p in inside)
    except OSError:
        return 0


def _delete(path: Path) -> None:
    try:
        (shutil.rmtree if path.is_dir() and not path.is_symlink() else os.unlink)(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        log.warning("%s: cannot be deleted (%s)", path, error.strerror or error)
