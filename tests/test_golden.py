"""Parity with the reference implementations: one test per recorded case, chosen by the case's name.

MOESR_GOLDEN is the folder of the cases, tests/golden by default. The checks are in tests/parity.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.parity import checks

OWN = Path(__file__).parent / "golden"
FOLDER = Path(os.environ.get("MOESR_GOLDEN") or OWN)
NAMES = checks.names(FOLDER)


@pytest.mark.parametrize("name", NAMES)
def test_golden(name: str) -> None:
    checks.run(FOLDER, name)


def test_the_folder_holds_cases() -> None:
    assert NAMES, f"{FOLDER}: no case there"


# The checks themselves must be able to fail.


def changed(folder: Path, tensors: dict[str, Tensor], name: str = "case8_adain") -> Path:
    """A folder with one case whose tensors are not those that were recorded."""
    (folder / f"{name}.json").write_text("{}")
    save_file(tensors, folder / f"{name}.safetensors")
    return folder


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    return load_file(OWN / "moesr" / "case8_adain.safetensors")


def test_a_case_of_unknown_kind_fails(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    changed(tmp_path, tensors, "case8_colour")
    assert checks.names(tmp_path) == ["case8_colour"]
    with pytest.raises(AssertionError, match="no check is known"):
        checks.run(tmp_path, "case8_colour")


@pytest.mark.parametrize("factor", [1 + 1e-4, float("nan")])
def test_a_deviation_fails(tmp_path: Path, tensors: dict[str, Tensor], factor: float) -> None:
    tensors["out.same.y"] *= factor
    with pytest.raises(AssertionError, match=r"same\.y: off by"):
        checks.run(changed(tmp_path, tensors), "case8_adain")


def test_an_output_that_is_left_out_fails(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    tensors["out.other.y"] = torch.zeros(1)
    with pytest.raises(AssertionError, match=r"not compared: other\.y"):
        checks.run(changed(tmp_path, tensors), "case8_adain")


def test_a_case_without_outputs_fails(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="nothing was compared"):
        checks.run(changed(tmp_path, {"in.x": torch.zeros(1)}), "case8_adain")
