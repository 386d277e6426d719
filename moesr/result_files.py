"""Where results go: targets planned before any work, files that appear whole and never in the place of others."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from .atomic_files import create_part, open_new, remove_abandoned_parts
from .errors import ImageError, SettingError, explain, format_size
from .input_files import Source

#: Names for `--format`, with the suffix that they stand for. `same` is the input's own, where it can be written.
FORMATS = {"png": ".png", "jpg": ".jpg", "webp": ".webp", "tiff": ".tif", "same": ""}
#: Bytes per pixel of a result in 8 bits per sample, about.
_BYTES_PER_PIXEL = {"PNG": 1.5, "JPEG": 0.5, "WEBP": 0.25, "TIFF": 2.0}
#: Bytes that file systems take for a name.
_LONGEST_NAME = 255
#: Suffixes of pictures and films that Pillow does not list, for the refusal of an OUT that looks like one.
_MORE_SUFFIXES = frozenset((
    ".jxl", ".heic", ".heif", ".avif", ".svg", ".psd", ".exr", ".hdr", ".xcf", ".kra", ".ai", ".pdf", ".raw", ".dng",
    ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".mp4", ".m4v", ".mov", ".mkv", ".avi", ".webm", ".wmv",
    ".flv", ".mpg", ".mpeg", ".gifv", ".y4m", ".ogv", ".3gp", ".ts",
))  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A result that is planned."""

    source: Source
    path: Path  # the result
    compare: Path | None = None  # the picture of input, result and difference; None if it was not asked for
    replaces: bool = False  # whether files that are there are replaced


def plan_targets(
    sources: Iterable[Source], output: Path, *, suffix: str = ".png", compare: bool = False,
    folders: Iterable[Path] = (),
) -> Iterator[Target]:  # fmt: skip
    """The target of each source, in order: OUT/<folder>/<stem><suffix>; a clash with an earlier one gets -2, -3.

    Names depend on the sources alone, so that a second run finds the results of the first. They also differ in more
    than case, as some file systems ask. 16 to 32 bytes are kept per source. suffix: "" for the source's own.
    folders: those of all sources, which no result may take the name of.
    """
    taken: set[int] = set()
    for folder in folders:
        for place in (folder, *folder.parents):
            taken.add(_compute_key(output / place))
    clashes: dict[int, int] = {}
    for source in sources:
        ending = suffix or _find_suffix(source.path)
        base = output / source.folder
        first = _compute_key(base / (source.stem + ending))
        count = clashes.get(first, 1)
        while True:
            number = "" if count == 1 else f"-{count}"
            path = base / _fit_name(source.stem, number + ending)
            beside = base / _fit_name(source.stem, f"{number}_compare.png") if compare else None
            keys = [_compute_key(path), *([_compute_key(beside)] if beside else [])]
            if not any(key in taken for key in keys):
                break
            count += 1
        if count > 1:
            clashes[first] = count + 1
        for key in keys:
            taken.add(key)
        yield Target(source, path, beside)


def name_compare(path: Path) -> Path:
    """Where the picture of input, result and difference goes, beside a result."""
    return path.with_name(_fit_name(path.stem, "_compare.png"))


def check_targets(
    targets: Iterable[Target],
    *,
    overwrite: bool = False,
    find_difference: Callable[[Target, Path], str | None] | None = None,
) -> tuple[list[Target], list[Target]]:
    """The targets to make, and those whose results are there already.

    find_difference: says why the file at a path is not the result of a target, None if it is (--skip-existing).
    Raises SettingError, one line, before anything is written: for a file that would be replaced, unless `overwrite`
    allows it; and always if that file is an input of this run or a link to one.
    """
    targets = list(targets)
    todo: list[Target] = []
    finished: list[Target] = []
    conflicts: list[str] = []
    replaced: dict[tuple[int, int], Path] = {}
    for target in targets:
        there = [path for path in (target.path, target.compare) if path is not None and os.path.lexists(path)]
        reasons = {path: find_difference(target, path) if find_difference else "" for path in there}
        if target.path in there and reasons[target.path] is None:
            finished.append(target)
            continue
        for path, reason in reasons.items():
            if path.is_dir():
                conflicts.append(f"{path}: is a folder; give another OUT")
            elif reason is not None and not overwrite:
                conflicts.append(_describe_conflict(path, reason))
            with contextlib.suppress(OSError):  # a link that leads nowhere
                state = path.stat()
                replaced[state.st_dev, state.st_ino] = path
        todo.append(replace(target, replaces=True) if there else target)
    if replaced:
        conflicts = [*_find_replaced_inputs(targets, replaced), *conflicts]
    if conflicts:
        more = f" ({len(conflicts) - 1} more like this)" if len(conflicts) > 1 else ""
        raise SettingError(conflicts[0] + more)
    return todo, finished


