"""Memory for canvases: where those of a run lie, and room for large ones in temporary files.

On a device canvases stay there while they take a small part of what is free. In system memory a large one is mapped
from a file, and the system decides what of it is in memory: all of it while there is room.
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections.abc import Sequence

import torch
from torch import Tensor

from .errors import SettingError

#: Share of the device's free memory that the canvases of a run may take; tiles need most of the rest.
DEVICE_SHARE = 0.25
#: Canvases of more numbers than this (16 MiB in float32) are mapped from files, in system memory.
MAPPED = 2**22
#: Of those with more than this, none is made in memory where there is no room on the disk.
HUGE = 2**30


def place_canvases(size: int, device: torch.device, free: int) -> torch.device:
    """The device that canvases of `size` bytes together lie on: the run's own if they are small beside `free` bytes.

    Asked once per run. Otherwise it is the CPU, and the device needs memory for networks and tiles only.
    """
    return device if size <= DEVICE_SHARE * free else torch.device("cpu")


def zeros(shape: Sequence[int], device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Zeros on the device; in system memory, if they are more than MAPPED, in a file where temporary ones go (TMPDIR).

    The file has no name and is gone with the tensor. Without room on the disk the tensor is in memory, or, if it is
    HUGE, SettingError is raised.
    """
    count = math.prod(shape)
    if device.type != "cpu" or count <= MAPPED:
        return torch.zeros(tuple(shape), dtype=dtype, device=device)
    size = count * dtype.itemsize
    try:
        with tempfile.TemporaryFile(prefix="moesr-") as file:
            _reserve(file.fileno(), size)
            room = mmap.mmap(file.fileno(), size)
    except OSError as error:
        if count <= HUGE:
            return torch.zeros(tuple(shape), dtype=dtype)
        raise SettingError(
            f"{tempfile.gettempdir()}: no room for the {size / 2**30:.1f} GiB of the picture ({error.strerror}); "
            "free some, or let TMPDIR name another folder"
        ) from error
    return torch.frombuffer(room, dtype=dtype).view(tuple(shape))


def zeros_like(tensor: Tensor) -> Tensor:
    """Zeros of the same shape, dtype and device."""
    return zeros(tensor.shape, tensor.device, tensor.dtype)


def _reserve(handle: int, size: int) -> None:
    """Makes a file that large; where the system can, with room on the disk: a full disk would end the process later."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle, 0, size)
    else:
        os.truncate(handle, size)
