"""Published models into the library: looked up before anything is fetched, checked after, there whole or not at all."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ..atomic_files import check_room, update_digest
from ..checkpoints.weight_reading import Weights
from ..errors import CheckpointError, SettingError, explain, find_reason
from . import model_folders as library
from .catalogue import CATALOGUE, Entry, HubFile, RemoteFile

log = logging.getLogger(__name__)

#: progress(file name, bytes that are here, bytes in all or None). Raising stops the download.
Progress = Callable[[str, int, "int | None"], None]

#: Seconds without a new byte after which a download is given up.
TIMEOUT = 60.0
#: Seconds between two looks at a download.
_PAUSE = 0.2
BY_HAND = "place the file by hand as docs/models.md says"

#: Run in a process of its own, which can be ended at any time: neither library can be cancelled, or notices a server
#: that falls silent.
_CHILD = """
import json, sys
job = json.loads(sys.argv[1])
try:
    if job["repo"]:
        from huggingface_hub import hf_hub_download
        hf_hub_download(job["repo"], job["path"], revision=job["revision"], local_dir=job["folder"])
    else:
        from torch.hub import download_url_to_file
        download_url_to_file(job["url"], job["target"], job["sha256"], progress=False)
except Exception as error:
    sys.exit(" ".join(str(error).split())[:300] or type(error).__name__)
"""


@dataclass(frozen=True)
class Downloaded:
    """Where a model is, and the names of the files that had to be fetched for it: none if all were there."""

    path: Path
    fetched: tuple[str, ...] = ()


def download(
    name: str, *, to: str | os.PathLike[str] | None = None, agree: Callable[[Entry], bool] | None = None,
    force: bool = False, progress: Progress | None = None,
) -> Downloaded:  # fmt: skip
    """A model of the catalogue is in the library, whole and checked, whatever interrupted earlier downloads of it.

    Nothing is fetched that lies in a folder of the library with the right size and hash. to: the folder to put it in
    instead of `library.download_folder()`. agree: asked before weights with a non-commercial licence are fetched; None
    means no. force: fetch again what is there. Raises CheckpointError for an unknown name, offline, and for all that
    can go wrong on the way; SettingError if the licence is not agreed to.
    """
    entry = CATALOGUE.get(name)
    if entry is None:
        return Downloaded(_find_known(name))
    root = Path(to).expanduser().absolute() if to is not None else library.download_folder()
    roots = list(dict.fromkeys([root, *library.folders()]))
    if not force and (found := _find_installed(entry, roots)):
        return Downloaded(found)
    if offline():
        raise CheckpointError(
            f"{name}: not in the library, and MOESR_OFFLINE or HF_HUB_OFFLINE forbids to fetch it; unset it, or "
            f"place the files by hand from {entry.page}"
        )
    if entry.non_commercial and not (agree and agree(entry)):
        raise SettingError(f"{name}: {entry.licence} ({entry.page}); nothing was fetched, --yes agrees to that licence")
    with explain(CheckpointError, f"{root}: cannot be written", "name another folder with --to"):
        return _fetch_all(entry, root, [] if force else roots, progress)


def offline() -> bool:
    """Whether MOESR_OFFLINE or HF_HUB_OFFLINE forbids to use the network."""
    values = (os.environ.get(name, "").lower() for name in ("MOESR_OFFLINE", "HF_HUB_OFFLINE"))
    return any(value in ("1", "true", "yes", "on") for value in values)


def _find_known(name: str) -> Path:
    """A model that is in the library without being in the catalogue."""
    found = library.installed()
    if name in found:
        return found[name]
    hint = library.suggest(name, CATALOGUE)
    raise CheckpointError(
        f"{name}: no published model of that name is known{hint}; known are {', '.join(CATALOGUE)}; docs/models.md "
        "says how to place other files by hand"
    )


def _find_installed(entry: Entry, roots: list[Path]) -> Path | None:
    """The model in the first folder that has all of it, checked."""
    for root in roots:
        places = [root / place for place in entry.places()]
        if all(map(os.path.isfile, places)) and all(map(_is_right, places, entry.files)):
            return places[0] if len(places) == 1 else places[0].parent
    return None


def _is_right(path: Path, file: RemoteFile) -> bool:
    if not os.path.isfile(path):
        return False
    reason = find_problem(path, file)
    if reason:
        log.warning("%s: %s; not used", path, reason)
    return reason is None


def _fetch_all(entry: Entry, root: Path, roots: list[Path], progress: Progress | None) -> Downloaded:
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
    check_room(root, sum(file.size or 0 for file, _ in wanted), "make room or name another folder")
    for file, target in wanted:
        _fetch(file, target, progress)
    return Downloaded(_settle(entry, root, gathering), tuple(file.name for file, _ in wanted))


def _settle(entry: Entry, root: Path, gathering: Path) -> Path:
    """Move what was gathered to where the library finds it: in one step if nothing of the model is there yet."""
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


def _take(file: RemoteFile, target: Path, roots: list[Path]) -> bool:
    """Link or copy the file from where the library has it under another model's name."""
    for path in _list_places(file, roots):
        if _is_right(path, file):
            log.info("%s: taken from %s", file.name, path)
            try:
                os.link(os.path.realpath(path), target)
            except OSError:
                shutil.copyfile(path, target)  # checked again before it is used
            return True
    return False


