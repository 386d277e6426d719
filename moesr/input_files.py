"""Which pictures a run is given: names as typed, patterns, folders, standard input; and what is passed over."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .errors import SettingError

#: The name that stands for standard input and standard output.
STREAM = "-"


@dataclass(frozen=True)
class Source:
    """An input picture."""

    path: Path  # the file; Path("-") is standard input
    folder: Path = Path()  # where its result goes, below OUT

    @property
    def stem(self) -> str:
        """The name of its result, without suffix."""
        return "stdin" if self.is_stream else self.path.stem

    @property
    def is_stream(self) -> bool:
        return str(self.path) == STREAM


@dataclass
class PassedOver:
    """What lies in the folders of a run and is not read."""

    kinds: Counter[str] = field(default_factory=Counter)  # files of other kinds, by suffix in lower case
    folders: int = 0  # folders that were not looked into, as the run is not recursive
    links: int = 0  # links to folders; they are never followed, as they may lead in circles
    outputs: int = 0  # pictures in OUT, where OUT lies inside an input folder
    results: int = 0  # results of earlier runs beside the inputs
    unreadable: list[str] = field(default_factory=list)  # a line for each folder that cannot be listed

    def describe(self) -> str:
        """One line that names everything, empty if nothing was passed over."""
        kinds = [f"{count} {suffix or 'without suffix'}" for suffix, count in self.kinds.most_common(8)]
        others = sum(self.kinds.values()) - sum(count for _, count in self.kinds.most_common(8))
        counts = (
            (self.links, "link", "to folders"), (self.outputs, "picture", "in OUT"),
            (self.results, "result", "of earlier runs"),
            (self.folders, "folder", "(--recursive reads what is in there)"),
        )  # fmt: skip
        parts = [*kinds, *([f"{others} of other kinds"] if others else [])]
        parts += [f"{count} {noun}{'s' * (count > 1)} {where}" for count, noun, where in counts if count]
        return f"passed over: {', '.join(parts)}" if parts else ""


def find_sources(
    names: Sequence[str], output: Path | None, *, recursive: bool, passed_over: PassedOver
) -> tuple[list[Source], list[str]]:
    """The pictures that the names of files, folders and patterns stand for, and the names that stand for nothing.

    Order: as given; within a folder by name, frame9 before frame10. A pattern counts only where no file has that very
    name, for shells that leave `*.png` as it is. `output`: the folder of the results, None if there is none. Raises
    SettingError for standard input twice.
    """
    sources: list[Source] = []
    missing: list[str] = []
    for name in names:
        for path in _expand_pattern(name):
            if name == STREAM:
                sources.append(Source(path))
            elif path.is_dir():
                sources += list_folder(path, output, recursive=recursive, passed_over=passed_over)
            elif path.exists():
                sources.append(Source(path))
            else:
                missing.append(name)
    if sum(source.is_stream for source in sources) > 1:
        raise SettingError("-: standard input is one picture; name it once")
    return sources, missing


def list_folder(folder: Path, output: Path | None, *, recursive: bool, passed_over: PassedOver) -> Iterator[Source]:
    """The pictures of a folder by name, with the structure below it; one folder's names are in memory at a time.

    Hidden files and folders are passed over without a word, everything else is counted in `passed_over`. A run never
    reads its own results: OUT inside `folder` is left out; where OUT is `folder` or lies above it, files are left out
    that say that they are results.
    """
    from .images.files import READ_SUFFIXES
    from .settings_record import read_record

    real_output = os.path.realpath(output) if output is not None else None
    has_results = real_output is not None and _is_below(os.path.realpath(folder), real_output)

    def note(error: OSError) -> None:
        passed_over.unreadable.append(f"{error.filename}: cannot be listed ({error.strerror}); check its permissions")

    for place, folders, files in os.walk(folder, onerror=note):
        here = Path(place)
        inside = sorted(name for name in folders if not name.startswith("."))
        folders[:] = [] if not recursive else [name for name in inside if not (here / name).is_symlink()]
        passed_over.links += len(inside) - len(folders) if recursive else 0
        passed_over.folders += 0 if recursive else len(inside)
        in_output = not has_results and real_output is not None and _is_below(os.path.realpath(here), real_output)
        for name in sorted(files, key=_split_numbers):
            path = here / name
            suffix = path.suffix.lower()
            if name.startswith("."):
                continue
            if suffix not in READ_SUFFIXES or not path.is_file():
                passed_over.kinds[suffix] += 1
            elif in_output:
                passed_over.outputs += 1
            elif has_results and read_record(path) is not None:
                passed_over.results += 1
            else:
                yield Source(path, here.relative_to(folder))


def _expand_pattern(name: str) -> list[Path]:
    if not os.path.lexists(name) and glob.has_magic(name):
        return [Path(found) for found in sorted(glob.glob(name, recursive=True), key=_split_numbers)] or [Path(name)]
    return [Path(name)]


def _split_numbers(name: str) -> tuple[list[str | int], str]:
    """What to sort names by: text and numbers in turn, so that 9 is before 10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)], name


def _is_below(path: str, folder: str) -> bool:
    return Path(path).is_relative_to(folder)
