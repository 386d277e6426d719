"""What a model is, as values: networks, process, experts and scale. Frozen, comparable, and JSON in and out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, ClassVar, TypeVar

from .errors import SettingError

T = TypeVar("T")


@dataclass(frozen=True)
class UNetConfig:
    """One time expert: the LDM UNet with a Space MoE layer after every attention block.

    `space_experts` is 0 for the plain LDM network, 1 for the averaged form used at inference, and N for the
    grouped form that is trained. `attention_downsamples` are downsampling rates (8 = one eighth of the latent).
    With `adapter_ranks` the network also takes two settings, each of which changes its convolutions by a map of that
    rank: restore (how degraded the LR image is) and fidelity.
    """

    kind: ClassVar[str] = "ldm"
    detail: ClassVar[int] = 1  # pixels of the condition per latent cell
    mask: ClassVar[bool] = False

    in_channels: int = 6
    out_channels: int = 3
    model_channels: int = 160
    channel_mult: tuple[int, ...] = (1, 2, 2, 4)
    num_res_blocks: int = 2
    attention_downsamples: tuple[int, ...] = (8,)
    num_head_channels: int = 32
    space_experts: int = 1
    #: Width of the hidden layer of a Space MoE's FFNs, per channel.
    ffn_mult: float = 4.0
    norm_groups: int = 32
    adapter_ranks: tuple[int, ...] = ()

    @property
    def takes_settings(self) -> bool:
        return bool(self.adapter_ranks)

    @property
    def multiple(self) -> int:
        """Sides of the latent must be multiples of this."""
        return 2 ** (len(self.channel_mult) - 1)

    @property
    def alignment(self) -> int:
        """Tiles of a latent should start at multiples of this."""
        return self.multiple


@dataclass(frozen=True)
class SwinUNetConfig:
    """A network of ResShift: a UNet with windowed attention behind the first residual block of its levels.

    `in_channels` are those of the latent alone. The LR image is shown 2^lr_downsamples times as large as the latent,
    with a channel more if the network takes a `mask` of what it is to fill in. `latent_size` is the side of the latents
    in training: levels that were no larger than a window then are never shifted. `shift_mask` is "released" or
    "textbook", see networks/swin_layers.py. `attention_downsamples` as in UNetConfig; the middle always attends.
    """

    kind: ClassVar[str] = "swin"
    takes_settings: ClassVar[bool] = False

    in_channels: int = 3
    out_channels: int = 3
    model_channels: int = 160
    channel_mult: tuple[int, ...] = (1, 2, 2, 4)
    num_res_blocks: tuple[int, ...] = (2, 2, 2, 2)
    attention_downsamples: tuple[int, ...] = (1, 2, 4, 8)
    num_head_channels: int = 32
    swin_depth: int = 2
    swin_channels: int = 192
    mlp_channels: int = 768
    window: int = 8
    latent_size: int = 64
    shift_mask: str = "released"
    lr_downsamples: int = 0
    mask: bool = False
    #: Whether the time embedding scales and shifts inside of residual blocks; if not, it is added.
    scale_shift: bool = True
    #: Whether levels are halved and doubled inside of residual blocks instead of by convolutions.
    resblock_resample: bool = False
    norm_groups: int = 32

    @property
    def detail(self) -> int:
        """Pixels of the LR image, along a side, per latent cell."""
        return 2**self.lr_downsamples

    @property
    def multiple(self) -> int:
        """Sides of the latent must be multiples of this: every level that attends consists of whole windows."""
        last = len(self.channel_mult) - 1
        levels = [i for i in range(last + 1) if i == last or 2**i in self.attention_downsamples]
        return math.lcm(self.alignment, *(2**i * self.window_of(i)[0] for i in levels))

    @property
    def alignment(self) -> int:
        return 2 ** (len(self.channel_mult) - 1)

    def window_of(self, level: int) -> tuple[int, int]:
        """Side of a level's windows, and by how much every second block shifts them."""
        side = max(self.latent_size >> level, 1)
        return (side, 0) if side <= self.window else (self.window, self.window // 2)


NetworkConfig = UNetConfig | SwinUNetConfig


@dataclass(frozen=True)
class AutoencoderConfig:
    """First stage and decoder: VQ or KL, optionally with LR fusion and the AFF refinement U-Net (FCD).

    `num_res_blocks`: of every level alike, or one number per level. `scale_factor` multiplies an encoded latent before
    diffusion and divides it before decoding. With `lr_skip` the decoder gives what is to be added to the upsampled LR
    image, and without `mid_attention` encoder and decoder are convolutions only (ours, for small models). With
    `estimator` a small network comes along that estimates how degraded an LR image is; one of `cleaner_channels` cleans
    it accordingly, before all else. With `adapter_ranks` the decoder takes the settings of the experts (ours).
    """

    kind: str = "vq"
    in_channels: int = 3
    out_channels: int = 3
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 4)
    num_res_blocks: int | tuple[int, ...] = 2
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
    #: Levels (0 is full resolution) with attention behind each of their residual blocks.
    attention_levels: tuple[int, ...] = ()
    scale_factor: float = 1.0
    estimator: bool = False
    cleaner_channels: int = 0
    adapter_ranks: tuple[int, ...] = ()

    @property
    def factor(self) -> int:
        """Output pixels per latent cell, along a side."""
        return 2 ** (len(self.ch_mult) - 1)

    @property
    def blocks(self) -> tuple[int, ...]:
        """Residual blocks of each level of the encoder, full resolution first; the decoder has one more."""
        n = self.num_res_blocks
        return n if isinstance(n, tuple) else (n,) * len(self.ch_mult)


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
    noise. `steps`, `sampler` and `fidelity` are what `upscale` uses when it is not told otherwise. `lr_resize` is how
    the first stage was shown LR images at output size in training: a key of images.condition.RESIZES.
    `restored_fidelity`: at restore r, fidelity f acts as f + (1 - f) r restored_fidelity.
    """

    unet: NetworkConfig = field(default_factory=UNetConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    process: ProcessConfig = field(default_factory=ProcessConfig)
    stages: tuple[int, ...] = (250, 500, 750, 1000)
    scale: int = 8
    steps: int = 50
    sampler: str = "auto"
    lr_resize: str = "matlab"
    name: str = ""
    fidelity: float = 1.0
    restored_fidelity: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able values; `ModelConfig.from_dict` is its inverse."""
        return {**asdict(self), "unet": unet_values(self.unet)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """Inverse of `to_dict`. Raises SettingError for unknown names: a newer file is never half understood."""
        parts = {"unet": _read_unet, "autoencoder": _bind(AutoencoderConfig), "process": _bind(ProcessConfig)}
        known = {k: parts[k](v, k) if k in parts else v for k, v in values.items()}
        return build(cls, known, "model")


def unet_values(config: NetworkConfig) -> dict[str, Any]:
    """Plain values of a network's config, with `kind` that says which network it is; files before it have none."""
    return {"kind": config.kind, **asdict(config)}


def with_space_experts(config: NetworkConfig, experts: int) -> NetworkConfig:
    """The same network with `experts` FFNs in each Space MoE layer; one without such layers as it is."""
    return replace(config, space_experts=experts) if isinstance(config, UNetConfig) else config


def averaged(config: NetworkConfig) -> NetworkConfig:
    """The same network with its FFN experts averaged into one, as it is used."""
    return with_space_experts(config, 1) if isinstance(config, UNetConfig) and config.space_experts else config


def uniform_stages(timesteps: int, experts: int) -> tuple[int, ...]:
    """Upper ends of `experts` equal ranges of timesteps (the paper's split: 250, 500, 750, 1000)."""
    return tuple(timesteps * (i + 1) // experts for i in range(experts))


def _read_unet(values: dict[str, Any], where: str) -> NetworkConfig:
    kinds = {cls.kind: cls for cls in (UNetConfig, SwinUNetConfig)}
    kind = values.get("kind", UNetConfig.kind)
    if kind not in kinds:
        raise SettingError(f"config of {where}: network {kind!r} is unknown; written by a newer version?")
    return build(kinds[kind], {k: v for k, v in values.items() if k != "kind"}, where)


def _bind(cls: type[T]) -> Callable[[dict[str, Any], str], T]:
    return lambda values, where: build(cls, values, where)


def build(cls: type[T], values: dict[str, Any], where: str) -> T:
    """A dataclass from JSON values, lists as tuples. Raises SettingError naming the entries that it does not have."""
    names = {f.name for f in fields(cls)}  # type: ignore[arg-type]  # every cls here is a dataclass
    unknown = sorted(set(values) - names)
    if unknown:
        raise SettingError(f"config of {where} has no entry {', '.join(unknown)}; it has {', '.join(sorted(names))}")
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
