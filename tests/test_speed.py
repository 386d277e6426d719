"""The benchmark measures what it says: seconds in turn, products as counted by hand, memory as taken."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import moesr
from moesr import model as model_module
from moesr.cli import main
from moesr.evaluation.speed import bench, measure, network_parts
from moesr.evaluation.speed.bench import Bench
from moesr.evaluation.speed.measure import Row, Stopwatch, median_ratio, peak
from moesr.evaluation.speed.network_parts import Part
from tests.pretended_device import pretended_device
from tests.small_models import nano_config, save_nano

CPU = torch.device("cpu")
COLUMNS = ["name", "seconds", "tmac", "share_of_matrix_rate", "speedup_over_reference", "peak_mib", "gb_per_second"]


def test_runs_alternate_and_are_timed_apart() -> None:
    order: list[str] = []
    clock = iter([0.0, 1.0, 1.0, 3.0, 3.0, 4.0, 4.0, 8.0])
    watch = Stopwatch(CPU)
    watch._now = lambda: next(clock)
    times = watch.alternating([lambda: order.append("a"), lambda: order.append("b")], 2)
    assert order == ["a", "b", "a", "b", "a", "b"]
    assert times == [[1.0, 1.0], [2.0, 4.0]]
    assert median_ratio(times[1], times[0]) == 3.0


@pytest.mark.skipif(measure.read_anonymous_bytes() is None, reason="the system does not tell")
def test_peaks_are_what_was_taken() -> None:
    def take(mib: int) -> Tensor:
        taken = torch.ones(mib * 2**18)
        time.sleep(10 * measure.WATCH_SECONDS)
        return taken

    kept = take(32)  # what is held already does not count
    with peak(CPU) as used:
        take(96)
    assert used.mib is not None
    assert 95 < used.mib < 104
    del kept


def test_a_row_has_its_columns_and_compares_with_the_plain_twin() -> None:
    a = torch.ones(64, 64)

    def plain() -> None:
        for _ in range(200):
            torch.matmul(a, a)

    row = Bench(rounds=3)._row(Part("work", lambda: a @ a, plain, lambda: a @ a), "fp32", memory=True)
    assert list(row.values()) == COLUMNS
    assert row.name == "work, fp32"
    assert row.tmac == 64**3 / 1e12
    assert row.seconds is not None
    assert row.speedup_over_reference is not None
    assert row.speedup_over_reference > 5
    assert row.share_of_matrix_rate is not None
    assert json.dumps(row.values())
    assert Row("x", None).values() == dict.fromkeys(COLUMNS) | {"name": "x"}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole benchmark with networks of a few channels."""
    config = nano_config("ddpm")
    monkeypatch.setattr(bench, "MATRIX", 64)
    # Rows of low precision are computed in fp32: CPUs without units for bf16 take a hundred times as long.
    monkeypatch.setattr(bench, "DTYPES", dict.fromkeys(bench.DTYPES, torch.float32))
    monkeypatch.setattr(network_parts, "UNetConfig", lambda: config.unet)
    monkeypatch.setattr(network_parts, "SwinUNetConfig", lambda: nano_config("swin").unet)
    monkeypatch.setattr(network_parts, "AutoencoderConfig", lambda: config.autoencoder)


@pytest.mark.usefixtures("small")
def test_the_command_prints_rows(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", "--quick", "--threads", "1", "--only", "matrix,step,decode"]
    assert main([*command, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert all(list(row) == COLUMNS for row in rows)
    names = " | ".join(row["name"] for row in rows)
    for part in ("matrix product", "step, latent", "features + decode", "AFF U-Net", "bf16 against our fp32"):
        assert part in names
    whole = next(row for row in rows if row["name"].startswith("features + decode"))
    assert whole["speedup_over_reference"] > 0
    assert main(["bench", "--only", "matrix"]) == 0
    assert "matrix product 64, fp32" in capsys.readouterr().out


@pytest.mark.usefixtures("small")
def test_a_device_is_timed_by_its_events_against_its_own_rates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nano = save_nano("ddpm", tmp_path)
    monkeypatch.setattr(bench, "DEVICE_MATRIX", 64)
    monkeypatch.setattr(bench, "COPY_BYTES", 2**20)
    monkeypatch.setattr(bench, "DEVICE_SIDES", (64,))
    monkeypatch.setattr(bench, "FULL_RUNS", (("MoESR", 2), ("ResShift", 4)))
    monkeypatch.setattr(bench.Bench, "_dtypes", lambda _: ["fp32"])
    monkeypatch.setattr(model_module, "DTYPES", dict.fromkeys(model_module.DTYPES, torch.float32))
    command = ["bench", "--device", "cuda", "--side", "64", "--rounds", "1", "--model", str(nano), "--json"]
    with pretended_device():
        assert main([*command, "--quick"]) == 0
        quick = json.loads(capsys.readouterr().out)
        assert main([*command, "--only", "full"]) == 0
    full = json.loads(capsys.readouterr().out)
    assert [row["name"].split(",")[0] for row in quick][:4:3] == ["matrix product 64", "copy of 1 MiB"]
    assert all(row["seconds"] == 0.001 for row in quick)  # one event to the other, there
    assert quick[3]["gb_per_second"] == 2.1
    assert [row["name"].split(", ")[2] for row in full] == ["2 steps", "4 steps"]
    assert full[0]["speedup_over_reference"] == 1.0
    assert all(row["share_of_matrix_rate"] > 0 for row in full)


@pytest.mark.usefixtures("small")
def test_the_whole_of_an_image_and_its_growth(shift_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "SIDES", (64, 128))
    rows = list(Bench(quick=True, rounds=1, sections=("image", "scaling"), model=shift_model, side=64).rows())
    assert [row.name.split(", ")[1] for row in rows] == ["64 x 64", "64 x 64", "128 x 128"]
    assert all(row.seconds is not None and row.seconds > 0 for row in rows)


def test_settings_that_measure_nothing_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--only", "speed"]) == 1
    assert "choose some of matrix" in capsys.readouterr().err
    assert main(["bench", "--clock", "cpu", "--threads", "2", "--only", "matrix"]) == 1
    assert "--threads 1" in capsys.readouterr().err


# ---- torch.compile


@pytest.mark.parametrize("residency", ["all", "stream"])
def test_compiled_experts_share_compilations(shift_model: str, monkeypatch: pytest.MonkeyPatch, residency: str) -> None:
    graphs: list[Any] = []

    def count(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    monkeypatch.setattr(model_module, "BACKEND", count)
    image = torch.rand(1, 40, 24, 3)
    out = moesr.upscale(moesr.load(shift_model, residency=residency, compile=True), image, tile=64, steps=4)
    want = moesr.upscale(moesr.load(shift_model, residency=residency), image, tile=64, steps=4)
    assert len(graphs) <= 2  # of four experts, several tiles, four steps
    assert (out - want).abs().max() < 1e-3