def is_picture_name(output: str) -> bool:
    """True if OUT names a picture, False if a folder.

    Raises SettingError if it names a kind of picture or film that cannot be written, or a file as a folder.
    """
    from PIL import Image

    from .images.files import WRITE_SUFFIXES

    path = Path(output)
    suffix = path.suffix.lower()
    if path.is_dir() or output.endswith(("/", os.sep)):
        return False
    if suffix in WRITE_SUFFIXES:
        return True
    if suffix in _MORE_SUFFIXES or suffix in Image.registered_extensions():
        raise SettingError(f"{output}: cannot write {suffix}; use {' '.join(WRITE_SUFFIXES)}, or a folder")
    if path.exists():
        suffixes = " ".join(WRITE_SUFFIXES)
        raise SettingError(f"{output}: a file that is no picture; give a folder, or a name with one of {suffixes}")
    return False


def check_writable(folder: Path) -> None:
    """Raises SettingError if no file can be written to the folder. One that is missing is made, and removed again."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        with explain(SettingError, f"{folder}: cannot be written", "check its permissions, or give another OUT"):
            folder.mkdir(parents=True, exist_ok=True)
            path, file = create_part(folder)
            file.close()
            path.unlink()
    finally:
        for place in missing:
            with contextlib.suppress(OSError):  # was not made, or is in use by now
                place.rmdir()


def check_space(targets: Sequence[Target], output: Path, scale: float) -> None:
    """Raises SettingError if the results need more room than is free where OUT lies, by an estimate of their sizes."""
    sample = targets[:: max(1, len(targets) // 100)]
    sizes = [_estimate_bytes(target, scale) for target in sample]
    needed = sum(sizes) / max(1, len(sizes)) * len(targets)
    place = next((p for p in (output, *output.absolute().parents) if p.is_dir()), Path())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise SettingError(
            f"{output}: {format_size(free)} free, and the results need about {format_size(needed)}; free some, give "
            "another OUT, or choose --format jpg or a smaller --scale"
        )


def clean_folders(targets: Iterable[Target]) -> None:
    """Delete unfinished files of killed runs in the folders of these targets."""
    for folder in {target.path.parent for target in targets}:
        remove_abandoned_parts(folder)


def save_new(path: Path, write: Callable[[BinaryIO], object], *, replaces: bool = False) -> Path:
    """Write a file by open_new; if its name was taken meanwhile, under the next free one with -2, -3. The path."""
    count = 1
    while True:
        suffix = path.suffix
        target = path if count == 1 else path.with_name(_fit_name(path.stem, f"-{count}{suffix}"))
        if count > 1 and os.path.lexists(target):
            count += 1
            continue
        try:
            with open_new(target, replaces=replaces and count == 1) as file:
                write(file)
            return target
        except FileExistsError as error:
            if count > 1000:
                raise ImageError(f"{path}: no free name; give another OUT") from error
            count += 1


def _compute_key(path: Path) -> int:
    """A number that is equal for names that some file system takes for the same; links to folders are followed."""
    name = unicodedata.normalize("NFC", os.path.join(_resolve_folder(path.parent), path.name)).casefold()
    return int.from_bytes(hashlib.blake2b(os.fsencode(name), digest_size=8).digest(), "big")


@lru_cache(maxsize=256)
def _resolve_folder(folder: Path) -> str:
    return os.path.realpath(folder)


def _fit_name(stem: str, ending: str) -> str:
    """A file name of at most 255 bytes: the stem is cut if need be, at a whole character."""
    room = _LONGEST_NAME - len(os.fsencode(ending))
    while len(os.fsencode(stem)) > room:
        stem = stem[:-1]
    return stem + ending


def _find_suffix(path: Path) -> str:
    from .images.files import WRITE_SUFFIXES

    return path.suffix if path.suffix.lower() in WRITE_SUFFIXES else ".png"


def _describe_conflict(path: Path, reason: str) -> str:
    if reason:
        return f"{path}: is there, but {reason}; --overwrite replaces it, or give another OUT"
    ways = "--overwrite replaces it, --skip-existing passes over finished results"
    return f"{path}: is there already; {ways}, or give another OUT"


def _find_replaced_inputs(targets: Iterable[Target], replaced: dict[tuple[int, int], Path]) -> Iterator[str]:
    for source in (target.source for target in targets):
        with contextlib.suppress(OSError):
            state = source.path.stat()
            path = replaced.get((state.st_dev, state.st_ino))
            if path is not None:
                yield f"{path}: is an input of this run ({source.path}), which is never replaced; give another OUT"


def _estimate_bytes(target: Target, scale: float) -> float:
    """About as large as the result will be; 0 if the input's header does not say its size."""
    from PIL import Image

    from .images.files import WRITE_SUFFIXES

    try:
        with Image.open(target.source.path) as image:
            pixels = image.width * image.height * scale * scale
            deep = 2 if image.mode.startswith(("I", "F")) else 1
            channels = {"1": 1, "L": 1, "LA": 2}.get(image.mode, 3)
    except Exception:  # said when it is read
        return 0.0
    return pixels * _BYTES_PER_PIXEL[WRITE_SUFFIXES[target.path.suffix.lower()]] * deep * channels / 3
