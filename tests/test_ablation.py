"""Models without one of their parts, and variants that are trained and evaluated alike."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import moesr
from moesr.cli import main
from moesr.errors import SettingError
from moesr.evaluation.ablation import remove_part
from moesr.images.resize import resize
from moesr.model import SRModel
from moesr.networks.frequency import AdaptiveFrequencyFilter
from moesr.training import config as configs
from moesr.training.ablations import STEPS, Ablations, format_table, list_variants, reseed
from tests import training_setup as setup
from tests.image_files import photo

LR = photo(16, 16)


def filters(model: SRModel) -> int:
    return sum(isinstance(m, AdaptiveFrequencyFilter) for m in model.autoencoder.modules())


def test_without_latent_decodes_the_bicubic_image(model: SRModel) -> None:
    if model.process.kind == "ddpm":
        with pytest.raises(SettingError, match="residual shift"):
            remove_part(model, "latent")
        return
    result = moesr.upscale(remove_part(model, "latent"), LR, color_fix="none", seed=3, fidelity=1.0)
    condition = torch.from_numpy(LR).permute(2, 0, 1)[None].float() / 127.5 - 1
    up = resize(condition, (64, 64)).clamp(-1, 1)
    with torch.inference_mode():
        image = model.autoencoder.decode(model.autoencoder.encode(up), model.autoencoder.window_features(up))
    expected = ((image[0].clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    assert np.abs(result.astype(int) - expected.astype(int)).max() <= 1
    assert not np.array_equal(result, moesr.upscale(model, LR, color_fix="none", seed=3))


def test_without_experts_reverses_them(model: SRModel) -> None:
    changed = remove_part(model, "experts")
    for t, other in ((0, 999), (300, 700)):
        with changed.bank.stage(t) as a, model.bank.stage(other) as b:
            assert a is b


def test_without_filters_leaves_the_model_itself_alone(model: SRModel) -> None:
    before = filters(model)
    changed = remove_part(model, "filters")
    assert (filters(changed), filters(model), before) == (0, before, 9)
    assert not np.array_equal(moesr.upscale(changed, LR), moesr.upscale(model, LR))
    with pytest.raises(SettingError, match="no frequency filters"):
        remove_part(changed, "filters")


def test_unknown_parts_are_named(model: SRModel) -> None:
    with pytest.raises(SettingError, match="latent, experts, filters"):
        remove_part(model, "decoder")


def test_evaluate_takes_it(nano: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (48, 48), "teal").save(tmp_path / "a.png")
    command = ["evaluate", "--hr", str(tmp_path), "--model", str(nano), "--without", "filters", "--json"]
    assert main(command) == 0
    assert "without filters" in capsys.readouterr().out


def test_rows_of_a_table_take_equally_many_steps() -> None:
    base = configs.load("ablation")
    rows = {row.name: configs.load("ablation", list(row.overrides)) for row in list_variants(base)}
    steps = {name: len(c.model.stages) * c.experts.loop.steps for name, c in rows.items()}
    assert len(set(steps.values())) == 1
    assert {(c.experts.trunk, c.experts.loop.batch, c.decoder.loop, c.first_stage) for c in rows.values()} == {
        (base.experts.trunk, base.experts.loop.batch, base.decoder.loop, base.first_stage)
    }
    assert [len(c.model.stages) for c in rows.values()] == [1, 1, 4, 4, 4, 4, 4, 4]
    assert [c.experts.space_experts for c in rows.values()][:4] == [0, 4, 0, 4]
    decoders = [c for name, c in rows.items() if name in ("plain decoder", "+ LR fusion", "+ AFF", "+ FFL")]
    parts = [(c.model.autoencoder.lr_fusion, c.model.autoencoder.refine) for c in decoders]
    assert parts == [(False, False), (True, False), (True, True), (True, True)]
    assert [c.decoder.frequency_weight > 0 for c in decoders] == [False, False, False, True]


def test_one_expert_alone_cannot_be_compared(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="the config has one"):
        Ablations(
            "ablation", ["model.stages=[1000]"], data=tmp_path, hr=tmp_path, out=tmp_path / "out", metrics=None, crop=0
        )


def test_tables_of_several_seeds_have_mean_and_deviation(photographs: Path, metrics: Path, tmp_path: Path) -> None:
    folders = {"data": photographs, "hr": photographs, "metrics": metrics}
    runs = [Ablations("ablation", reseed(k), **folders, out=tmp_path / f"out{k}", crop=0) for k in (0, 1)]
    loops = [(c.first_stage.loop, c.experts.trunk, c.experts.loop, c.decoder.loop) for c in (r.base for r in runs)]
    assert all(a != b for a, b in zip(*loops))
    values: dict[str, float | None] = {"psnr_y": 26.0, "lpips_alex": 0.3}
    runs[0].results = {"experts": {"one": values, "four": values}}
    assert "| one | 26.00 |" in format_table(runs[:1], "experts")
    runs[1].results = {"experts": {"one": {"psnr_y": 27.0, "lpips_alex": None}}}
    several = format_table(runs, "experts")
    assert "| one | 26.50 ± 0.71 |" in several
    assert "| - |" in several
    assert "four" not in several


@pytest.mark.slow
def test_all_tables_from_photographs(
    photographs: Path, metrics: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = setup.values("kl")
    plain["model"]["process"]["timesteps"] = plain["model"]["stages"][-1] = 1000
    plain["decoder"] |= {"gan_start": 100}
    config = tmp_path / "config.json"
    config.write_text(json.dumps(plain))
    options = ["--data", str(photographs), "--hr", str(photographs), "--metrics", str(metrics), "--crop", "64"]
    arguments = ["ablate", str(config), *options, "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    first = capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [len(results[t]) for t in ("experts", "steps", "decoder")] == [4, 2 * len(STEPS), 4]
    assert len({json.dumps(row) for table in results.values() for row in table.values()}) > 12
    assert first.count("| ") > 18
    assert main(arguments) == 0  # everything is there
    assert capsys.readouterr().out == first
