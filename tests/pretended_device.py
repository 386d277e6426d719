"""A pretended accelerator: tensors that report cuda:0 or mps:0, have their values on the CPU, and behave as on a card.

They refuse to meet CPU tensors, count what is copied to and from the device, operators and reads of single values,
and know how many bytes live on the device. With a limit the device runs out of memory as a real one does.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from moesr.diffusion import experts

aten = torch.ops.aten
CPU = torch.device("cpu")


@dataclass
class Device:
    """The pretended device at work, and what was counted on it since `reset`."""

    name: torch.device = field(default_factory=lambda: torch.device("cuda:0"))
    #: Bytes of the device; None is 80 GiB, of which the program notices nothing.
    limit: int | None = None
    #: Bytes copied to the device and from it, and numbers of such copies.
    uploaded: int = 0
    downloaded: int = 0
    uploads: int = 0
    downloads: int = 0
    #: Values that were read one by one (`.item()`, `bool(tensor)`): each waits for all that is queued.
    scalar_reads: int = 0
    #: Calls by operator, "aten.add.Tensor".
    operators: Counter[str] = field(default_factory=Counter)
    #: Bytes that live on the device, and the most since `reset`.
    live: int = 0
    peak: int = 0

    def reset(self) -> None:
        """Count from zero; what lives on the device stays."""
        self.uploaded = self.downloaded = self.uploads = self.downloads = self.scalar_reads = 0
        self.operators.clear()
        self.peak = self.live

    def count_copy(self, tensor: Tensor, to_device: bool) -> None:
        """Note a copy of this tensor between the CPU and the device."""
        size = tensor.numel() * tensor.element_size()
        if to_device:
            self.uploaded, self.uploads = self.uploaded + size, self.uploads + 1
        else:
            self.downloaded, self.downloads = self.downloaded + size, self.downloads + 1

    def hold(self, tensor: Tensor) -> None:
        """Count the tensor's storage as long as it lives. Raises OutOfMemoryError beyond the limit."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in _held:
            return
        if self.limit is not None and self.live + size > self.limit:
            raise torch.cuda.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} bytes")
        _held.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        _held.discard(key)
        self.live -= size


_held: set[int] = set()  # storages that are counted
_device = Device()


class OnDevice(Tensor):
    """A tensor of the pretended device. `inner` has its values."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnDevice:
        if _device.name.type == "mps" and inner.dtype in (torch.float64, torch.complex128):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        _device.hold(inner)
        with torch.inference_mode(False):  # views of weights would need a version that inference tensors do not have
            self = torch.Tensor._make_wrapper_subclass(
                cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
                layout=inner.layout, device=CPU,
            )  # fmt: skip
        self.inner = inner
        return self

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"OnDevice({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatch(func, args, dict(kwargs or {}))

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _PROPERTIES:
            return _PROPERTIES[func](args[0])
        if func in _METHODS:
            return _METHODS[func](*args, **kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)


def unwrap(x: Any) -> Any:
    """The values on the CPU, uncounted, for tests to look at; other things as they are."""
    return x.inner if isinstance(x, OnDevice) else x


def _is_here(device: Any) -> bool:
    return device is not None and torch.device(device).type == _device.name.type


def _to(tensor: Tensor, *args: Any, copy: bool = False, **kwargs: Any) -> Tensor:
    other = kwargs.pop("other", args[0] if args and isinstance(args[0], Tensor) else None)
    if other is not None:
        where, dtype, layout = other.device, other.dtype, None
    else:
        kwargs = {k: v for k, v in kwargs.items() if v is not None}
        where, dtype, _, layout = cast(Any, torch._C)._nn._parse_to(*args, **kwargs)
    return _move(tensor, where, dtype, copy, layout)


def _move(tensor: Tensor, where: Any, dtype: Any = None, copy: bool = False, layout: Any = None) -> Tensor:
    was_here = isinstance(tensor, OnDevice)
    goes_here = was_here if where is None else _is_here(where)
    if where is not None and torch.device(where).type not in ("cpu", _device.name.type):
        return unwrap(tensor).to(where, dtype)  # meta
    inner = unwrap(tensor)
    with torch._C.DisableTorchFunction():
        options = {} if layout is None else {"memory_format": layout}
        out = inner.to(dtype or inner.dtype, copy=copy or was_here != goes_here, **options)
    if was_here != goes_here:
        _device.count_copy(out, goes_here)  # torch converts before it copies
    elif out is inner:
        return tensor
    return OnDevice(out) if goes_here else out


def _refuse_numpy(*_: Any, **__: Any) -> Any:
    raise TypeError(f"can't convert {_device.name} device type tensor to numpy. Use Tensor.cpu() first")


def _attend(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """One fused kernel, as on a card."""
    return _dispatch(F.scaled_dot_product_attention, (q, k, v, *args), kwargs)


def _read_list(tensor: Tensor) -> Any:
    return _move(tensor, CPU).tolist()


_PROPERTIES: dict[Any, Callable[[Tensor], Any]] = {
    Tensor.device.__get__: lambda x: _device.name if isinstance(x, OnDevice) else CPU,  # type: ignore[attr-defined]
    Tensor.is_cuda.__get__: lambda x: isinstance(x, OnDevice) and _device.name.type == "cuda",  # type: ignore[attr-defined]
    Tensor.is_cpu.__get__: lambda x: not isinstance(x, OnDevice),  # type: ignore[attr-defined]
}
_METHODS: dict[Any, Callable[..., Any]] = {
    Tensor.to: _to,
    Tensor.type_as: _to,
    Tensor.cpu: lambda x, *_, **__: _move(x, CPU),
    Tensor.cuda: lambda x, *_, **__: _move(x, _device.name),
    Tensor.numpy: _refuse_numpy,
    Tensor.__array__: _refuse_numpy,
    Tensor.tolist: _read_list,
    F.scaled_dot_product_attention: _attend,
}
_INDEXING = (aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._unsafe_index.Tensor)


#: In inference mode operators arrive before torch takes them apart.
_READS = (aten._local_scalar_dense.default, aten.item.default, aten.is_nonzero.default)


def _dispatch(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operator that meets a tensor of the device."""
    leaves = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    here = [x for x in leaves if isinstance(x, OnDevice)]
    others = [x for x in leaves if not isinstance(x, OnDevice) and x.dim() > 0]  # numbers of the CPU may join in
    if func is aten._has_compatible_shallow_copy_type.default:
        return False
    _device.operators[str(func)] += 1
    if func is aten._to_copy.default:
        return _move(args[0], kwargs.get("device"), kwargs.get("dtype"), True, kwargs.get("memory_format"))
    if func is aten.copy_.default:
        target, source = args[:2]
        if isinstance(target, OnDevice) != isinstance(source, OnDevice):
            _device.count_copy(source, isinstance(target, OnDevice))
        func(unwrap(target), unwrap(source))
        return target
    if func in _READS:
        _device.scalar_reads += 1
    if others and func in _INDEXING and {id(x) for x in others} <= {id(x) for x in tree_leaves(args[1])}:
        for index in others:  # torch brings them to the device
            _device.count_copy(index, True)
    elif others:
        shapes = ", ".join(str(tuple(x.shape)) for x in others)
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {_device.name} and cpu! "
            f"({func}; on the CPU: {shapes})"
        )
    generator = kwargs.get("generator")
    if generator is not None and generator.device.type != _device.name.type:
        raise RuntimeError(f"Expected a '{_device.name.type}' device type for generator but found 'cpu'")
    where = kwargs.pop("device", None)
    out = func(*tree_map(unwrap, args), **tree_map(unwrap, kwargs))
    same = {id(x.inner): x for x in here}  # in-place operators and out= give back what they were given
    stays = where is None or _is_here(where)

    def place(x: Any) -> Any:
        return same[id(x)] if id(x) in same else OnDevice(x) if stays and isinstance(x, Tensor) else x

    return tree_map(place, out)


