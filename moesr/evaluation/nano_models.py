"""Models with random weights, of the full structure and a few channels: for self-tests that run in seconds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ..config import AutoencoderConfig, ModelConfig, NetworkConfig, ProcessConfig, SwinUNetConfig, UNetConfig
from ..diffusion.experts import All, ExpertBank
from ..diffusion.process import from_config
from ..model import SRModel
from ..networks.autoencoder import Autoencoder
from ..networks.denoiser import denoiser
from ..runtime import Runtime

_PROCESSES = {
    "ddpm": ProcessConfig(),
    "residual_shift": ProcessConfig(kind="residual_shift", predict="residual", kappa=1.0),
    "swin": ProcessConfig("residual_shift", 4, "x0", min_noise_level=0.2),
}
_UNET = UNetConfig(model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_downsamples=(2,), norm_groups=8)
_SWIN = SwinUNetConfig(
    model_channels=16, channel_mult=(1, 2), num_res_blocks=(1, 1), attention_downsamples=(1, 2), num_head_channels=8,
    swin_channels=16, mlp_channels=32, window=4, latent_size=8, norm_groups=4,
)  # fmt: skip

#: The decoder of Stable Diffusion's latents: KL f8, with LR fusion left out and the frequency U-Net.
NANO_KL = AutoencoderConfig(
    kind="kl", ch=16, ch_mult=(1, 1, 2, 2), num_res_blocks=1, z_channels=4, embed_dim=4, lr_fusion=False, norm_groups=4
)


def nano_config(kind: str) -> ModelConfig:
    """The config of a nano model.

    kind: "ddpm" (four time experts, VQ f4 with fusion and frequency U-Net), "residual_shift" (the same with residual
    shifting and the LR image as a skip), or "swin" (one Swin network of ResShift, plain VQ f4).
    """
    if kind == "swin":
        vae = AutoencoderConfig(
            ch=8, ch_mult=(1, 1, 1), num_res_blocks=1, n_embed=64, lr_fusion=False, refine=False, norm_groups=4
        )
        return ModelConfig(_SWIN, vae, _PROCESSES[kind], (4,), 4, 4, lr_resize="torch", name="nano_swin")
    autoencoder = AutoencoderConfig(
        ch=32, num_res_blocks=1, n_embed=64, norm_groups=8, fusion_growth=8, fusion_blocks=1,
        lr_skip=kind == "residual_shift",
    )  # fmt: skip
    return ModelConfig(
        name=f"nano_{kind}", scale=4, steps=4, unet=_UNET, autoencoder=autoencoder, process=_PROCESSES[kind]
    )


def build_denoiser(config: NetworkConfig, seed: int = 0) -> nn.Module:
    """A time expert on the CPU whose weights depend on the seed only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return denoiser(config).eval().requires_grad_(False)


def build_autoencoder(config: AutoencoderConfig, seed: int = 0) -> Autoencoder:
    """A first stage and decoder on the CPU whose weights depend on the seed only; its batch norms are not neutral."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Autoencoder(config)
        if config.kind == "vq":
            nn.init.normal_(network.quantize.embedding.weight)  # codes as far apart as latents are
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
                module.running_mean.uniform_(-0.2, 0.2)
                assert module.running_var is not None
                module.running_var.uniform_(0.5, 1.5)
    return network.eval().requires_grad_(False)


def build_nano(kind: str, device: torch.device, *, seed: int = 0) -> SRModel:
    """A nano model in float32 on a device: the same weights on every device. kind: as in `nano_config`."""
    config = nano_config(kind)
    experts = [build_denoiser(config.unet, seed + i).to(device) for i in range(len(config.stages))]
    autoencoder = build_autoencoder(config.autoencoder, seed).to(device)
    return assemble(config, experts, autoencoder, device=device, dtype=torch.float32)


def assemble(
    config: ModelConfig, experts: Sequence[nn.Module], autoencoder: Autoencoder, *, device: torch.device,
    dtype: torch.dtype,
) -> SRModel:  # fmt: skip
    """The model of networks that are on the device already."""
    process, bank = from_config(config.process), ExpertBank(config.stages, All(experts))
    return SRModel(config, process, bank, autoencoder, device, dtype, Runtime())
