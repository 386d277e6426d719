"""What the pipeline asks of the process it runs in: cancelled? how much memory is free? was that "out of memory"?"""

from __future__ import annotations

import ctypes
import gc
import os
from pathlib import Path

import torch

#: Bytes, assumed where the system does not tell how much memory is free.
UNKNOWN_FREE = 4 * 2**30


#: What a plain RuntimeError says where memory ran out: devices, torch's allocator on the CPU, the C++ library, and
#: oneDNN, which names what it could not make and not why.
OUT_OF_MEMORY = (
    "out of memory", "can't allocate memory", "bad_alloc", "could not create a memory", "could not create a primitive",
    "could not execute a primitive",
)  # fmt: skip


class Runtime:
    """What surrounds a run: here a plain Python process, where torch and the system say what is free.

    ComfyUI and the WebUIs bring subclasses.
    """

    def check(self) -> None:
        """Raise if the user cancelled; nothing does here. Called before every tile of every step."""

    def free_memory(self, device: torch.device) -> int:
        """Bytes free on the device; for the CPU, what the system can give without swapping."""
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            return free + cached
        if device.type == "mps":
            return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
        if device.type == "xpu" and hasattr(torch.xpu, "mem_get_info"):
            return torch.xpu.mem_get_info(device)[0]
        return _free_system_memory()

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether a smaller tile could succeed: torch's own error, MemoryError, and what allocators say."""
        if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
            return True
        text = str(error).lower()
        return isinstance(error, RuntimeError) and any(sign in text for sign in OUT_OF_MEMORY)

    def release(self) -> None:
        """Collect garbage, empty the device's cache, and have the allocator give back what nobody uses."""
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        trim_memory()


def trim_memory() -> None:
    """Returns memory that was freed to the system where the C library otherwise keeps it (glibc), else does nothing."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):
        return
    trim(0)


def _free_system_memory() -> int:
    try:
        with open("/proc/meminfo") as file:
            rows = dict(line.split(":", 1) for line in file)
        return min(int(rows["MemAvailable"].split()[0]) * 1024, _free_container_memory())
    except (OSError, KeyError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return UNKNOWN_FREE


def _free_container_memory() -> int:
    """Bytes until the limit of the container (cgroup v2) that this process may be in; 2^63 without one."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit = int((folder / "memory.max").read_text())
        cached = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())["inactive_file"]
        return max(0, limit - int((folder / "memory.current").read_text()) + int(cached))
    except (OSError, KeyError, ValueError):  # "max", another system, or an older cgroup
        return 2**63
