"""Checkpoints for tests, of any size: written tensor by tensor, as torch.save lays them out, with random weights."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import subprocess
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, _utils, nn

from moesr.checkpoints.detect import EMA, FIRST_STAGE, UNET
from moesr.checkpoints.model_files import open_model
from moesr.config import AutoencoderConfig, ModelConfig, ProcessConfig, SwinUNetConfig, UNetConfig
from moesr.errors import MoESRError
from moesr.networks.autoencoder import Autoencoder
from moesr.networks.layers import Upsample
from moesr.networks.swin_layers import SwinBlock, WindowAttention, compute_position_index, mask_apart
from moesr.networks.swin_unet import SwinUNet
from moesr.networks.unet import Downsample, UNet

Shapes = Mapping[str, tuple[int, ...]]

#: Holds {key: shape} of the checkpoints that users have.
KEYS = Path(__file__).parent / "keys"

SMALL = UNetConfig(model_channels=32, channel_mult=(1,), num_res_blocks=1, attention_downsamples=())
FIRST = AutoencoderConfig(ch=32, ch_mult=(1, 1), num_res_blocks=1, n_embed=16, lr_fusion=False, refine=False)
VQ4 = AutoencoderConfig(ch=32, ch_mult=(1, 1, 1), num_res_blocks=1, n_embed=16, lr_fusion=False, refine=False)
FCD = AutoencoderConfig(ch=32, ch_mult=(1, 1), num_res_blocks=1, n_embed=16, fusion_growth=8, fusion_blocks=1)


def read_key_table(name: str) -> dict[str, tuple[int, ...]]:
    """{key: shape} of a published file."""
    content: dict[str, list[int]] = json.loads(gzip.decompress((KEYS / f"{name}.json.gz").read_bytes()))
    return {key: tuple(shape) for key, shape in content.items()}


class Pretended:
    """Pickles as a tensor would, with whatever is said of it."""

    def __init__(
        self,
        key: Any = "0",
        numel: Any = 4,
        offset: Any = 0,
        shape: Any = (4,),
        stride: Any = (1,),
        kind: str = "Float",
    ) -> None:
        self.storage = _Storage(("storage", getattr(torch, f"{kind}Storage"), key, "cpu", numel))
        self.window = (offset, shape, stride)

    def __reduce__(self) -> tuple[Any, ...]:
        return _utils._rebuild_tensor_v2, (self.storage, *self.window, False, OrderedDict())


class _Storage(tuple[Any, ...]):
    """A persistent id."""


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        return tuple(obj) if isinstance(obj, _Storage) else None


def listing(value: Any) -> bytes:
    """The data.pkl of a value with pretended tensors in it."""
    made = io.BytesIO()
    _Pickler(made, protocol=2).dump(value)
    return made.getvalue()


def write_checkpoint(path: Path, shapes: Shapes, seed: int = 0, **beside: Any) -> None:
    """A Lightning checkpoint with float32 normal numbers of std 0.02; `beside` stands beside its state_dict."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Pretended] = OrderedDict()
    for i, (name, shape) in enumerate(shapes.items()):
        stride = tuple(accumulate(shape[:0:-1], lambda a, b: a * b, initial=1))[::-1] if shape else ()
        state[name] = Pretended(str(i), torch.Size(shape).numel(), 0, shape, stride)
    content = listing({**beside, "state_dict": state})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, part in (("data.pkl", content), ("version", b"3\n"), ("byteorder", b"little")):
            archive.writestr(f"archive/{name}", part)
        for i, shape in enumerate(shapes.values()):
            numbers = torch.randn(shape, generator=generator).mul_(0.02)
            archive.writestr(_aligned(archive, f"archive/data/{i}"), numbers.reshape(-1).view(torch.uint8).numpy().data)