def _list_places(file: RemoteFile, roots: list[Path]) -> Iterator[Path]:
    """Places where a file of that name is the same file: by its hash, or because it came from the same address."""
    for root in roots:
        for other in CATALOGUE.values():
            same = zip(other.files, other.places())
            yield from (root / place for theirs, place in same if theirs.address == file.address)
        if file.sha256 and os.path.isdir(root):
            yield root / file.name
            yield from sorted(root.glob(f"[!.]*/{file.name}"))


def _fetch(file: RemoteFile, target: Path, progress: Progress | None, timeout: float = TIMEOUT) -> None:
    """Fetch one file to `target`, which appears whole and checked. Raises CheckpointError, one line."""
    hub = file.address if isinstance(file.address, HubFile) else None
    if hub and find_spec("huggingface_hub") is None:
        raise CheckpointError(f"{file.url}: needs huggingface_hub; pip install huggingface_hub, or {BY_HAND}")
    folder = target.with_name(f"{target.name}.fetching")
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    folder.mkdir()
    arrived = folder / (hub.path if hub else file.name)
    job = {
        "repo": hub and hub.repo, "path": hub and hub.path, "revision": hub and hub.revision, "folder": str(folder),
        "url": file.url, "target": str(arrived), "sha256": file.sha256,
    }  # fmt: skip
    try:
        child = subprocess.Popen(
            [sys.executable, "-c", _CHILD, json.dumps(job)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace",
        )  # fmt: skip
        try:
            _watch(child, file, folder, progress, timeout)
        finally:
            child.kill()
            said = (child.communicate()[1] or "").strip().splitlines()
        if child.returncode:
            raise CheckpointError(f"{file.url}: {said[-1] if said else 'the download was ended'}; {BY_HAND}")
        reason = find_problem(arrived, file)
        if reason:
            raise CheckpointError(f"{file.url}: {reason}; the file there is damaged or another one, {BY_HAND}")
        os.replace(arrived, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _watch(
    child: subprocess.Popen[str], file: RemoteFile, folder: Path, progress: Progress | None, timeout: float
) -> None:
    """Return when the child has ended. Raises CheckpointError if no byte arrives for `timeout` seconds."""
    size, changed = -1, time.monotonic()
    while child.poll() is None:
        now = _measure(folder)
        if now != size:
            size, changed = now, time.monotonic()
        elif time.monotonic() - changed > timeout:
            raise CheckpointError(f"{file.url}: no byte for {timeout:.0f} seconds; run it again, or {BY_HAND}")
        if progress:
            progress(file.name, size, file.size)
        time.sleep(_PAUSE)


def _measure(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:  # renamed meanwhile
            continue
    return total


def find_problem(path: Path, file: RemoteFile) -> str | None:
    """Why a file on the disk is not the one that is wanted, in words; None if it is, as far as is known.

    Compares size and SHA-256 where they are known, else reads the list of tensors.
    """
    try:
        size = path.stat().st_size
        if file.size is None or file.size != size:
            Weights(path)  # says what the file is instead
        if file.size not in (None, size):
            return f"{size} bytes instead of {file.size}"
        if file.sha256 is None:
            return None
        found = update_digest(hashlib.sha256(), path)
        return None if found == file.sha256 else f"its SHA-256 is {found[:12]}... instead of {file.sha256[:12]}..."
    except CheckpointError as error:
        return str(error).removeprefix(f"{path}: ").split("; ")[0]
    except OSError as error:
        return f"it cannot be read ({find_reason(error)})"
