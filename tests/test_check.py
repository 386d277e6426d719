"""The self-test fails where something is wrong: a weight, a kernel, a number format; a crash fails one row only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from moesr.cli import main
from moesr.evaluation import selftest
from moesr.evaluation.nano_models import build_nano
from moesr.evaluation.parity import largest_difference
from moesr.evaluation.selftest import ROWS, SelfTest
from moesr.library import find
from moesr.networks import inverted_residual
from moesr.settings import SAMPLERS

CPU = torch.device("cpu")


def run(row: str, model: str = "tiny") -> selftest.Result:
    return next(iter(SelfTest(CPU, quick=True, model=model).run((row,))))


def flip(path: Path, bit: int) -> Path:
    """A copy of `tiny` in which one bit of one weight of its last convolution is another."""
    with safe_open(find("tiny"), "pt") as file:
        state, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    weight = state["first_stage_model.decoder.conv_out.weight"]
    words = weight.view(torch.int16 if weight.dtype.itemsize == 2 else torch.int32).view(-1)
    words[0] ^= 1 << bit
    save_file(state, path, metadata)
    return path


def test_a_flipped_weight_fails_by_its_picture_or_its_hash(tmp_path: Path) -> None:
    assert run("tiny").passed
    large = run("tiny", str(flip(tmp_path / "large.safetensors", 13)))
    assert not large.passed
    assert "within a level of the recorded result" in large.summary
    small = run("tiny", str(flip(tmp_path / "small.safetensors", 0)))
    assert not small.passed
    assert "not those of the released model" in small.summary


def test_a_wrong_kernel_and_a_sampler_gone_wrong_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inverted_residual, "SLOPE", 0.12)
    found = run("parity")
    assert not found.passed
    assert found.summary.startswith("decoder in fp32 differs by")
    assert largest_difference(torch.tensor([1.0, torch.nan]), torch.ones(2)) != 0.0  # NaN, which no bound admits
    monkeypatch.undo()

    def other_seed(kind: str, device: torch.device, **_: Any) -> Any:
        other_seed.calls += 1  # type: ignore[attr-defined]
        return build_nano(kind, device, seed=other_seed.calls)  # type: ignore[attr-defined]

    other_seed.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(selftest, "build_nano", other_seed)
    assert "differs from the CPU" in run("samplers").summary


def test_rows_that_need_no_released_size_pass_on_a_cpu() -> None:
    assert run("parity").passed
    result = run("samplers")
    assert result.passed
    assert {f"ddpm {name}" for name in SAMPLERS} <= set(result.values)
    memory = run("memory")
    assert memory.passed
    assert memory.values["tiles"] > 1


def test_memory_without_an_effect_and_slow_ends_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "CANCEL_SECONDS", -1.0)
    assert "took" in run("cancel").summary
    monkeypatch.setattr(SelfTest, "_limit_memory", lambda *_: selftest.suppress())
    assert "the limit had no effect" in run("memory").summary


def test_a_row_that_crashes_is_one_line_and_the_rest_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def crash(*_: Any) -> str:
        raise RuntimeError("CUDA error: an illegal memory access\nwas encountered somewhere")

    for name in ROWS:
        monkeypatch.setattr(SelfTest, f"_check_{name}", crash if name == "residency" else lambda *_: "as it should be")
    assert main(["check", "--device", "cpu", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert tuple(row["name"] for row in report["rows"]) == ROWS
    assert [row["name"] for row in report["rows"] if not row["passed"]] == ["residency"]
    assert report["rows"][3]["summary"] == "crashed: RuntimeError: CUDA error: an illegal memory access"
    assert report["machine"]["torch"] == torch.__version__
    assert main(["check", "--device", "cpu", "--only", "tiny,parity"]) == 0
    out = capsys.readouterr().out
    assert out.index("free_mib") < out.index("as it should be")


def test_devices_and_rows_that_do_not_exist_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for options, words in (
        (["--device", "privateuseone"], "DirectML is not supported"),
        (["--device", "meta:x"], "unknown to torch"),
        (["--only", "speed"], "choose some of parity"),
    ):
        assert main(["check", *options]) == 1
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