def _aligned(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    """A member whose content begins at a multiple of 64 bytes, as torch has it."""
    member = zipfile.ZipInfo(name)
    assert archive.fp is not None
    gap = -(archive.fp.tell() + 30 + len(name) + 4) % 64
    member.extra = b"FB" + gap.to_bytes(2, "little") + b"Z" * gap
    return member


@lru_cache(maxsize=32)
def random_state(kind: Callable[[Any], nn.Module], config: object, seed: int = 0) -> Mapping[str, Tensor]:
    """Normal numbers for every weight of a network."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        shapes = kind(config).state_dict()
    return {
        k: torch.randn(v.shape, generator=generator) if v.is_floating_point() else torch.zeros(v.shape, dtype=v.dtype)
        for k, v in shapes.items()
    }


def unet(experts: int = 2, **widths: Any) -> UNetConfig:
    """A small UNet with so many FFN experts."""
    return UNetConfig(**{**vars(SMALL), "space_experts": experts, **widths})


def stage_state(
    config: UNetConfig, first: AutoencoderConfig | None = FIRST, seed: int = 0, ema: bool = False
) -> dict[str, Tensor]:
    """What a released stage file holds under its state_dict; `first` is its first stage."""
    state: dict[str, Tensor] = {"betas": torch.zeros(1000)}
    state |= {UNET + k: v for k, v in random_state(UNet, config, seed).items()}
    if ema:
        names = {k: f"{EMA}diffusion_model{k.replace('.', '')}" for k in random_state(UNet, config, seed)}
        state |= {names[k]: v for k, v in random_state(UNet, config, seed + 100).items()}
        state |= {f"{EMA}decay": torch.tensor(0.9999), f"{EMA}num_updates": torch.tensor(7, dtype=torch.int32)}
    if first is not None:
        state |= {FIRST_STAGE + k: v for k, v in random_state(Autoencoder, first, 9).items()}
    return state


SWIN = SwinUNetConfig(
    model_channels=32, channel_mult=(1, 2), num_res_blocks=(1, 1), attention_downsamples=(1, 2), swin_channels=32,
    mlp_channels=64, window=4, latent_size=8,
)  # fmt: skip


SHIFT = ModelConfig(
    SWIN, VQ4, ProcessConfig("residual_shift", 4, "x0", min_noise_level=0.2), stages=(2, 4), scale=4, steps=4,
    lr_resize="torch",
)  # fmt: skip


def resshift_state(config: SwinUNetConfig = SWIN, seed: int = 0) -> dict[str, Tensor]:
    """What a published network of ResShift holds: its weights, and indices and masks that follow from its config."""
    state = dict(random_state(SwinUNet, config, seed))
    with torch.device("meta"):
        network = SwinUNet(config)
    for name, block in network.named_modules():
        if isinstance(block, SwinBlock):
            index = compute_position_index(block.attn.window, torch.device("cpu"))
            state[f"{name}.attn.relative_position_index"] = index
            if block.attn.shift:
                side = (config.latent_size >> _level(network, name)) // block.attn.window
                state[f"{name}.attn_mask"] = window_masks(block.attn, side, side)
    return state


def _level(network: SwinUNet, name: str) -> int:
    """At which level a layer of the network stands, by the halvings or doublings before it."""
    part, index = name.split(".")[:2]
    last = len(network.config.channel_mult) - 1
    if part == "middle_block":
        return last
    before = [layer for block in list(getattr(network, part))[: int(index)] for layer in block]
    steps = sum(isinstance(layer, (Downsample, Upsample)) for layer in before)
    return steps if part == "input_blocks" else last - steps


def window_masks(layer: WindowAttention, rows: int, columns: int) -> Tensor:
    """What a layer adds to the attention of each of rows x columns windows, row by row: [windows, N, N]."""
    n = layer.window**2
    full = torch.zeros(rows, columns, n, n)
    for row, along in layer.regions:
        for column, axes in along:
            if axes:
                full[row, column] = mask_apart(layer.window, layer.shift, axes, torch.device("cpu"), torch.float32)
    return full.flatten(0, 1)


def legacy(path: Path, value: Any) -> None:
    """As torch before 1.6 saved it."""
    torch.save(value, path, _use_new_zipfile_serialization=False)


def join_pickle(*parts: bytes) -> bytes:
    """A pickle of protocol 2 from raw operations."""
    return b"\x80\x02" + b"".join(parts) + b"."


def write_zip(path: Path, listing: bytes, storages: Mapping[str, bytes] | None = None, root: str = "archive") -> None:
    """A zip file of torch with a pickle of one's own."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{root}/data.pkl", listing)
        archive.writestr(f"{root}/version", b"3\n")
        for key, content in (storages or {}).items():
            archive.writestr(f"{root}/data/{key}", content)


def find_error(path: Path | list[Path], said: str = "", read: Callable[[Any], Any] = open_model) -> str:
    """The one line with which a file is refused, which holds `said`."""
    with pytest.raises(MoESRError) as caught:
        read(path)
    line = str(caught.value)
    assert "\n" not in line
    assert said in line
    return line


CANARY = "MOESR_CANARY"


class Payload:
    """Pickles as a call of any function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def set_canary() -> str:
    """Python that leaves a trace in the environment."""
    return f"import os; os.environ[{CANARY!r}] = 'dead'"


PAYLOADS = {
    "os.system": lambda: Payload(os.system, f"touch {os.environ['CANARY_FILE']}"),
    "eval": lambda: Payload(eval, f"__import__('os').environ.__setitem__({CANARY!r}, 'dead')"),
    "exec": lambda: Payload(exec, set_canary()),
    "subprocess": lambda: Payload(subprocess.Popen, ["touch", os.environ["CANARY_FILE"]]),
    "nested pickle": lambda: Payload(pickle.loads, pickle.dumps(Payload(exec, set_canary()))),
    "getattr": lambda: Payload(getattr, Payload(__import__, "os"), "system"),
}
