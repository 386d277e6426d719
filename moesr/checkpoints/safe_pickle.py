"""A stand-in for Python's pickle module with which torch's own loader runs nothing that a file asks for.

A pickle is a program: it looks names up and calls what it finds. The unpickler here finds the few functions that make
tensors out of storages. Every other name becomes a `Placeholder`, and calling one makes another placeholder.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Mapping
from types import FunctionType, SimpleNamespace
from typing import Any, BinaryIO, ClassVar

import torch
from torch import Tensor
from torch.storage import TypedStorage

#: Bytes of the longest pickle that is read. That of a released stage file has less than 1 MB.
LONGEST_PICKLE = 2**23
#: Largest number of dimensions of a tensor.
MOST_DIMENSIONS = 16
#: Bytes of a tensor whose entries repeat (stride 0) may exceed its storage up to this many bytes.
REPEATED = 2**20
#: Characters of a text that is used as a name.
LONGEST_NAME = 120


class Placeholder(dict[str, Any]):
    """Stands for a class that is not looked up, and for its instances. Many of those are dicts: it keeps entries."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name


def make_pickle_module(size: int, storages: Mapping[str, int] | None) -> Any:
    """A module for the argument `pickle_module` of torch.serialization.load, for one file.

    size: of the file in bytes. storages: bytes of each storage by key, if the file lists them; without the list, all
    storages together must fit into the file. The unpickler raises ValueError for a storage or tensor that is larger
    than its place and for a pickle that is too long, EOFError for storages that do not fit into the file.
    """
    limits = _Limits(size, storages)

    class Unpickler(_Unpickler):
        def __init__(self, file: BinaryIO, **options: Any) -> None:
            super().__init__(_Bounded(file), **options)

        @property
        def persistent_load(self) -> Callable[[Any], Any]:
            return lambda saved: self._storage(saved)

        @persistent_load.setter
        def persistent_load(self, load: Callable[[Any], Any]) -> None:
            self._load_storage = load

        def _storage(self, saved: Any) -> Any:
            return self._load_storage(saved) if limits.allow(saved) else Placeholder("storage")

    def load(file: BinaryIO, **options: Any) -> Any:
        value = Unpickler(file, **options).load()
        if isinstance(value, dict) and value.get("little_endian") is False:  # torch's older files; torch ignores it
            raise ValueError("saved on a big-endian machine")
        return value

    return SimpleNamespace(__name__="pickle", Unpickler=Unpickler, load=load)


class _Limits:
    """Which storages of a file may be loaded."""

    def __init__(self, size: int, storages: Mapping[str, int] | None) -> None:
        self._left = size
        self._storages = storages
        self._known: set[str] = set()

    def allow(self, saved: Any) -> bool:
        """Whether a persistent id is a plain storage's. Raises ValueError for one that is larger than its place."""
        if not isinstance(saved, tuple) or len(saved) < 5 or saved[0] != "storage" or saved[5:] not in ((), (None,)):
            return False
        kind, key, count = saved[1], saved[2], saved[4]
        dtype = torch.uint8 if kind is torch.UntypedStorage else getattr(kind, "dtype", None)
        if not isinstance(dtype, torch.dtype) or not isinstance(key, str) or not _are_counts((count,)):
            return False
        size = count * dtype.itemsize
        if self._storages is None and key not in self._known:
            self._known.add(key)
            self._left -= size
        if self._left < 0:
            raise EOFError("the file ends before its last storage")
        if self._storages is not None and size > self._storages.get(key, -1):
            raise ValueError(f"storage {key[:LONGEST_NAME]!r} is not where its list of tensors says")
        return True


