"""ResShift through the one pipeline: sizes, kinds of pictures, steps, masks, tiles; and its own tile policy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import moesr
from moesr.config import AutoencoderConfig, ModelConfig, ProcessConfig, SwinUNetConfig
from moesr.errors import SettingError
from moesr.evaluation.nano_models import assemble
from moesr.evaluation.published_tiling import Average, published_windows, upscale_published
from moesr.images.condition import Condition, pad
from moesr.images.tile_windows import Window, plan_windows
from moesr.model import SRModel
from moesr.networks.autoencoder import Autoencoder
from moesr.networks.swin_layers import MASKS, WindowAttention, compute_position_index, mask_apart
from moesr.networks.swin_unet import SwinUNet
from moesr.pipeline_run import Run
from moesr.progress import Event
from moesr.run_plan import plan_run
from moesr.settings import resolve
from tests.image_files import photo

UNET = SwinUNetConfig(
    model_channels=16, channel_mult=(1, 2), num_res_blocks=(1, 1), attention_downsamples=(1, 2), num_head_channels=8,
    swin_channels=16, mlp_channels=32, window=4, latent_size=8, norm_groups=4,
)  # fmt: skip
VQ = AutoencoderConfig(
    ch=8, ch_mult=(1, 1, 1), num_res_blocks=1, n_embed=64, lr_fusion=False, refine=False, norm_groups=4
)
SHIFT4 = ProcessConfig("residual_shift", 4, "x0", min_noise_level=0.2)
SHIFT15 = ProcessConfig("residual_shift", 15, "x0")


def config_of(process: ProcessConfig = SHIFT4, unet: SwinUNetConfig = UNET, vae: AutoencoderConfig = VQ) -> ModelConfig:
    return ModelConfig(
        unet, vae, process, (process.timesteps,), vae.factor // unet.detail, process.timesteps, lr_resize="torch"
    )


def model_of(*parts: Any) -> SRModel:
    """A tiny model with random weights, as `load` makes it."""
    config = config_of(*parts)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network, autoencoder = SwinUNet(config.unet), Autoencoder(config.autoencoder)  # type: ignore[arg-type]
        torch.nn.init.normal_(autoencoder.quantize.embedding.weight)  # codes as far apart as latents are
    experts = [network.eval().requires_grad_(False)]
    autoencoder.eval().requires_grad_(False)
    return assemble(config, experts, autoencoder, device=torch.device("cpu"), dtype=torch.float32)


@pytest.fixture(scope="module")
def model() -> SRModel:
    return model_of()


@pytest.mark.parametrize(("height", "width"), [(20, 20), (33, 100)])
@pytest.mark.parametrize("halvings", [1, 2])
def test_sizes_of_networks_that_see_more_than_the_latent(height: int, width: int, halvings: int) -> None:
    model = model_of(SHIFT4, replace(UNET, lr_downsamples=halvings))
    assert model.scale == 4 // 2**halvings
    out = moesr.upscale(model, photo(height, width))
    assert out.shape == (height * model.scale, width * model.scale, 3)
    assert moesr.upscale(model, photo(height, width), tile=64, steps=1).shape == out.shape


def test_the_first_stage_of_faces_runs_too() -> None:
    unet = replace(UNET, in_channels=8, out_channels=8, lr_downsamples=3)
    vae = replace(VQ, ch_mult=(1, 1, 1, 1), num_res_blocks=(1, 2, 1, 2), z_channels=8, embed_dim=8)
    seen: list[Event] = []
    out = moesr.upscale(model_of(SHIFT4, unet, vae), photo(40, 70), callback=seen.append)
    assert out.shape == (40, 70, 3)
    preview = seen[-1].preview
    assert preview is not None
    assert preview().size == (9, 5)  # a latent cell is 8 x 8 pixels; padding is not shown


def test_defaults_are_the_published_run() -> None:
    """`upscale` as it stands does every timestep, ancestrally: what its own policy does to an image of one tile."""
    model = model_of(SHIFT15)
    seen: list[Event] = []
    out = moesr.upscale(model, photo(13, 21), seed=3, color_fix="none", callback=seen.append)
    assert [e.t for e in seen if e.phase == "sample"] == list(range(15))[::-1]
    assert [e.tiles for e in seen] == [1] * 17
    published = upscale_published(model, photo(13, 21), seed=3)
    assert np.abs(out.astype(int) - published).max() <= 1
    exact = moesr.upscale(model, photo(13, 21), seed=3, color_fix="none", sampler="ddpm")
    assert np.array_equal(exact, published)
    assert not np.array_equal(out, moesr.upscale(model, photo(13, 21), seed=4, color_fix="none"))


def test_fewer_steps_keep_the_noisiest_and_published_respacing_is_there() -> None:
    model = model_of(SHIFT15)

    def timesteps(**settings: Any) -> list[int]:
        seen: list[Event] = []
        moesr.upscale(model, photo(6, 6), callback=seen.append, **settings)
        return [e.t for e in seen if e.phase == "sample"]

    assert timesteps(steps=5) == [14, 11, 8, 5, 2]
    assert timesteps(steps=5, spacing="leading") == [12, 9, 6, 3, 0]
    with pytest.raises(SettingError, match="15 timesteps"):
        timesteps(steps=16)


def test_the_deterministic_form_draws_nothing_but_its_start(model: SRModel) -> None:
    run = Run(plan_run(model, 16, 16, tile=0), torch.rand(1, 3, 16, 16))
    y = run.encode()
    assert y is not None

    def sampled(eta: float, steps: int = 4) -> tuple[Tensor, list[int]]:
        drawn: list[int] = []

        def noise(i: int) -> Tensor:
            drawn.append(i)
            return torch.full_like(y, 0.5 + i)

        return run.denoise(y, resolve(model.config, steps=steps, eta=eta), noise=noise), drawn

    assert sampled(0.0)[1] == [-1]
    assert sampled(1.0)[1] == [-1, 0, 1, 2]  # the last step adds none
    assert not torch.equal(sampled(0.0)[0], sampled(1.0)[0])
    assert torch.equal(sampled(0.0, 1)[0], sampled(1.0, 1)[0])  # one step is the network's answer, either way


def test_tiles_of_swin_networks_are_whole_windows_that_start_anywhere_aligned() -> None:
    unet = SwinUNetConfig()
    assert (unet.multiple, unet.alignment) == (64, 8)
    assert [unet.window_of(i) for i in range(4)] == [(8, 4), (8, 4), (8, 4), (8, 0)]
    windows = plan_windows(128, 192, 64, 8, unet.multiple, alignment=unet.alignment)
    assert {(w.h, w.w) for w in windows} == {(64, 64)}
    assert sorted({w.x0 for w in windows}) == [0, 40, 80, 128]
    assert all(w.y0 % 8 == w.x0 % 8 == 0 for w in windows)
    assert replace(unet, latent_size=32).multiple == 32  # 4 cells wide at the coarsest level
    assert replace(unet, attention_downsamples=(), latent_size=1024).multiple == 64  # the middle attends in any case


def test_a_size_that_is_no_multiple_is_refused_by_the_network() -> None:
    network = SwinUNet(UNET)
    with pytest.raises(ValueError, match="multiples of 8"):
        network(torch.zeros(1, 3, 8, 12), torch.zeros(1), torch.zeros(1, 3, 8, 12))


def test_norms_have_the_epsilons_of_the_released_networks() -> None:
    """All of them: where features are strong, nothing that comes out tells the two apart."""
    network = SwinUNet(UNET)
    norms = [m for m in network.modules() if isinstance(m, torch.nn.GroupNorm)]
    assert {n.eps for n in norms} == {1e-5}
    assert {m.eps for m in Autoencoder(VQ).modules() if isinstance(m, torch.nn.GroupNorm)} == {1e-6}


def test_padding_is_the_published_and_goes_on_where_that_ends() -> None:
    image = torch.rand(1, 4, 20, 27)
    assert torch.equal(pad(image, (32, 32)), F.pad(image, (0, 5, 0, 12), mode="reflect"))
    twice = pad(image[..., :5], (20, 19))
    assert torch.equal(twice[..., 5:9], image[..., :4].flip(-1))
    assert torch.equal(twice[..., 8:13], image[..., :5])
    assert torch.equal(pad(image[..., :1], (20, 9)), image[..., :1].expand(-1, -1, -1, 9))


@pytest.mark.parametrize("wrap", [False, True])
def test_the_upsampled_lr_is_torchs_and_not_clamped(wrap: bool) -> None:
    lr = torch.rand(1, 3, 32, 48).round() * 2 - 1
    condition = Condition(lr, 4, 4, 16, wrap, lr_resize="torch")
    whole = F.interpolate(lr, scale_factor=4, mode="bicubic")
    assert whole.abs().max() > 1.05
    assert torch.allclose(condition.upsampled(0, Window(8, 8, 8, 16))[0], whole[0, :, 32:64, 32:96], atol=1e-6)
    if not wrap:
        assert torch.allclose(condition.upsampled(0, Window(0, 0, 32, 48)), whole, atol=1e-6)
    assert Condition(lr, 1, 4, 4, wrap, 4, "torch").upsampled(0, Window(0, 0, 8, 12)).equal(lr)


def test_released_and_textbook_masks() -> None:
    """Where the two differ; the released ones themselves are in the recorded swin_block."""
    x, outputs = torch.randn(1, 16, 12, 12), []
    for mask in MASKS:
        torch.manual_seed(0)
        outputs.append(WindowAttention(16, 2, 4, 2, mask)(x))
    # The first windows attend alike; the last row and the last column do not.
    different = (outputs[0] - outputs[1]).abs().amax(1)[0] > 1e-6
    assert not different[2:10, 2:10].any()
    assert different[2:10, 10:].all()
    assert different[10:, 2:10].all()


def test_masks_are_few_kept_and_good_for_training() -> None:
    mask_apart.cache_clear()
    compute_position_index.cache_clear()
    layer = WindowAttention(16, 2, 4, 2, "released")
    with torch.inference_mode():
        for side in (4, 8, 12, 24):
            layer(torch.randn(1, 16, side, side + 4))
    assert mask_apart.cache_info().currsize == compute_position_index.cache_info().currsize == 1
    assert mask_apart.cache_info().maxsize == 64
    layer(torch.randn(1, 16, 8, 8)).sum().backward()  # what inference mode made can be differentiated through
    assert layer.relative_position_bias_table.grad is not None
    half = layer.to(torch.bfloat16)(torch.randn(1, 16, 8, 8, dtype=torch.bfloat16))
    assert half.dtype == torch.bfloat16
    assert mask_apart.cache_info().currsize == 2
    on_meta = WindowAttention(16, 2, 4, 2, "released").to("meta")
    assert on_meta(torch.zeros(1, 16, 8, 8, device="meta")).shape == (1, 16, 8, 8)


@pytest.fixture(scope="module")
def filler() -> SRModel:
    return model_of(SHIFT4, replace(UNET, lr_downsamples=2, mask=True))


def test_a_mask_is_filled_in(filler: SRModel) -> None:
    """Pixels outside of the mask come back as they were; those inside were never seen."""
    image, mask = photo(30, 41), np.zeros((30, 41), np.uint8)
    mask[10:20, 5:25] = 255
    out = moesr.upscale(filler, image, mask=mask)
    outside = mask == 0
    assert np.array_equal(out[outside], image[outside])
    assert np.abs(out.astype(int) - image)[~outside].mean() > 5
    other = image.copy()
    other[~outside] = 7
    assert np.array_equal(moesr.upscale(filler, other, mask=mask), out)
    assert np.array_equal(moesr.upscale(filler, other, mask=Image.fromarray(mask)), out)
    everywhere = upscale_published(filler, other, mask=mask, seed=1)
    assert np.array_equal(everywhere[outside], image[outside])
    with pytest.raises(SettingError, match="give a mask"):
        moesr.upscale(filler, image)
    with pytest.raises(SettingError, match="give a mask"):
        upscale_published(filler, image)


def test_a_mask_is_shown_to_the_network_as_its_last_channel(filler: SRModel) -> None:
    run_mask = torch.zeros(30, 41)
    run_mask[3:9, 3:9] = 1
    seen: list[Tensor] = []
    with filler.bank.stage(0) as network:
        handle = network.register_forward_pre_hook(lambda _, args: seen.append(args[2]))
        moesr.upscale(filler, torch.rand(2, 30, 41, 3), mask=run_mask, tile_batch=2)
        handle.remove()
    assert seen[0].shape == (2, 4, 32, 64)
    for shown in seen[0]:
        assert torch.equal(shown[3, :30, :41], run_mask)
        assert (shown[:3, 3:9, 3:9] == 0).all()
        assert (shown[:3, 9:30, :41] != 0).float().mean() > 0.9


def test_the_published_policy_averages_clamped_tiles(model: SRModel) -> None:
    """Its result is the plain mean of what each tile gives alone, from the same noises."""
    image = torch.rand(1, 21, 30, 3)
    windows = published_windows(21, 30, 16, 12)
    assert [(w.y0, w.x0) for w in windows] == [(0, 0), (0, 12), (0, 14), (5, 0), (5, 12), (5, 14)]
    generator = torch.Generator().manual_seed(0)
    noises = torch.randn(len(windows), 5, 1, 3, 16, 16, generator=generator)
    out = upscale_published(model, image, chop=16, stride=12, noise=lambda tile, draw: noises[tile, draw])
    average = Average(3, 84, 120, torch.device("cpu"))
    for k, w in enumerate(windows):
        tile = image[:, w.y0 : w.y0 + w.h, w.x0 : w.x0 + w.w]
        alone = upscale_published(model, tile, noise=lambda _, draw, k=k: noises[k, draw])
        average.add(alone[0].permute(2, 0, 1), w.scaled(4))
    assert torch.allclose(out[0].permute(2, 0, 1), average.rows(0, 84), atol=1e-5)
    assert average.count.max() == 6
    with pytest.raises(SettingError, match="step"):
        upscale_published(model, image, chop=16, stride=17)


@pytest.mark.parametrize(
    ("halvings", "chop", "tile", "stride"),
    [(0, None, 512, 448), (0, 256, 256, 224), (0, 64, 64, 48), (0, 40, 40, 35), (1, None, 1024, 896),
     (2, 256, 256, 192)],
)  # fmt: skip
def test_published_tiles_overlap_by_what_belongs_to_their_size(
    halvings: int, chop: int | None, tile: int, stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []

    def windows(height: int, width: int, *sizes: int) -> list[Window]:
        seen.append(sizes)
        return published_windows(height, width, *sizes)

    monkeypatch.setattr("moesr.evaluation.published_tiling.published_windows", windows)
    upscale_published(model_of(SHIFT4, replace(UNET, lr_downsamples=halvings)), photo(4, 4), chop=chop, steps=1)
    assert seen == [(tile, stride)]
