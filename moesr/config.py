"""What a model is, as values: networks, process, experts and scale. Frozen, comparable, and JSON in and out."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

from .errors import SettingError

T = TypeVar("T")


@dataclass(frozen=True)
class UNetConfig:
    """One time expert: the LDM UNet with a Space MoE layer after every attention block.

    `space_experts` is 0 for the plain LDM network, 1 for the averaged form used at inference, and N for the
    grouped form that is trained. `attention_downsamples` are downsampling rates (8 = one eighth of the latent).
    """

    in_channels: int = 6
    out_channels: int = 3
    model_channels: int = 160
    channel_mult: tuple[int, ...] = (1, 2, 2, 4)
    num_res_blocks: int = 2
    attention_downsamples: tuple[int, ...] = (8,)
    num_head_channels: int = 32
    space_experts: int = 1
    norm_groups: int = 32

    @property
    def multiple(self) -> int:
        """Sides of the latent must be multiples of this."""
        return 2 ** (len(self.channel_mult) - 1)


@dataclass(frozen=True)
class AutoencoderConfig:
    """First stage and decoder: VQ or KL, optionally with LR fusion and the AFF refinement U-Net (FCD).

    `scale_factor` multiplies an encoded latent before diffusion and divides it before decoding. With `lr_skip` the
    decoder gives what is to be added to the upsampled LR image, and without `mid_attention` encoder and decoder are
    convolutions only (ours, for small models).
    """

    kind: str = "vq"
    in_channels: int = 3
    out_channels: int = 3
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 4)
    num_res_blocks: int = 2
    z_channels: int = 3
    embed_dim: int = 3
    n_embed: int = 8192
    lr_fusion: bool = True
    lr_skip: bool = False
    refine: bool = True
    refine_mult: tuple[int, ...] = (1, 1, 2, 2)
    filter_expansion: int = 1
    fusion_growth: int = 32
    fusion_blocks: int = 2
    norm_groups: int = 32
    mid_attention: bool = True
    scale_factor: float = 1.0

    @property
    def factor(self) -> int:
        """Image pixels a latent cell."""
        return 2 ** (len(self.ch_mult) - 1)


@dataclass(frozen=True)
class ProcessConfig:
    """A diffusion process: `ddpm` (paper, eq. 1 to 3) or `residual_shift` (ResShift). See diffusion/process.py."""

    kind: str = "ddpm"
    timesteps: int = 1000
    predict: str = "eps"
    linear_start: float = 0.0015
    linear_end: float = 0.0155
    kappa: float = 2.0
    power: float = 0.3
    min_noise_level: float = 0.04
    etas_end: float = 0.99
    normalize_input: bool = True


@dataclass(frozen=True)
class ModelConfig:
    """Everything that is needed to build a model and that its weights do not say.

    `stages` are the upper ends (exclusive) of the experts' ranges of timesteps, ascending; expert 0 has the least
    noise. `steps`, `sampler` and `spacing` are what `upscale` uses when it is not told otherwise.
    """

    unet: UNetConfig = field(default_factory=UNetConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    process: ProcessConfig = field(default_factory=ProcessConfig)
    stages: tuple[int, ...] = (250, 500, 750, 1000)
    scale: int = 8
    steps: int = 50
    sampler: str = "auto"
    name: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able values; `ModelConfig.from_dict` is its inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """Inverse of `to_dict`. Raises SettingError for unknown names: a newer file is never half understood."""
        parts = {"unet": UNetConfig, "autoencoder": AutoencoderConfig, "process": ProcessConfig}
        known = {k: build(parts[k], v, k) if k in parts else v for k, v in values.items()}
        return build(cls, known, "model")


def uniform_stages(timesteps: int, experts: int) -> tuple[int, ...]:
    """Upper ends of `experts` equal ranges of timesteps (the paper's split: 250, 500, 750, 1000)."""
    return tuple(timesteps * (i + 1) // experts for i in range(experts))


def build(cls: type[T], values: dict[str, Any], where: str) -> T:
    """A dataclass from JSON values, lists as tuples. Raises SettingError naming the entries that it does not have."""
    names = {f.name for f in fields(cls)}  # type: ignore[arg-type]  # every cls here is a dataclass
    unknown = sorted(set(values) - names)
    if unknown:
        raise SettingError(f"config of {where}: unknown entries {', '.join(unknown)}; written by a newer version?")
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