class _Bounded:
    """A file of which only so many bytes can be read, never more at a time than are left."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = LONGEST_PICKLE

    def read(self, size: int) -> bytes:
        """The next `size` bytes. Raises ValueError behind the limit."""
        self._left -= size
        if self._left < 0:
            raise ValueError("its list of tensors has no end")
        return self._file.read(size)

    def readline(self) -> bytes:
        line = self._file.readline(4096)
        self._left -= len(line)
        if self._left < 0 or len(line) == 4096:
            raise ValueError("its list of tensors has no end")
        return line


#: The unpickler that is written in Python, whose operations can be replaced.
_Base: Any = pickle._Unpickler  # type: ignore[attr-defined]  # stubs leave it out


class _Unpickler(_Base):
    """Makes plain values and tensors. It calls no function but those of `_FOUND`, and hashes nothing but text."""

    #: Of the base class, without what reserves as much memory as a file asks for.
    dispatch: ClassVar[dict[int, Any]] = {c: run for c, run in _Base.dispatch.items() if c != pickle.BYTEARRAY8[0]}

    def find_class(self, module: str, name: str, /) -> Any:
        """What a name stands for here; nothing is imported."""
        dtype = getattr(torch, name, None) if module == "torch" and len(name) < LONGEST_NAME else None
        if isinstance(dtype, torch.dtype):
            return dtype
        return _FOUND.get((module, name)) or Placeholder(f"{module[:LONGEST_NAME]}.{name[:LONGEST_NAME]}")

    def _find(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not all(isinstance(n, str) and len(n) < LONGEST_NAME for n in (module, name)):
            raise ValueError("a name in its list of tensors")
        self.stack.append(self.find_class(module, name))

    def get_extension(self, code: int) -> None:
        """A number that stands for a name among programs that agree on it; here for nothing."""
        self.append(Placeholder("extension"))

    def _instantiate(self, kind: Any, arguments: Any) -> None:
        self.append(_call(kind, tuple(arguments)))

    def _call(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = _call(self.stack[-1], arguments)

    def _call_with_names(self) -> None:
        del self.stack[-2:]
        self.stack[-1] = _call(self.stack[-1], None)

    def _ignore_state(self) -> None:
        self.stack.pop()

    def _make_set(self) -> None:
        self.stack.append(Placeholder("set"))

    def _make_frozen_set(self) -> None:
        self.pop_mark()
        self._make_set()

    def _make_dict(self) -> None:
        items = self.pop_mark()
        self.stack.append(_fill({}, items))

    def _add_items(self) -> None:
        items = self.pop_mark()
        _fill(self.stack[-1], items)

    def _add_pair(self) -> None:
        items = [self.stack.pop(-2), self.stack.pop()]
        _fill(self.stack[-1], items)

    def _add_item(self) -> None:
        item = self.stack.pop()
        _fill(self.stack[-1], [item])

    dispatch.update({
        pickle.STACK_GLOBAL[0]: _find, pickle.REDUCE[0]: _call, pickle.NEWOBJ[0]: _call,
        pickle.NEWOBJ_EX[0]: _call_with_names, pickle.BUILD[0]: _ignore_state, pickle.DICT[0]: _make_dict,
        pickle.EMPTY_SET[0]: _make_set, pickle.FROZENSET[0]: _make_frozen_set, pickle.SETITEMS[0]: _add_items,
        pickle.APPENDS[0]: _add_items, pickle.ADDITEMS[0]: _add_items, pickle.SETITEM[0]: _add_pair,
        pickle.APPEND[0]: _add_item,
    })  # fmt: skip


def _fill(target: Any, items: list[Any]) -> Any:
    """Append to a list, or take text keys and their values into a dict. Other keys are left out, not hashed."""
    if isinstance(target, list):
        target += items
    elif isinstance(target, dict):
        target.update((k, v) for k, v in zip(items[::2], items[1::2]) if isinstance(k, str))
    return target


def _call(function: Any, arguments: Any) -> Any:
    """The result of one of the functions of `_FOUND`, or a placeholder."""
    if type(function) is FunctionType and isinstance(arguments, tuple):
        return function(*arguments)
    return Placeholder(getattr(function, "name", "object"))


def _make_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> Any:
    """A tensor as a window on a storage. offset, stride: in entries. Raises ValueError if it leaves the storage."""
    if not isinstance(storage, TypedStorage):
        return Placeholder("tensor")
    dtype = rest[2] if len(rest) > 2 and isinstance(rest[2], torch.dtype) else storage.dtype
    untyped = storage._untyped_storage
    if not (_are_counts((offset,)) and _are_counts(shape) and _are_counts(stride) and len(shape) == len(stride)):
        raise ValueError("a shape in its list of tensors")
    entries = 0 if 0 in shape else offset + 1 + sum((n - 1) * s for n, s in zip(shape, stride))
    size = untyped.nbytes()
    if entries * dtype.itemsize > size or math.prod(shape) * dtype.itemsize > max(size, REPEATED):
        raise ValueError("a tensor is larger than its place in the file")
    if not entries:
        return torch.empty(tuple(shape), dtype=dtype)
    if (untyped.data_ptr() + offset * dtype.itemsize) % dtype.itemsize:  # only kernels for aligned numbers exist
        untyped = untyped.clone()
    return Tensor.set_(torch.empty(0, dtype=dtype), untyped, offset, tuple(shape), tuple(stride))


def _are_counts(values: Any) -> bool:
    few = isinstance(values, tuple) and len(values) <= MOST_DIMENSIONS
    return few and all(type(v) is int and 0 <= v < 2**62 for v in values)


_FOUND: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): lambda *_: {},  # its entries follow
    ("torch._utils", "_rebuild_tensor"): _make_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _make_tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _make_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    ("torch._utils", "_rebuild_parameter_with_state"): lambda tensor, *_: tensor,
    ("torch._tensor", "_rebuild_from_type_v2"): lambda function, kind, arguments, state: _call(function, arguments),
    ("torch.storage", "UntypedStorage"): torch.UntypedStorage,
}
