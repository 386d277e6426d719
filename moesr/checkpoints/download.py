"""Published models into the library: looked up before anything is fetched, checked after, there whole or not at all."""

from __future__ import annotations

import inspect
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..errors import CheckpointError, SettingError
from . import library
from .catalogue import CATALOGUE, Entry, HubFile, RemoteFile
from .transfer import TIMEOUT, Progress, check_space, fetch
from .whole import problem

log = logging.getLogger(__name__)

#: Told of every piece: the file's name, its bytes that are here, its bytes in all if known. Raising stops the download.
FileProgress = Callable[[str, int, "int | None"], None]


@dataclass(frozen=True)
class Downloaded:
    """Where a model is, and the names of the files that had to be fetched for it: none if all were there."""

    path: Path
    fetched: tuple[str, ...] = ()


def download(
    name: str,
    *,
    to: str | os.PathLike[str] | None = None,
    agree: Callable[[Entry], bool] | None = None,
    force: bool = False,
    progress: FileProgress | None = None,
    timeout: float = TIMEOUT,
) -> Downloaded:
    """A model of the catalogue is in the library, whole and checked, whatever interrupted earlier downloads of it.

    Nothing is fetched that lies in a folder of the library with the right size and hash. to: the folder to put it in
    instead of `library.download_folder()`. agree: asked before weights with a non-commercial licence are fetched; None
    means no. force: fetch again what is there. Raises CheckpointError for an unknown name, offline, and for all that
    can go wrong on the way; SettingError if the licence is not agreed to.
    """
    entry = CATALOGUE.get(name)
    if entry is None:
        return Downloaded(_known(name))
    root = Path(to).expanduser().absolute() if to is not None else library.download_folder()
    roots = list(dict.fromkeys([root, *library.folders()]))
    if not force and (found := _installed(entry, roots)):
        return Downloaded(found)
    if offline():
        raise CheckpointError(
            f"{name}: not in the library, and MOESR_OFFLINE or HF_HUB_OFFLINE forbids to fetch it; unset it, or "
            f"place the files by hand from {entry.page}"
        )
    if entry.non_commercial and not (agree and agree(entry)):
        raise SettingError(f"{name}: {entry.licence} ({entry.page}); nothing was fetched, --yes agrees to that licence")
    try:
        return _fetch_all(entry, root, [] if force else roots, progress, timeout)
    except OSError as error:
        reason = error.strerror or error
        raise CheckpointError(f"{root}: cannot be written ({reason}); name another folder with --to") from error


def offline() -> bool:
    """Whether MOESR_OFFLINE or HF_HUB_OFFLINE forbids to use the network."""
    values = (os.environ.get(name, "").lower() for name in ("MOESR_OFFLINE", "HF_HUB_OFFLINE"))
    return any(value in ("1", "true", "yes", "on") for value in values)


def _known(name: str) -> Path:
    """A model that is in the library without being in the catalogue."""
    found = library.installed()
    if name in found:
        return found[name]
    hint = library.meant(name, CATALOGUE)
    raise CheckpointError(
        f"{name}: no published model of that name is known{hint}; known are {', '.join(CATALOGUE)}; docs/models.md "
        "says how to place other files by hand"
    )


def _installed(entry: Entry, roots: list[Path]) -> Path | None:
    """The model in the first folder that has all of it, checked."""
    for root in roots:
        places = [root / place for place in entry.places()]
        if all(map(os.path.isfile, places)) and all(map(_is_right, places, entry.files)):
            return places[0] if len(places) == 1 else places[0].parent
    return None


def _is_right(path: Path, file: RemoteFile) -> bool:
    if not os.path.isfile(path):
        return False
    reason = problem(path, file.size, file.sha256)
    if reason:
        log.warning("%s: %s; not used", path, reason)
    return reason is None


