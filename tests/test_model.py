"""Loading: residency and what it costs in memory, options, files that are not whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import moesr
from moesr.checkpoints.model_files import save_model
from moesr.config import AutoencoderConfig, ModelConfig, UNetConfig
from moesr.errors import CheckpointError, SettingError
from moesr.networks.autoencoder import Autoencoder
from moesr.networks.denoiser import denoiser
from tests.small_models import Room

ROOT = Path(__file__).resolve().parent.parent

#: Prints the anonymous memory, in MiB above that after `import torch`, at its peak while every expert works once.
MEASURE = """
import sys, torch, moesr, moesr.model, moesr.pipeline
from moesr.evaluation.speed.measure import read_anonymous_bytes
base = read_anonymous_bytes()
model = moesr.load(sys.argv[1], residency=sys.argv[2], dtype=sys.argv[3], device="cpu")
peak = read_anonymous_bytes()
model.bank.start([999, 700, 400, 100])
for t in (999, 700, 400, 100):
    with model.bank.stage(t) as expert:
        touched = [p.sum() for p in expert.parameters()]
        peak = max(peak, read_anonymous_bytes())
print((peak - base) / 2**20)
"""


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A fp16 model whose experts are large enough to be seen in a process's memory, and the MiB of one in float32."""
    config = ModelConfig(
        scale=4,
        unet=UNetConfig(model_channels=128, channel_mult=(1, 2), num_res_blocks=1, attention_downsamples=(2,)),
        autoencoder=AutoencoderConfig(ch=32, num_res_blocks=1, n_embed=16, fusion_growth=8, fusion_blocks=1),
    )
    path = tmp_path_factory.mktemp("wide") / "wide.safetensors"
    expert = denoiser(config.unet)
    experts = [expert.state_dict()] * 4
    save_model(path, config, experts, Autoencoder(config.autoencoder).state_dict(), torch.float16)
    return path, sum(p.numel() for p in expert.parameters()) * 4 / 2**20


def anonymous(path: Path, residency: str, dtype: str) -> float:
    command = [sys.executable, "-c", MEASURE, str(path), residency, dtype]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return float(done.stdout)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of memory")
def test_stream_holds_two_experts_and_all_holds_four(wide: tuple[Path, float]) -> None:
    path, expert = wide
    everything, streamed = (anonymous(path, residency, "fp32") for residency in ("all", "stream"))
    assert everything > 3.5 * expert
    assert streamed < 2.8 * expert
    assert streamed < 0.75 * everything
    assert anonymous(path, "stream", "fp16") < expert / 2  # what needs no conversion stays in the file


def test_auto_residency_asks_the_host(shift_model: str) -> None:
    assert type(moesr.load(shift_model).bank.residency).__name__ == "All"
    assert type(moesr.load(shift_model, runtime=Room(2**20)).bank.residency).__name__ == "Stream"


def test_dtypes(shift_model: str) -> None:
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        model = moesr.load(shift_model, dtype=name)
        assert next(model.autoencoder.parameters()).dtype == dtype
        with model.bank.stage(0) as expert:
            assert next(expert.parameters()).dtype == dtype
    assert moesr.upscale(moesr.load(shift_model, dtype="bf16"), torch.rand(1, 6, 6, 3), steps=2).shape == (1, 24, 24, 3)


@pytest.mark.parametrize("wrong", [{"dtype": "int8"}, {"device": "abacus"}, {"residency": "some"}])
def test_wrong_options_are_one_line(shift_model: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingError) as error:
        moesr.load(shift_model, **wrong)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("residency", ["all", "stream"])
def test_missing_and_misshapen_weights_are_named(shift_model: str, tmp_path: Path, residency: str) -> None:
    from safetensors import safe_open

    with safe_open(shift_model, "pt") as file:
        metadata = file.metadata()
    path = tmp_path / "broken.safetensors"
    weights = load_file(shift_model)
    key = "first_stage_model.decoder.conv_out.weight"
    save_file({k: v for k, v in weights.items() if k != key}, path, metadata)
    with pytest.raises(CheckpointError, match=r"decoder.conv_out.weight missing"):
        moesr.load(path, residency=residency)
    save_file({**weights, key: torch.zeros(3, 3)}, path, metadata)
    with pytest.raises(CheckpointError, match=r"decoder.conv_out.weight \[3, 3\] instead of \[3, 32, 3, 3\]"):
        moesr.load(path, residency=residency)


def test_import_costs_no_torch() -> None:
    code = "import sys, moesr; assert 'torch' not in sys.modules; assert moesr.MoESRError"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
