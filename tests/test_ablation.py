"""Models without one of their parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import moesr
from moesr.errors import SettingError
from moesr.evaluation.ablation import remove_part
from moesr.images.resize import resize
from moesr.model import SRModel
from moesr.networks.frequency import AdaptiveFrequencyFilter


@pytest.fixture(scope="module")
def model(nano: Path) -> SRModel:
    return moesr.load(str(nano))


@pytest.fixture(scope="module")
def lr() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def filters(model: SRModel) -> int:
    return sum(isinstance(m, AdaptiveFrequencyFilter) for m in model.autoencoder.modules())


def test_without_latent_decodes_the_bicubic_image(model: SRModel, lr: np.ndarray) -> None:
    if model.process.kind == "ddpm":
        with pytest.raises(SettingError, match="residual shift"):
            remove_part(model, "latent")
        return
    result = moesr.upscale(remove_part(model, "latent"), lr, color_fix="none", seed=3, fidelity=1.0)
    condition = torch.from_numpy(lr).permute(2, 0, 1)[None].float() / 127.5 - 1
    up = resize(condition, (64, 64)).clamp(-1, 1)
    with torch.inference_mode():
        image = model.autoencoder.decode(model.autoencoder.encode(up), model.autoencoder.window_features(up))
    expected = ((image[0].clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    assert np.abs(result.astype(int) - expected.astype(int)).max() <= 1
    assert not np.array_equal(result, moesr.upscale(model, lr, color_fix="none", seed=3))


def test_without_experts_reverses_them(model: SRModel) -> None:
    changed = remove_part(model, "experts")
    for t, other in ((0, 999), (300, 700)):
        with changed.bank.stage(t) as a, model.bank.stage(other) as b:
            assert a is b


def test_without_filters_leaves_the_model_itself_alone(model: SRModel, lr: np.ndarray) -> None:
    before = filters(model)
    changed = remove_part(model, "filters")
    assert (filters(changed), filters(model), before) == (0, before, 9)
    assert not np.array_equal(moesr.upscale(changed, lr), moesr.upscale(model, lr))
    with pytest.raises(SettingError, match="no frequency filters"):
        remove_part(changed, "filters")


def test_unknown_parts_are_named(model: SRModel) -> None:
    with pytest.raises(SettingError, match="latent, experts, filters"):
        remove_part(model, "decoder")


def test_evaluate_takes_it(nano: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from moesr.cli import main

    Image.new("RGB", (48, 48), "teal").save(tmp_path / "a.png")
    command = ["evaluate", "--hr", str(tmp_path), "--model", str(nano), "--without", "filters", "--json"]
    assert main(command) == 0
    assert "without filters" in capsys.readouterr().out
