"""The recorded result of the embedded model: a photograph, its enlargement on a CPU in float32, and a hash of the file.

`python -m moesr check --record` writes it again; run that after the embedded model was replaced.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
from PIL import Image

#: The model whose result is recorded, and its restore then: all of its networks work.
NAME, RESTORE = "tiny", 0.5
_FOLDER = Path(__file__).parent / "recorded"
_INPUT, _EXPECTED, _HASHES = _FOLDER / "input.png", _FOLDER / "tiny.png", _FOLDER / "hashes.json"


def read_input() -> np.ndarray:
    """The photograph, uint8 [40, 40, 3]."""
    return np.asarray(Image.open(_INPUT).convert("RGB"))


def read_expected() -> np.ndarray:
    """What the model makes of it, uint8 [160, 160, 3]."""
    return np.asarray(Image.open(_EXPECTED).convert("RGB"))


def has_recorded_weights(path: Path) -> bool:
    """Whether the model's file is byte for byte the one of the record."""
    return _hash(path) == json.loads(_HASHES.read_text())[NAME]


def write_record(result: np.ndarray, path: Path) -> None:
    """Record a result of the model in that file as the expected one."""
    Image.fromarray(result).save(_EXPECTED)
    _HASHES.write_text(json.dumps({NAME: _hash(path)}) + "\n")


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
