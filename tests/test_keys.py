"""The keys, shapes, sizes and costs of the checkpoints that users have, without any of their weights.

tests/keys holds {key: shape} of every such file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from moesr.checkpoints.detect import EMA, FIRST_STAGE, UNET, read_autoencoder_config, read_unet_config, under
from moesr.checkpoints.swin import BUFFERS as MADE_HERE
from moesr.checkpoints.swin import is_swin, read_swin_config
from moesr.config import AutoencoderConfig, SwinUNetConfig, UNetConfig
from moesr.evaluation.speed.measure import count_products
from moesr.networks.autoencoder import Autoencoder
from moesr.networks.swin_unet import SwinUNet
from moesr.networks.unet import ResBlock, UNet
from tests.checkpoint_files import KEYS, read_key_table

Shapes = dict[str, tuple[int, ...]]

BUFFERS = (
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance",
    "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2",
)  # fmt: skip

#: file: (its config, parameters)
UNETS = {
    "unet_1224_1ffn": (UNetConfig(channel_mult=(1, 2, 2, 4), space_experts=1), 133_310_243),
    "unet_1224_4ffn": (UNetConfig(channel_mult=(1, 2, 2, 4), space_experts=4), 192_350_243),
    "unet_1224_16ffn": (UNetConfig(channel_mult=(1, 2, 2, 4), space_experts=16), 428_510_243),
    "unet_1244_1ffn": (UNetConfig(channel_mult=(1, 2, 4, 4), space_experts=1), 177_664_163),
    "unet_1244_4ffn": (UNetConfig(channel_mult=(1, 2, 4, 4), space_experts=4), 236_704_163),
    "unet_1244_16ffn": (UNetConfig(channel_mult=(1, 2, 4, 4), space_experts=16), 472_864_163),
}
#: file: (its config, parameters)
AUTOENCODERS = {
    "vqmodel_resiunet_fa_vae": (AutoencoderConfig(), 72_058_014),
    "vqmodelinterface_first_stage": (AutoencoderConfig(lr_fusion=False, refine=False), 55_322_782),
    "autoencoder_klaff_fa_vae": (
        AutoencoderConfig(
            kind="kl", ch_mult=(1, 2, 4, 4), z_channels=4, embed_dim=4, lr_fusion=False, scale_factor=0.18215
        ),
        89_893_095,
    ),
    "resshift_vq_f4": (AutoencoderConfig(lr_fusion=False, refine=False), 55_322_782),
    "resshift_vq_f8_face512": (
        AutoencoderConfig(
            ch=64, ch_mult=(1, 2, 4, 8), num_res_blocks=(1, 2, 3, 4), z_channels=8, embed_dim=8, n_embed=4096,
            lr_fusion=False, refine=False,
        ),
        77_009_115,
    ),
}  # fmt: skip
#: ResShift's networks: file: (its config, parameters)
SWIN_UNETS = {
    "resshift_unet_realsr_v1v2": (SwinUNetConfig(), 118_593_583),
    "resshift_unet_realsr_v3_journal": (SwinUNetConfig(), 118_593_583),
    "resshift_unet_bicsr": (SwinUNetConfig(), 118_593_583),
    "resshift_unet_realsr_x2": (SwinUNetConfig(lr_downsamples=1), 118_640_431),
    "resshift_unet_inpaint": (SwinUNetConfig(lr_downsamples=2, mask=True), 118_714_399),
    "resshift_unet_faceir": (SwinUNetConfig(in_channels=8, out_channels=8, lr_downsamples=3), 118_931_604),
}
#: file: (Space MoE experts, width of the UNet, width of the first stage, number of keys)
STAGES = {
    "stage_checkpoint": (16, 160, 128, 1623),
    "small_stage_checkpoint": (16, 32, 32, 1623),
    "ldm_bsr_sr_checkpoint": (0, 160, 128, 831),
}


def on_meta(kind: Callable[[Any], nn.Module], config: object) -> Any:
    with torch.device("meta"):
        return kind(config).eval()


def shapes_of(kind: Callable[[Any], nn.Module], config: object) -> Shapes:
    return {k: tuple(v.shape) for k, v in on_meta(kind, config).state_dict().items()}


def count(kind: Callable[[Any], nn.Module], config: object) -> int:
    return sum(p.numel() for p in on_meta(kind, config).parameters())


def test_every_table_is_used() -> None:
    assert {p.name.split(".")[0] for p in KEYS.iterdir()} == {
        *UNETS, *AUTOENCODERS, *STAGES, *SWIN_UNETS
    }  # fmt: skip


@pytest.mark.parametrize("name", [*UNETS, *AUTOENCODERS])
def test_a_network_is_known_by_its_keys(name: str) -> None:
    found, is_unet = read_key_table(name), name in UNETS
    expected, parameters = (UNETS if is_unet else AUTOENCODERS)[name]
    kind: Any = UNet if is_unet else Autoencoder
    assert (read_unet_config(found) if is_unet else read_autoencoder_config(found)) == expected
    assert shapes_of(kind, expected) == found
    assert count(kind, expected) == parameters


@pytest.mark.parametrize("name", SWIN_UNETS)
def test_swin_unet_is_known_by_its_keys(name: str) -> None:
    found = read_key_table(name)
    expected, parameters = SWIN_UNETS[name]
    assert is_swin(found)
    config = read_swin_config(found)
    assert config == expected
    network = on_meta(SwinUNet, config)
    made = {k: s for k, s in found.items() if k.endswith(MADE_HERE)}
    assert {k: tuple(v.shape) for k, v in network.state_dict().items()} == {k: found[k] for k in found.keys() - made}
    assert sum(p.numel() for p in network.parameters()) == parameters
    # what is made here instead has the shapes of the file's: index [N, N], mask [windows, N, N] of shifted blocks only
    assert sum(torch.Size(s).numel() for s in made.values()) == 761_856
    shifted = {k.removesuffix(".attn_mask") for k in made if k.endswith(".attn_mask")}
    ours = {k for k, m in network.named_modules() if getattr(getattr(m, "attn", None), "shift", 0)}
    assert shifted == ours == {f"{layer}.blocks.1" for layer in SHIFTED}


#: Layers of ResShift's networks whose every second block is shifted: all but those of 8 x 8 latents.
SHIFTED = [f"input_blocks.{i}.1" for i in (1, 4, 7)] + [f"output_blocks.{i}.1" for i in (3, 6, 9)]


def test_shapes_that_were_never_released_are_known_by_their_keys() -> None:
    moe = UNetConfig(
        model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_downsamples=(2,), space_experts=4,
        ffn_mult=1.5,
    )  # fmt: skip
    assert read_unet_config(shapes_of(UNet, moe)) == moe
    plain = SwinUNetConfig(
        model_channels=32, channel_mult=(1, 2), num_res_blocks=(1, 1), attention_downsamples=(1, 2), swin_channels=32,
        mlp_channels=64, window=4, latent_size=8, lr_downsamples=2, mask=True, scale_shift=False,
        resblock_resample=True,
    )  # fmt: skip
    assert read_swin_config(shapes_of(SwinUNet, plain)) == plain
    first = AutoencoderConfig(
        ch=32, ch_mult=(1, 2, 2), num_res_blocks=1, n_embed=16, lr_fusion=False, refine=False, attention_levels=(1, 2)
    )
    assert read_autoencoder_config(shapes_of(Autoencoder, first)) == first


def test_a_residual_block_resamples_both_of_its_branches() -> None:
    x, emb = torch.randn(1, 32, 4, 6), torch.zeros(1, 8)
    for resize, wanted in (("up", x.repeat_interleave(2, 2).repeat_interleave(2, 3)), ("down", None)):
        block = ResBlock(32, 32, 8, resize=resize)
        torch.nn.init.zeros_(block.out_layers[3].weight)  # type: ignore[arg-type]  # only the skip is left
        torch.nn.init.zeros_(block.out_layers[3].bias)  # type: ignore[arg-type]
        mean = x.reshape(1, 32, 2, 2, 3, 2).mean((3, 5)) if wanted is None else wanted
        assert torch.allclose(block(x, emb), mean, atol=1e-6)


def test_cost_of_a_step_of_resshift() -> None:
    network, z = on_meta(SwinUNet, SwinUNetConfig()), torch.zeros(1, 3, 64, 64, device="meta")
    cost = tera(lambda: network(z, torch.zeros(1, device="meta"), z))
    # how fused attention is counted differs between versions of torch
    assert cost["all"] == pytest.approx(101_323_300_864 / 2e12, rel=0.005)
    assert cost["aten.convolution"] == pytest.approx(93_769_695_232 / 2e12, rel=1e-9)


@pytest.mark.parametrize("name", STAGES)
def test_every_key_of_a_stage_checkpoint_is_accounted_for(name: str) -> None:
    found = read_key_table(name)
    experts, width, first_stage_width, keys = STAGES[name]
    assert len(found) == keys
    unet = read_unet_config(under(found, UNET))
    first_stage = read_autoencoder_config(under(found, FIRST_STAGE))
    assert (unet.space_experts, unet.model_channels, unet.channel_mult) == (experts, width, (1, 2, 2, 4))
    assert first_stage.ch == first_stage_width
    assert not first_stage.lr_fusion
    assert not first_stage.refine
    network = shapes_of(UNet, unet)
    expected: Shapes = dict.fromkeys(BUFFERS, (1000,))
    expected |= {UNET + k: v for k, v in network.items()}
    expected |= {f"{EMA}diffusion_model{k.replace('.', '')}": v for k, v in network.items()}
    expected |= {f"{EMA}decay": (), f"{EMA}num_updates": ()}
    expected |= {FIRST_STAGE + k: v for k, v in shapes_of(Autoencoder, first_stage).items()}
    assert expected == found


def test_parameters_are_those_of_the_paper() -> None:
    decoder, first_stage = (AUTOENCODERS[name][1] for name in ("vqmodel_resiunet_fa_vae", "resshift_vq_f4"))
    parts = on_meta(Autoencoder, AutoencoderConfig()).decoder
    fcd = (*parts.fusion_layer_1.parameters(), *parts.unet_1.parameters())
    assert sum(p.numel() for p in fcd) / 1e6 == pytest.approx(16.74, abs=0.01)
    # the paper's Table 6: 605.30 M, and 168.95 M for LDM
    assert 4 * count(UNet, UNetConfig()) + decoder == 605_298_986
    assert count(UNet, UNetConfig(space_experts=0)) + first_stage == 168_945_345


def tera(run: Callable[[], object], plainly: bool = False) -> dict[str, float]:
    """Multiply-adds of `run` in units of 1e12, by operator and in all; `plainly`: as in training, layer by layer."""
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(plainly):
        run()
    by_operator = {str(op): n / 2e12 for op, n in counter.get_flop_counts()["Global"].items()}
    return {**by_operator, "all": counter.get_total_flops() / 2e12}


@pytest.mark.parametrize(
    ("experts", "conv_and_linear", "everything"),
    [(1, 0.16581464064, 0.16631795712), (0, 0.16078147584, 0.16128479232)],
    ids=["averaged", "ldm"],
)
def test_cost_of_a_step_is_that_of_the_paper(experts: int, conv_and_linear: float, everything: float) -> None:
    network = on_meta(UNet, UNetConfig(space_experts=experts))
    x, t = torch.zeros(1, 6, 128, 128, device="meta"), torch.zeros(1, device="meta")
    cost = tera(lambda: network(x, t))
    assert cost["aten.convolution"] + cost["aten.addmm"] == pytest.approx(conv_and_linear, rel=1e-9)
    assert cost["all"] == pytest.approx(everything, rel=1e-9)  # attention over 256 tokens is the rest
    assert count_products(lambda: network(x, t)) == pytest.approx(everything, rel=1e-9)  # as the benchmark tells it


def test_cost_of_decoding_is_that_of_the_paper() -> None:
    network = on_meta(Autoencoder, AutoencoderConfig())
    image, z = torch.zeros(1, 3, 512, 512, device="meta"), torch.zeros(1, 3, 128, 128, device="meta")
    features = network.features(image)
    assert features.shape == (1, 256, 256, 256)
    decode = tera(lambda: network.decode(z, features))
    plain = tera(lambda: network.decode(z, features), plainly=True)  # as the paper counts
    assert plain["aten.convolution"] == pytest.approx(2.304023609344, rel=1e-9)
    # as it is used: the rows that two bands share are computed twice
    assert decode["aten.convolution"] == pytest.approx(2.304023609344, rel=0.005)
    # how fused attention is counted differs between versions of torch
    assert decode["all"] == pytest.approx(2.590670733312, rel=0.005)
    assert tera(lambda: network.decode(z, features, 0.0))["all"] < decode["all"] - 0.68  # no fusion, no cost
    # only as far as the second level: a third of the encoder's cost
    assert tera(lambda: network.features(image))["all"] == pytest.approx(0.302627422208, rel=1e-9)
    assert tera(lambda: network.encode(image))["all"] == pytest.approx(0.896633290752, rel=0.005)
