"""The pipeline on small random models: sizes, kinds, tiles, noise, cancel, memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import moesr
from moesr.errors import ImageError, NumericsError, SettingError
from moesr.model import SRModel
from moesr.progress import Event
from tests.image_files import photo


@pytest.mark.parametrize(("scale", "size"), [(0.1, (1, 1)), (1, (9, 11)), (2.5, (23, 28)), (8, (72, 88))])
def test_any_scale_by_a_final_resize(model: SRModel, scale: float, size: tuple[int, int]) -> None:
    assert moesr.upscale(model, photo(9, 11), scale=scale, steps=1).shape[:2] == size


def test_the_same_kind_comes_back(model: SRModel) -> None:
    pixels = photo(8, 9)
    for mode in ("RGB", "L", "RGBA", "LA", "P"):
        out = moesr.upscale(model, Image.fromarray(pixels).convert(mode), steps=1)
        assert isinstance(out, Image.Image)
        assert (out.size, out.mode) == ((36, 32), {"P": "RGB"}.get(mode, mode))
    assert moesr.upscale(model, pixels[..., 0], steps=1).shape == (32, 36)
    for channels in (1, 3, 4):
        out = moesr.upscale(model, torch.rand(2, 8, 9, channels), steps=1)
        assert out.shape == (2, 32, 36, channels)
        assert out.dtype == torch.float32
        assert 0 <= out.min() <= out.max() <= 1


def test_what_is_no_image_is_one_line(model: SRModel) -> None:
    for wrong in ("photo.png", np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8), torch.rand(3, 4, 4), None):
        with pytest.raises(ImageError) as error:
            moesr.upscale(model, wrong)
        assert "\n" not in str(error.value)
    with pytest.raises(ImageError):
        moesr.upscale(model, torch.full((1, 4, 4, 3), torch.nan))


def test_restore_is_for_models_that_take_it(model: SRModel) -> None:
    with pytest.raises(SettingError, match=r"^restore[^\n]*$"):
        moesr.upscale(model, photo(8, 8), restore=0.5)


@pytest.mark.parametrize("sampler", ["ddpm", "ddpm_large", "ddim", "dpmpp_2m"])
def test_every_sampler_runs_the_asked_number_of_steps(model: SRModel, sampler: str) -> None:
    seen: list[Event] = []
    moesr.upscale(model, photo(8, 8), steps=7, sampler=sampler, callback=seen.append)
    assert [e.step for e in seen if e.phase == "sample"] == [1, 2, 3, 4, 5, 6, 7]


def test_stream_and_all_give_equal_bytes(nano: Path, model: SRModel) -> None:
    streamed = moesr.upscale(moesr.load(nano, residency="stream"), photo(20, 30), tile=64)
    assert np.array_equal(streamed, moesr.upscale(model, photo(20, 30), tile=64))


def test_tile_batch_changes_no_more_than_a_grey_level(model: SRModel) -> None:
    one, four = (moesr.upscale(model, photo(40, 50), tile=64, tile_batch=n).astype(int) for n in (1, 4))
    assert np.mean(np.abs(one - four) <= 1) >= 0.999


def test_noise_belongs_to_the_image(model: SRModel) -> None:
    images = torch.from_numpy(np.stack([photo(10, 12, 1), photo(10, 12, 1)])).float() / 255
    together = moesr.upscale(model, images, seed=5)
    alone = moesr.upscale(model, images[:1], seed=5)
    assert torch.allclose(together[:1], alone, atol=2e-3)
    assert (together[0] - together[1]).abs().max() > 2e-2
    same = moesr.upscale(model, images, seed=5, batch_seed="same")
    assert torch.allclose(same[0], same[1], atol=2e-3)
    assert (moesr.upscale(model, images[:1], seed=6) - alone).abs().max() > 2e-2


def test_global_generators_are_left_alone(model: SRModel) -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    moesr.upscale(model, photo(8, 8))
    assert torch.equal(before, torch.random.get_rng_state())


def test_events_tell_tile_step_and_expert(model: SRModel) -> None:
    seen: list[Event] = []
    moesr.upscale(model, photo(40, 24), tile=96, steps=8, callback=seen.append)
    sampled = [e for e in seen if e.phase == "sample"]
    tiles = sampled[0].tiles
    assert tiles > 1
    assert [(e.step, e.tile) for e in sampled] == [(s, k) for s in range(1, 9) for k in range(1, tiles + 1)]
    assert [e.expert for e in sampled[::tiles]] == [3, 3, 2, 2, 1, 1, 0, 0]
    assert [e.phase for e in seen if e.phase != "sample"] == (
        ["encode"] * tiles * (model.process.kind == "residual_shift") + ["decode"] * tiles
    )
    assert [e.tile for e in seen if e.phase == "decode"] == list(range(1, tiles + 1))
    preview = sampled[-1].preview
    assert preview is not None
    pixels = 4 if model.config.autoencoder.lr_skip else 1  # per latent cell: decoded, or mapped to colours
    assert preview().size == (24 * pixels, 40 * pixels)


def test_the_preview_has_the_colours_of_the_picture() -> None:
    tiny, seen = moesr.load("tiny", device="cpu"), []
    picture = np.zeros((24, 24, 3), np.uint8)
    picture[:, :12], picture[:, 12:] = (200, 60, 30), (20, 120, 220)
    moesr.upscale(tiny, picture, steps=2, callback=lambda event: seen.append(event.preview and event.preview()))
    for drawn in seen:
        for left, colour in ((0, (200, 60, 30)), (0.5, (20, 120, 220))):
            w = drawn.width
            part = np.asarray(drawn.convert("RGB"))[:, int(w * (left + 0.1)) : int(w * (left + 0.4))]
            assert np.abs(part.reshape(-1, 3).mean(0) - colour).max() < 20


def test_what_a_callback_raises_stops_at_once(model: SRModel) -> None:
    class Cancelled(BaseException):
        pass

    seen = []

    def cancel(event: Event) -> None:
        seen.append(event)
        if event.phase == "sample" and event.step == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        moesr.upscale(model, photo(8, 8), callback=cancel)
    assert seen[-1].step == 2
    moesr.upscale(model, photo(8, 8), steps=1)  # and the model still works


def test_out_of_memory_with_the_smallest_tile_is_one_line(nano: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(self: torch.nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: 9 bytes")

    model = moesr.load(nano, residency="all")
    monkeypatch.setattr(torch.nn.Conv2d, "forward", never)
    with pytest.raises(SettingError, match="out of memory even with tiles of"):
        moesr.upscale(model, photo(30, 30))


def test_weights_that_are_not_numbers_are_found(nano: Path) -> None:
    model = moesr.load(nano, residency="all")
    model.autoencoder.decoder.conv_out.weight.fill_(torch.nan)
    with pytest.raises(NumericsError, match="fp32"):
        moesr.upscale(model, photo(8, 8), steps=1)


def test_mask_limits_the_change(model: SRModel) -> None:
    from moesr.images.resize import resize

    image = torch.from_numpy(photo(16, 16))[None].float() / 255
    mask = np.zeros((16, 16), np.float32)
    mask[:, 8:] = 1
    out = moesr.upscale(model, image, mask=mask, steps=2)
    plain = resize(image.permute(0, 3, 1, 2), (64, 64)).clamp(0, 1).permute(0, 2, 3, 1)
    full = moesr.upscale(model, image, steps=2)
    assert torch.allclose(out[:, :, :24], plain[:, :, :24], atol=1e-5)
    assert torch.allclose(out[:, :, 40:], full[:, :, 40:], atol=1e-5)
    with pytest.raises(ImageError, match="mask"):
        moesr.upscale(model, image, mask=np.zeros((3, 16, 16)))
