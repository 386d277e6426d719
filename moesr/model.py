"""SRModel: experts, process, autoencoder and config, ready to run on a device."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import nn

from .checkpoints.model_files import ModelFiles, build, open_model
from .checkpoints.weight_reading import DTYPES
from .config import ModelConfig
from .diffusion.experts import All, ExpertBank, Residency, Stream
from .diffusion.process import Process, from_config
from .errors import SettingError
from .library import find
from .networks.autoencoder import Autoencoder
from .networks.denoiser import denoiser
from .networks.layers import prefers_channels_last
from .runtime import Runtime
from .settings import LOADING

log = logging.getLogger(__name__)

M = TypeVar("M", bound=nn.Module)

Source = str | PathLike[str] | Sequence[str | PathLike[str]]

#: Of torch.compile.
BACKEND = "inductor"


@dataclass(eq=False)
class SRModel:
    """A super-resolution model: `bank` gives the expert of a timestep, `autoencoder` encodes and decodes.

    Made by `moesr.load`. `notes` say what had to be assumed about its files. Networks compute in `dtype`; latents and
    images between them are float32. `keeper` is for hosts that move the autoencoder on and off the device.
    """

    config: ModelConfig
    process: Process
    bank: ExpertBank
    autoencoder: Autoencoder
    device: torch.device
    dtype: torch.dtype
    runtime: Runtime
    paths: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    keeper: Residency | None = None

    @property
    def scale(self) -> int:
        """Output pixels per input pixel, as the model was trained."""
        return self.config.scale

    def decoder(self) -> AbstractContextManager[Autoencoder]:
        """The autoencoder, on the device inside the block."""
        return hold_decoder(self.autoencoder, self.keeper)

    def close(self) -> None:
        """Let go of the experts; the model is of no use after that."""
        self.bank.close()


@dataclass(frozen=True, eq=False)
class Parts:
    """A model's networks in their files: each call builds one, in `dtype` on the device that it is given."""

    files: ModelFiles
    dtype: torch.dtype

    def expert(self, i: int, device: torch.device) -> nn.Module:
        """Time expert i. Raises CheckpointError if its file does not hold it any more."""
        what = f"expert {i} of {_label(self.files)}"
        network = build(denoiser, self.files.config.unet, self.files.experts[i], self.dtype, device, what)
        return _lay_out(network, device)

    def autoencoder(self, device: torch.device) -> Autoencoder:
        """First stage and decoder. Raises CheckpointError if their file does not hold them any more."""
        what = f"decoder of {_label(self.files)}"
        config = self.files.config.autoencoder
        return _lay_out(build(Autoencoder, config, self.files.decoder, self.dtype, device, what), device)

    def assemble(
        self, experts: Residency, autoencoder: Autoencoder, device: torch.device, runtime: Runtime,
        keeper: Residency | None = None,
    ) -> SRModel:  # fmt: skip
        """The model of these parts, whose experts are kept by `experts`, and its autoencoder by `keeper` if given."""
        config = self.files.config
        return SRModel(
            config=config, process=from_config(config.process), bank=ExpertBank(config.stages, experts),
            autoencoder=autoencoder, device=device, dtype=self.dtype, runtime=runtime, paths=self.files.paths,
            notes=self.files.notes, keeper=keeper,
        )  # fmt: skip


def load(
    source: Source = "tiny", *, dtype: str = "auto", device: str | torch.device = "auto", residency: str = "auto",
    scale: int | None = None, timesteps: int | None = None, compile: bool = False, runtime: Runtime | None = None,
) -> SRModel:  # fmt: skip
    """A model ready for `upscale`.

    source: a name in the library, a file, a folder, or a list of stage files (and a decoder). dtype: auto, fp32, bf16
    or fp16; auto is fp16 on CUDA and fp32 elsewhere. device: auto or what torch calls it. residency: "all" keeps every
    expert on the device, "stream" the one at work and the next; auto streams if all would take more than half of the
    free memory. scale: for files that do not say theirs. timesteps: for ResShift's files, which do not say theirs
    either: 15 or 4, by default as their names have it. compile: experts are compiled by torch.compile when a tile of a
    new size comes; that pays for many tiles or pictures on a GPU. Raises CheckpointError for files that are not a whole
    model, SettingError for an option that does not exist.
    """
    for name, value in (("dtype", dtype), ("residency", residency)):
        LOADING[name].check(value)
    runtime = runtime or Runtime()
    where = find_device(device)
    usual = torch.float16 if where.type == "cuda" else torch.float32
    parts = Parts(open_model(_locate(source), scale, timesteps), DTYPES.get(dtype, usual))
    keeper = residency
    if residency == "auto":
        keeper = _choose_residency(parts.files, parts.dtype, where, runtime)
    experts = range(len(parts.files.config.stages))

    def expert(i: int) -> nn.Module:
        network = parts.expert(i, where)
        # All tiles of a picture have one size, so shapes are constants, and experts share what was compiled.
        return cast(nn.Module, torch.compile(network, backend=BACKEND, dynamic=False)) if compile else network

    resident = All([expert(i) for i in experts]) if keeper == "all" else Stream(expert)
    model = parts.assemble(resident, parts.autoencoder(where), where, runtime)
    facts = f"{len(experts)} experts, x{model.scale}, {parts.dtype} on {where}, {keeper}"
    for line in (*model.notes, facts):
        log.info("%s: %s", _label(parts.files), line)
    return model


def hold_decoder(autoencoder: Autoencoder, keeper: Residency | None) -> AbstractContextManager[Autoencoder]:
    """The autoencoder, on its device inside the block; keeper: who moves it there, None if it stays there."""
    return cast(Any, nullcontext(autoencoder) if keeper is None else keeper.use(0))


def _lay_out(network: M, device: torch.device) -> M:
    """The network with its weights as the device convolves with them: else CUDA would copy them in every layer.

    On a CPU they stay as they lie in their file, which they are mapped from.
    """
    dtype = next(network.parameters()).dtype
    if device.type == "cuda" and prefers_channels_last(device, dtype):
        cast(Any, network).to(memory_format=torch.channels_last)
    return network


def _locate(source: Source) -> Path | list[Path]:
    if isinstance(source, (str, PathLike)):
        return find(str(source))
    paths = [Path(p) for p in source]
    if not paths:
        raise SettingError("no model: the list of files is empty")
    return paths


def _label(files: ModelFiles) -> str:
    return files.config.name or str(files.paths[0])


def find_device(device: str | torch.device) -> torch.device:
    """The device of that name; "auto" is CUDA (NVIDIA, ROCm), else MPS, else XPU, else the CPU.

    Raises SettingError for a name that torch does not know, and for DirectML.
    """
    if str(device).startswith(("dml", "directml", "privateuseone")):
        raise SettingError(f"device {str(device)!r}: DirectML is not supported; use ROCm, XPU or the CPU")
    if device != "auto":
        try:
            return torch.device(device)
        except RuntimeError as error:
            raise SettingError(f"device {device!r} is unknown to torch; use auto, cpu, cuda, cuda:1, mps") from error
    for name in ("cuda", "mps", "xpu"):
        backend = torch.backends.mps if name == "mps" else getattr(torch, name, None)
        if backend is not None and backend.is_available():
            return torch.device(name)
    return torch.device("cpu")


def _choose_residency(files: ModelFiles, dtype: torch.dtype, device: torch.device, runtime: Runtime) -> str:
    parameters = sum(math.prod(shape) for view in files.experts for shape in view.shapes().values())
    needed = parameters * dtype.itemsize
    return "all" if needed < runtime.free_memory(device) / 2 else "stream"
