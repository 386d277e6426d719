"""The folders of the library, and the models in them by name."""

from __future__ import annotations

import difflib
import hashlib
import logging
import os
import sys
from collections.abc import Collection
from pathlib import Path

from ..checkpoints.weight_reading import SUFFIXES
from ..errors import CheckpointError, SettingError
from .catalogue import CATALOGUE

log = logging.getLogger(__name__)

_PACKAGE = Path(__file__).absolute().parent.parent

EMBEDDED = _PACKAGE.resolve() / "weights"
DEFAULT = "tiny"
#: Blocks of a file that its fingerprint is made of, and bytes of each.
SAMPLES, SAMPLE = 256, 4096

#: Of a WebUI or ComfyUI: the folder that holds the pack, and where the host keeps models of this kind.
_HOSTS = {"custom_nodes": ("models", "moesr"), "extensions": ("models", "MoESR")}

_added: list[Path] = []


def folders() -> list[Path]:
    """Where models are looked for, in order; not all of them need to exist.

    MOESR_HOME (several, separated as in PATH), folders given to `add_folder`, the folder of the host that the package
    sits in, the user's data folder, the models inside the package.
    """
    parts = os.environ.get("MOESR_HOME", "").split(os.pathsep)
    home = [Path(os.path.expanduser(part)).absolute() for part in parts if part.strip()]
    own = [*home, *_added, *host_folders(_PACKAGE), *user_folders()]
    return list(dict.fromkeys([*own, EMBEDDED]))


def add_folder(path: str | os.PathLike[str]) -> None:
    """Look for models there too, after MOESR_HOME; a folder that is known already stays where it is."""
    folder = Path(path).expanduser().absolute()
    if folder not in _added:
        _added.append(folder)


def download_folder() -> Path:
    """Where `download` puts models: the first of `folders` that is not the package. Raises SettingError if none is."""
    for folder in folders():
        if folder != EMBEDDED:
            return folder
    raise SettingError("no folder for models: set MOESR_HOME, or name a folder with --to")


def find(name: str) -> Path:
    """The file or folder of a model: a file that exists, else a name in `folders`, else a folder that exists.

    A name is a file's stem, a file's name or a folder's name, and never leads out of its folder; the first folder that
    has it wins. Raises CheckpointError that lists what is there, similar names and how to get it.
    """
    path = os.path.expanduser(name)
    if os.path.isfile(path):
        return Path(path)
    for folder in folders():
        for entry in _list_models(folder):
            if name in (entry.name, _name_model(entry)):
                return entry
    if os.path.exists(path):
        return Path(path)
    raise CheckpointError(_describe_missing(name))


def names() -> list[str]:
    """Names of the models in `folders`, each once, the embedded default first."""
    return list(installed())


def installed() -> dict[str, Path]:
    """The models in `folders` by name, each once and from the first folder that has it, the embedded default first."""
    found: dict[str, Path] = {}
    for folder in folders():
        for entry in _list_models(folder):
            found.setdefault(_name_model(entry), entry)
    return dict(sorted(found.items(), key=lambda item: item[0] != DEFAULT))


def suggest(name: str, among: Collection[str]) -> str:
    """A question for an error line, "; did you mean X?", or nothing if no name is close."""
    close = difflib.get_close_matches(name.lower(), sorted(among), n=2)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def compute_fingerprint(path: Path) -> str:
    """16 hexadecimal digits that identify a model's files by content, without reading them whole.

    SHA-256 of each file's size and of SAMPLES blocks of SAMPLE bytes, evenly spaced, the first and the last included.
    Names, times and folders do not count, so it is the same on every machine. Reads at most 1 MiB per file.
    """
    digest = hashlib.sha256()
    files = sorted(p for p in path.rglob("*") if _is_weights(p)) if path.is_dir() else [path]
    for part in files:
        size = part.stat().st_size
        digest.update(size.to_bytes(8, "little"))
        with part.open("rb") as file:
            for i in range(SAMPLES):
                file.seek(max(size - SAMPLE, 0) * i // (SAMPLES - 1))
                digest.update(file.read(SAMPLE))
    return digest.hexdigest()[:16]


def host_folders(package: Path) -> list[Path]:
    """Where the host keeps such models, for a package in ROOT/custom_nodes/PACK (ComfyUI) or ROOT/extensions/EXT."""
    # A pack may be a symlink to a checkout elsewhere: the path it was imported by tells, the resolved one may not.
    packs = (package.parent, package.resolve().parent)
    return list(
        dict.fromkeys(p.parent.parent.joinpath(*_HOSTS[p.parent.name]) for p in packs if p.parent.name in _HOSTS)
    )


def user_folders(platform: str = sys.platform) -> list[Path]:
    """The user's data folder as the platform has it; none if the user has no home."""
    given = {"win32": os.environ.get("LOCALAPPDATA"), "darwin": None}.get(platform, os.environ.get("XDG_DATA_HOME"))
    # By the standard, a relative XDG_DATA_HOME is to be ignored.
    if given and Path(given).is_absolute():
        return [Path(given) / "moesr"]
    below = {"win32": "AppData/Local", "darwin": "Library/Application Support"}.get(platform, ".local/share")
    try:
        return [Path.home() / below / "moesr"]
    except RuntimeError:
        log.info("no home folder: models are not looked for in it")
        return []


def _list_models(folder: Path) -> list[Path]:
    """Model files and folders in a folder, in order of name; of files that differ in suffix, the safest first."""
    found = [path for path in _list(folder) if _is_model(path)]
    return sorted(found, key=lambda p: (_name_model(p), _rank(p)))


def _name_model(path: Path) -> str:
    return path.stem if _rank(path) < len(SUFFIXES) and not os.path.isdir(path) else path.name


def _rank(path: Path) -> int:
    suffix = path.suffix.lower()
    return SUFFIXES.index(suffix) if suffix in SUFFIXES else len(SUFFIXES)


def _is_model(path: Path) -> bool:
    if path.name.startswith((".", "_")):
        return False
    if not os.path.isdir(path):
        return _is_weights(path)
    inside = _list(path)
    # A copy of a published repository keeps its files one folder below.
    return any(map(_is_weights, inside)) or any(
        any(map(_is_weights, _list(sub))) for sub in inside if not sub.name.startswith(".") and os.path.isdir(sub)
    )


def _is_weights(path: Path) -> bool:
    return _rank(path) < len(SUFFIXES) and os.path.isfile(path)


def _list(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        log.warning("%s: cannot be read (%s); models in it are not found", folder, error.strerror or error)
        return []


def _describe_missing(name: str) -> str:
    if name in CATALOGUE:
        return f"{name}: not downloaded yet; run: python -m moesr download {name}"
    if name != os.path.basename(name):
        return f"{name}: no such file or folder; give a file, a folder, or a name: {_join_some(names())}"
    there = names()
    hint = suggest(os.path.splitext(name)[0], {*there, *CATALOGUE})
    return f"{name}: no such model among {_join_some(there)}; python -m moesr models lists what can be downloaded{hint}"


def _join_some(items: list[str]) -> str:
    more = f" and {len(items) - 8} more" if len(items) > 8 else ""
    return ", ".join(items[:8]) + more if items else "none so far"