class _Placement(TorchFunctionMode):
    """Tensors that are made for the device, or moved to it, become the device's."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (Tensor.to, Tensor.type_as, Tensor.cuda):
            return _METHODS[func](*args, **kwargs)
        kwargs.pop("pin_memory", None)
        if not _is_here(kwargs.get("device")):
            return func(*args, **kwargs)
        generator = kwargs.get("generator")
        if generator is not None:
            raise RuntimeError(f"Expected a '{_device.name.type}' device type for generator but found 'cpu'")
        del kwargs["device"]
        made = func(*args, **kwargs)
        if isinstance(made, Tensor) and not isinstance(made, OnDevice):
            if args and isinstance(args[0], Tensor):
                _device.count_copy(made, True)  # torch.tensor and as_tensor of something on the CPU
            return OnDevice(made)
        return made


@contextmanager
def pretended_device(kind: str = "cuda", limit: int | None = None) -> Iterator[Device]:
    """Inside the block torch has a device of that kind, cuda or mps. limit: its bytes."""
    global _device
    before, _device = _device, Device(torch.device(kind, 0), limit)
    device, mode = _device, _Placement()
    total = 80 * 2**30

    def limit_to(share: float, *_: Any) -> None:
        device.limit = None if share >= 1 else int(share * total)

    class Event:
        def record(self, *_: Any) -> None:
            self.synchronize()

        def synchronize(self) -> None: ...

        def elapsed_time(self, _: Any) -> float:
            return 1.0

    cuda = {
        "is_available": lambda: True,
        "synchronize": lambda *_: None,
        "empty_cache": lambda: None,
        "mem_get_info": lambda *_: ((device.limit or total) - device.live, total),
        "memory_allocated": lambda *_: device.live,
        "memory_reserved": lambda *_: device.live,
        "max_memory_allocated": lambda *_: device.peak,
        "reset_peak_memory_stats": lambda *_: device.reset(),
        "set_per_process_memory_fraction": limit_to,
        "get_device_name": lambda *_: "pretended",
        "get_device_properties": lambda *_: SimpleNamespace(total_memory=total, major=9, minor=0),
        "default_stream": lambda *_: None,
        "Stream": lambda *_, **__: SimpleNamespace(synchronize=lambda: None),
        "stream": lambda *_: nullcontext(),
        "Event": lambda **_: Event(),
    }
    mps = {
        "synchronize": lambda: None,
        "recommended_max_memory": lambda: total,
        "driver_allocated_memory": lambda: device.live,
        "current_allocated_memory": lambda: device.live,
    }
    with pytest.MonkeyPatch.context() as patch:
        module = torch.cuda if kind == "cuda" else torch.mps
        for name, value in (cuda if kind == "cuda" else mps).items():
            patch.setattr(module, name, value)
        patch.setattr(Tensor, "record_stream", lambda *_: None)
        # Modules get new parameters when they move: as between real devices.
        patch.setattr(torch.__future__, "get_overwrite_module_params_on_conversion", lambda: True)
        # Modes belong to a thread; experts are built in another one.
        patch.setattr(experts, "ThreadPoolExecutor", partial(ThreadPoolExecutor, initializer=mode.__enter__))
        try:
            with mode:
                yield device
        finally:
            _device = before