def _fetch_all(
    entry: Entry, root: Path, roots: list[Path], progress: FileProgress | None, timeout: float
) -> Downloaded:
    """Gather the files in a hidden folder, so that half a model is never taken for one, and then move them."""
    gathering = root / f".{entry.name}.download"
    gathering.mkdir(parents=True, exist_ok=True)
    targets = [gathering / file.name for file in entry.files]
    missing = [
        (file, target)
        for file, place, target in zip(entry.files, entry.places(), targets)
        if not (roots and _is_right(root / place, file)) and not _is_right(target, file)
    ]
    wanted = [(file, target) for file, target in missing if not _take(file, target, roots)]
    check_space(gathering, sum((file.size or 0) - _length(target) for file, target in wanted))
    for file, target in wanted:
        _fetch(file, target, progress, timeout)
    return Downloaded(_settle(entry, root, gathering), tuple(file.name for file, _ in wanted))


def _settle(entry: Entry, root: Path, gathering: Path) -> Path:
    """Move what was gathered to where the library finds it: in one step if nothing of the model is there yet."""
    shutil.rmtree(gathering / "hub", ignore_errors=True)
    places = [root / place for place in entry.places()]
    model = places[0] if len(places) == 1 else places[0].parent
    if len(places) > 1 and not model.exists():
        gathering.rename(model)
        return model
    for place, file in zip(places, entry.files):
        if (gathering / file.name).exists():
            os.replace(gathering / file.name, place)
    shutil.rmtree(gathering, ignore_errors=True)
    return model


def _length(target: Path) -> int:
    part = target.with_name(target.name + ".part")
    return part.stat().st_size if part.exists() else 0


def _take(file: RemoteFile, target: Path, roots: list[Path]) -> bool:
    """Link or copy the file from where the library has it under another model's name."""
    for path in _elsewhere(file, roots):
        if _is_right(path, file):
            log.info("%s: taken from %s", file.name, path)
            try:
                os.link(os.path.realpath(path), target)
            except OSError:
                partial = target.with_name(target.name + ".part")
                shutil.copyfile(path, partial)
                os.replace(partial, target)
            return True
    return False


def _elsewhere(file: RemoteFile, roots: list[Path]) -> Iterator[Path]:
    """Places where a file of that name is the same file: by its hash, or because it came from the same address."""
    for root in roots:
        for other in CATALOGUE.values():
            same = zip(other.files, other.places())
            yield from (root / place for theirs, place in same if theirs.address == file.address)
        if file.sha256 and os.path.isdir(root):
            yield root / file.name
            yield from sorted(root.glob(f"[!.]*/{file.name}"))


def _fetch(file: RemoteFile, target: Path, progress: FileProgress | None, timeout: float) -> None:
    def report(done: int, total: int | None) -> None:
        if progress:
            progress(file.name, done, total)

    if isinstance(file.address, HubFile) and _through_hub(file.address, target, report):
        if _is_right(target, file):
            return
        target.unlink()
    fetch(file.url, target, size=file.size, sha256=file.sha256, progress=report, timeout=timeout)


def _through_hub(address: HubFile, target: Path, report: Progress) -> bool:
    """Fetch by huggingface_hub, which knows the user's login; False if it is not installed or does not succeed."""
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        return False
    stopped: list[BaseException] = []

    class Bar(tqdm):
        """A silent bar that passes on what it is told."""

        def __init__(self, *_: Any, total: int | None = None, initial: int = 0, **__: Any) -> None:
            super().__init__(disable=True)
            self.done, self.whole = initial, total

        def update(self, n: float | None = 1) -> None:
            self.done += int(n or 0)
            try:
                report(self.done, self.whole)
            except BaseException as error:
                stopped.append(error)
                raise

    options: dict[str, Any] = {"tqdm_class": Bar}
    known = inspect.signature(hf_hub_download).parameters
    try:
        path = hf_hub_download(
            address.repo,
            address.path,
            revision=address.revision,
            local_dir=str(target.parent / "hub"),
            endpoint=os.environ.get("HF_ENDPOINT") or None,
            **{key: value for key, value in options.items() if key in known},
        )
    except Exception as error:  # its errors are of many kinds; the plain way says in one line what is wrong
        if stopped:
            raise stopped[0] from None
        log.info("huggingface_hub: %s; trying without it", " ".join(str(error).split()))
        return False
    if stopped:
        raise stopped[0]
    os.replace(path, target)
    return True
