"""Weights on their way to a device: to CUDA through pinned buffers, on a stream of their own.

A network that streams in must not hold up the one at work. Copies from pageable memory do: they wait for all that is
queued on the device. So tensors go through two pinned buffers in turn; while one is on its way, the other is filled.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

#: Bytes of one pinned buffer.
BUFFER = 32 * 2**20


class CudaLane:
    """Copies on a CUDA stream of its own. What it allocates may be freed while the default stream still uses it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._consumer = torch.cuda.default_stream(device)

    def buffer(self, entries: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(entries, dtype=dtype, pin_memory=True)

    def empty(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Memory of this lane's stream, so that nothing queued elsewhere still writes to it."""
        with torch.cuda.stream(self._stream):
            out = torch.empty(shape, dtype=dtype, device=self._device)
        # Without this the allocator would hand it out again while the default stream has work queued on it.
        out.record_stream(self._consumer)
        return out

    def send(self, source: Tensor, target: Tensor) -> Any:
        """An event that comes after the copy; waiting for it blocks one thread only."""
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
            sent = torch.cuda.Event()
            sent.record(self._stream)
        return sent

    def finish(self) -> None:
        """Blocks this thread only; afterwards every stream sees the copies."""
        self._stream.synchronize()


def copy_to_device(
    state: Mapping[str, Tensor], names: Iterable[str], dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    """These tensors on the device, floating-point ones in `dtype`; on the CPU what needs no conversion is shared."""
    if device.type == "cuda":
        return copy_through(CudaLane(device), state, names, dtype)
    tensors = {name: state[name] for name in names}
    return {name: x.to(device, dtype if x.is_floating_point() else x.dtype) for name, x in tensors.items()}


def copy_through(lane: Any, state: Mapping[str, Tensor], names: Iterable[str], dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors, converted and copied through two buffers of BUFFER bytes; all have arrived when it returns.

    lane: a CudaLane, or what stands for one where there is no CUDA.
    """
    entries = max(1, BUFFER // dtype.itemsize)
    buffers = [lane.buffer(entries, dtype) for _ in range(2)]
    sent: list[Any] = [None, None]
    out: dict[str, Tensor] = {}
    turn = 0
    for name in names:
        source = state[name]
        wanted = dtype if source.is_floating_point() else source.dtype
        out[name] = lane.empty(source.shape, wanted)
        if wanted != dtype:  # counters: a few bytes
            out[name].copy_(source)
            continue
        flat, target = source.reshape(-1), out[name].view(-1)
        for start in range(0, len(flat), entries):
            stop = min(start + entries, len(flat))
            if sent[turn] is not None:
                sent[turn].synchronize()
            buffer = buffers[turn][: stop - start]
            buffer.copy_(flat[start:stop])
            sent[turn] = lane.send(buffer, target[start:stop])
            turn = 1 - turn
    lane.finish()
    return out
