"""The table of settings, what is resolved from the model, and where an event says a run is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moesr.config import ModelConfig, ProcessConfig
from moesr.errors import SettingError
from moesr.progress import Event
from moesr.settings import LOADING, SETTINGS, check_settings, resolve


def test_every_default_is_allowed_and_every_setting_says_what_it_does() -> None:
    for setting in (*SETTINGS.values(), *LOADING.values()):
        assert setting.check(setting.default) == setting.default
        assert setting.sentence.endswith(".")


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("steps", 0), ("steps", 2.5), ("steps", True), ("sampler", "euler"), ("spacing", "cosine"), ("fidelity", -0.1),
        ("fidelity", "faithful"), ("color_fix", "lab"), ("tile", -5), ("tile", "small"), ("tile_batch", 0),
        ("scale", 0), ("scale", float("nan")), ("batch_seed", "random"), ("eta", 1.01), ("seed", -1), ("wrap", 1),
        ("restore", 2), ("sharpness", 1),
    ],
)  # fmt: skip
def test_wrong_values_are_one_line_that_names_the_setting(name: str, wrong: Any) -> None:
    with pytest.raises(SettingError, match=f"^{name}") as error:
        check_settings(**{name: wrong})
    assert "\n" not in str(error.value)


def test_values_get_their_type() -> None:
    assert type(SETTINGS["steps"].check(4.0)) is int
    assert type(SETTINGS["eta"].check(np.float32(0.5))) is float
    assert SETTINGS["steps"].check(None) is None
    assert SETTINGS["seed"].check(2**64 - 1) == 2**64 - 1
    assert [SETTINGS["tile"].read(text) for text in ("auto", "256")] == ["auto", 256]
    assert SETTINGS["wrap"].read("true") is True
    with pytest.raises(SettingError, match="tile 'big': give a whole number from 0 to 16384, or auto"):
        SETTINGS["tile"].read("big")


@pytest.mark.parametrize(
    ("config", "settings", "want"),
    [
        (ModelConfig(steps=50), {}, (50, "ddim", "leading")),
        (ModelConfig(steps=50), {"steps": 4}, (4, "dpmpp_2m", "trailing")),
        (ModelConfig(steps=50), {"steps": 4, "sampler": "ddpm"}, (4, "ddpm", "trailing")),
        (ModelConfig(steps=50), {"sampler": "dpmpp_2m", "spacing": "leading"}, (50, "dpmpp_2m", "leading")),
        (ModelConfig(steps=30, sampler="dpmpp_2m"), {}, (30, "dpmpp_2m", "trailing")),
        (ModelConfig(steps=15, process=ProcessConfig("residual_shift", 15)), {}, (15, "ddim", "trailing")),
    ],
)
def test_what_is_left_to_the_model(config: ModelConfig, settings: dict[str, Any], want: tuple[Any, ...]) -> None:
    found = resolve(config, **settings)
    assert (found.steps, found.sampler, found.spacing) == want
    assert (found.scale, found.fidelity) == (8, 1.0)
    assert resolve(config, scale=2.5, fidelity=0).scale == 2.5
    with pytest.raises(SettingError, match="timesteps"):
        resolve(ModelConfig(process=ProcessConfig(timesteps=15)), steps=16)


def test_an_event_says_how_far_the_run_is() -> None:
    order = [Event("load"), Event("encode", tile=2, tiles=2), Event("sample", 1, 4, tile=1, tiles=2),
             Event("sample", 1, 4, tile=2, tiles=2), Event("sample", 4, 4, tile=1, tiles=2),
             Event("decode", tile=1, tiles=2), Event("decode", tile=2, tiles=2), Event("save")]  # fmt: skip
    fractions = [event.fraction for event in order]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0, 1)
    assert len(set(fractions)) == len(fractions)
    assert Event("sample", 3, 4, tile=3, tiles=12).text == "tile 3/12, step 3/4"
    second = Event("decode", tile=1, tiles=4, image=5, images=16, done=0.25, share=0.0625)
    assert second.text == "decode, image 5/16, tile 1/4"
    assert second.fraction == pytest.approx(0.3)
