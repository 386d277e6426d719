"""The picture of which expert works at which step."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import ImageFont

from moesr.images.expert_timeline import draw_timeline, palette

EXPERTS, NOISE, TIMESTEPS = [3, 3, 2, 2, 1, 0], [1.0, 0.8, 0.6, 0.45, 0.3, 0.1], [999, 800, 700, 510, 300, 100]


def test_bars_have_the_height_of_the_noise_and_the_colour_of_the_expert() -> None:
    pixels = np.asarray(draw_timeline(EXPERTS, NOISE, TIMESTEPS, size=(620, 146)))
    assert pixels.shape == (146, 620, 4)
    floor, ceiling = 146 - 22, 24
    for i, (expert, level) in enumerate(zip(EXPERTS, NOISE)):
        column = pixels[ceiling:floor, 10 + i * 100 + 50]
        bar = column[:, 3] > 200
        assert abs(bar.sum() - level * (floor - ceiling)) <= 2
        assert np.abs(column[bar][5, :3].astype(int) - palette(4)[expert]).max() <= 1
    assert len(set(palette(16))) == 16


@pytest.mark.parametrize("steps", [1, 2, 50, 1000])
@pytest.mark.parametrize("experts", [1, 2, 9])
def test_any_count_of_steps_and_experts(steps: int, experts: int) -> None:
    order = [experts - 1 - i * experts // steps for i in range(steps)]
    image = draw_timeline(order, [0.0] * steps, range(steps), size=(200, 90))
    assert image.getchannel("A").getextrema() == (0, 255)


def test_old_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    real = ImageFont.load_default
    monkeypatch.setattr(ImageFont, "load_default", lambda: real())
    assert draw_timeline(EXPERTS, NOISE, TIMESTEPS).size == (720, 150)
