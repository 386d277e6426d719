"""What a result says of how it was made: one JSON object in its metadata, by which it is found again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import __version__
from .atomic_files import update_digest
from .config import ModelConfig
from .errors import SettingError
from .images.files import read_text
from .settings import LOADING, RUN_SETTINGS, SETTINGS, read_settings, resolve

#: The keyword of the text that holds the record.
KEYWORD = "moesr"
#: Keys of a record that hold the digest of a picture, and the settings that those are.
_MAPS = {"mask": "mask", "protect": "protect", "fidelity_map": "fidelity"}


@dataclass(frozen=True)
class RunRecord:
    """How a result was made, as far as it can be made again."""

    #: Name of the model in the library, and the fingerprint of its files ("" if the result does not say).
    model: str
    model_hash: str
    #: Settings of the run by name: see settings.RUN_SETTINGS.
    settings: dict[str, Any]
    #: Settings that were pictures, whose digest is all that is known: of mask, protect and fidelity_map.
    maps: tuple[str, ...] = ()


def describe_run(model: str, model_hash: str, config: ModelConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a run: every setting as it was used, with the model's own value where none was given."""
    used = {**settings, **asdict(resolve(config, **settings))}
    names = (name for name in RUN_SETTINGS if name != "tile_batch")
    values = {name: used.get(name, SETTINGS[name].default) for name in names}
    return {"model": model, "model_hash": model_hash, **values}


def describe_settings(
    config: ModelConfig, path: Path, settings: Mapping[str, Any], *, maps: Mapping[str, Path] | None = None,
    bits: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """What makes a result what it is, but for the input. path: the model's; settings: those of `upscale`.

    maps: files of the settings mask, protect and fidelity that are pictures.
    """
    from .library import compute_fingerprint  # needs torch, which finding a record does not

    run = describe_run(path.stem, compute_fingerprint(path), config, settings)
    digests = {key: digest_file(maps[name]) if maps and name in maps else None for key, name in _MAPS.items()}
    return {**run, **digests, "bits": bits}


def to_texts(record: Mapping[str, Any]) -> dict[str, str]:
    """Metadata texts by keyword that hold the record."""
    return {"Software": f"MoESR {__version__}", KEYWORD: json.dumps({"version": __version__, **record})}


def from_texts(texts: Mapping[str, str]) -> dict[str, Any] | None:
    """The record in a picture's texts, None if there is none that makes sense."""
    try:
        record = json.loads(texts.get(KEYWORD, ""))
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def read_record(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The record in a file; None for a file without one, or that cannot be read. Pixels are not decoded."""
    return from_texts(read_text(path))


def read_run(path: str | os.PathLike[str]) -> RunRecord | None:
    """The run that a file is the result of; None if it does not say, or says what makes no sense."""
    record = read_record(path)
    if record is None:
        return None
    try:
        given = {name: value for name, value in record.items() if name in RUN_SETTINGS}
        digest = record.get("model_hash")
        model = LOADING["model"].check(record.get("model", LOADING["model"].default))
        maps = tuple(name for name in _MAPS if record.get(name))
        return RunRecord(model, digest if isinstance(digest, str) else "", read_settings(given), maps)
    except SettingError:
        return None


def find_difference(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str | None:
    """How a result differs from what is expected, None if it is that: "made with scale 4, not 2"."""
    if found.get("input_hash") != expected.get("input_hash"):
        return "it was made from another picture, or from this one before it was changed"
    for name, value in expected.items():
        if found.get(name) != value:
            return f"it was made with {name.replace('_', ' ')} {_as_word(found.get(name))}, not {_as_word(value)}"
    return None


def digest_file(path: Path) -> str:
    """32 hexadecimal digits that stand for the bytes of a file. Raises OSError."""
    return update_digest(hashlib.blake2b(digest_size=16), path)


def digest_bytes(data: bytes) -> str:
    """The same digits for bytes that are there."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _as_word(value: Any) -> str:
    return "nothing" if value is None else str(value)[:40]
