"""The machine of a self-test: its description, exact numerics, and the release of memory."""

from __future__ import annotations

import gc
import importlib.metadata
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from ..errors import SettingError
from ..model import find_device
from ..runtime import Runtime
from .speed.measure import wait_for


def describe_machine(device: torch.device) -> dict[str, str | int]:
    """Versions of this package, Python, torch and the device's driver; the device's name; memory in MiB."""
    free = Runtime().free_memory(device)
    values: dict[str, str | int] = {
        "moesr": _version("moesr"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "torch": torch.__version__,
        "numpy": np.__version__,
        "pillow": _version("pillow"),
        "device": str(device),
        "name": device_name(device),
        "free_mib": free // 2**20,
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        values["total_mib"] = properties.total_memory // 2**20
        values["capability"] = f"{properties.major}.{properties.minor}"
        values["cuda"] = torch.version.cuda or f"ROCm {torch.version.hip}"
        values["cudnn"] = torch.backends.cudnn.version() or 0
    return values


def device_name(device: torch.device) -> str:
    """The product name of the graphics card, or of the processor."""
    if device.type in ("cuda", "xpu"):
        return getattr(torch, device.type).get_device_name(device)
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()}, {os.cpu_count()} cores"
    return platform.processor() or platform.machine()


@contextmanager
def exact_numerics() -> Iterator[None]:
    """Float32 without TF32, and deterministic kernels where there are any, inside the block."""
    matmul, cudnn = torch.backends.cuda.matmul, cast(Any, torch.backends.cudnn)
    before = matmul.allow_tf32, cudnn.allow_tf32, torch.are_deterministic_algorithms_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        matmul.allow_tf32 = cudnn.allow_tf32 = False
        torch.use_deterministic_algorithms(True, warn_only=True)
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before[:2]
        torch.use_deterministic_algorithms(before[2])


def release(device: torch.device) -> None:
    """Free unused memory, on the device and in this process."""
    wait_for(device)
    gc.collect()
    Runtime().release()


def check_device(name: str) -> torch.device:
    """The device of that name, "auto" for the best one. Raises SettingError if torch cannot use it here."""
    device = find_device(name)
    try:
        torch.zeros(1, device=device)
    except Exception as error:
        first = next(iter(str(error).splitlines()), "")
        raise SettingError(f"device {name}: torch cannot use it ({first}); choose another with --device") from error
    return device


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed as a package"
