"""SRModel: experts, process, autoencoder and config, ready to run on a device."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch
from torch import nn

from .checkpoints.files import ModelFiles, build, open_model
from .checkpoints.library import find
from .config import ModelConfig
from .diffusion.experts import All, ExpertBank, Residency, Stream
from .diffusion.process import Process, from_config
from .errors import SettingError
from .host import Host, NullHost
from .networks.autoencoder import Autoencoder
from .networks.denoiser import denoiser

log = logging.getLogger(__name__)

Source = str | PathLike[str] | Sequence[str | PathLike[str]]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(eq=False)
class SRModel:
    """A super-resolution model: `bank` gives the expert of a timestep, `autoencoder` encodes and decodes.

    Made by `moesr.load`. `notes` say what had to be assumed about its files. Networks compute in `dtype`; latents and
    images between them are float32.
    """

    config: ModelConfig
    process: Process
    bank: ExpertBank
    autoencoder: Autoencoder
    device: torch.device
    dtype: torch.dtype
    host: Host
    paths: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def scale(self) -> int:
        """Output pixels per input pixel, as the model was trained."""
        return self.config.scale

    def close(self) -> None:
        """Let go of the experts; the model is of no use after that."""
        self.bank.close()


def load(
    source: Source = "tiny",
    *,
    dtype: str = "auto",
    device: str | torch.device = "auto",
    residency: str = "auto",
    scale: int | None = None,
    timesteps: int | None = None,
    host: Host | None = None,
) -> SRModel:
    """A model ready for `upscale`.

    source: a name in the library, a file, a folder, or a list of stage files (and a decoder). dtype: auto, fp32, bf16
    or fp16; auto is fp16 on CUDA and fp32 elsewhere. device: auto or what torch calls it. residency: "all" keeps every
    expert on the device, "stream" the one at work and the next; auto streams if all would take more than half of the
    free memory. scale: for files that do not say theirs. timesteps: for ResShift's files, which do not say theirs
    either: 15 or 4, by default as their names have it. Raises CheckpointError for files that are not a whole model,
    SettingError for an option that does not exist.
    """
    host = host or NullHost()
    where = _device(device)
    files = open_model(_locate(source), scale, timesteps)
    number = _dtype(dtype, where)
    config = files.config

    def expert(i: int) -> nn.Module:
        return build(denoiser, config.unet, files.expert(i), number, where, f"expert {i} of {_name(files)}")

    keeper = _residency(residency, files, number, where, host)
    experts = range(len(config.stages))
    resident: Residency = All([expert(i) for i in experts]) if keeper == "all" else Stream(expert)
    autoencoder = build(
        Autoencoder, config.autoencoder, files.autoencoder(), number, where, f"decoder of {_name(files)}"
    )
    log.info("%s: %d experts, x%d, %s on %s, %s", _name(files), len(experts), config.scale, number, where, keeper)
    return SRModel(
        config=config,
        process=from_config(config.process),
        bank=ExpertBank(config.stages, resident),
        autoencoder=autoencoder,
        device=where,
        dtype=number,
        host=host,
        paths=files.paths,
        notes=files.notes,
    )


def _locate(source: Source) -> Path | list[Path]:
    if isinstance(source, (str, PathLike)):
        return find(str(source))
    paths = [Path(p) for p in source]
    if not paths:
        raise SettingError("no model: the list of files is empty")
    return paths


def _name(files: ModelFiles) -> str:
    return files.config.name or str(files.paths[0])


def _device(device: str | torch.device) -> torch.device:
    if device != "auto":
        try:
            return torch.device(device)
        except RuntimeError as error:
            raise SettingError(f"device {device!r} is unknown to torch; use auto, cpu, cuda, cuda:1, mps") from error
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise SettingError(f"dtype {name!r} is unknown: choose auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def _residency(name: str, files: ModelFiles, dtype: torch.dtype, device: torch.device, host: Host) -> str:
    if name not in ("auto", "all", "stream"):
        raise SettingError(f"residency {name!r} is unknown: choose auto, all, stream")
    if name != "auto":
        return name
    with torch.device("meta"):
        parameters = sum(p.numel() for p in denoiser(files.config.unet).parameters())
    needed = parameters * dtype.itemsize * len(files.config.stages)
    return "all" if needed < host.free_memory(device) / 2 else "stream"
