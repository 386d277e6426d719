"""Models by name: the embedded one, and what the user keeps in the library's folders."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import CheckpointError

EMBEDDED = Path(__file__).resolve().parent.parent / "weights"
SUFFIXES = (".safetensors", ".ckpt", ".pth")


def folders() -> list[Path]:
    """Where models are looked for, in order: MOESR_HOME, then the models inside this package."""
    home = os.environ.get("MOESR_HOME")
    return [*([Path(home)] if home else []), EMBEDDED]


def find(name: str) -> Path:
    """The file or folder of a model: a path that exists, else a name in one of `folders`.

    Raises CheckpointError listing the names that are there.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    for folder in folders():
        for candidate in (folder / name, *(folder / f"{name}{suffix}" for suffix in SUFFIXES)):
            if candidate.exists():
                return candidate
    raise CheckpointError(
        f"{name}: no such model file, and none of that name among {', '.join(names()) or 'no models'}"
    )


def names() -> list[str]:
    """Names of the models in `folders`, the embedded default first."""
    found = [
        p.stem if p.is_file() else p.name for f in folders() if f.is_dir() for p in sorted(f.iterdir()) if _is_model(p)
    ]
    return sorted(dict.fromkeys(found), key=lambda n: n != "tiny")


def _is_model(path: Path) -> bool:
    if path.name.startswith((".", "_")):
        return False
    return path.suffix in SUFFIXES if path.is_file() else any(p.suffix in SUFFIXES for p in path.iterdir())
