"""Pickles read as inert data: no name in them is ever looked up, and nothing they ask for is ever called.

A pickle is a program for a small stack machine. The machine here makes lists, dicts, numbers, text, and descriptions of
tensors; every other class or function is a `Foreign`, which keeps entries like a dict and does nothing. So a Lightning
checkpoint full of a trainer's objects reads like any other, and one that wants to run a command gets a placeholder.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch

#: More steps than any list of tensors takes; a pickle of nothing but steps must not hold anybody up.
OPERATIONS = 1_000_000
#: More dimensions than any weight has.
DIMENSIONS = 16
#: Numbers and names in the text forms of old protocols are short; digits without end are slow to convert.
LINE = 4096

_DTYPE_NAMES = (
    "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool", "complex64",
    "complex128", "float8_e4m3fn", "float8_e5m2", "uint16", "uint32", "uint64",
)  # fmt: skip
#: The dtypes that this torch has, by name.
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in _DTYPE_NAMES if hasattr(torch, name)}
_STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128", "UntypedStorage": "uint8",
}  # fmt: skip


@dataclass(frozen=True)
class Name:
    """A class or function that a pickle mentions."""

    text: str


class Foreign(dict[str, Any]):
    """Stands for what a class that is not known here would have made; many of those are dicts, so it holds entries."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name


@dataclass(frozen=True)
class Storage:
    """A run of numbers elsewhere in the file, by its key; `numel` counts entries of `dtype`."""

    key: str
    dtype: torch.dtype
    numel: int


@dataclass(frozen=True)
class Strided:
    """A tensor as a window on a storage; offset and stride count entries of `dtype`."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def unpickle(file: BinaryIO, size: int) -> tuple[Any, dict[str, Storage]]:
    """The pickle that begins where the file stands and ends within `size` bytes, as inert data; nothing in it is run.

    Returns its value, whose dicts keep only entries with text as key, and all storages that it mentions. The file
    stands behind the pickle afterwards. Raises ValueError for a damaged pickle, and for one that is too long.
    """
    machine = _Machine()
    try:
        bounded: Any = _Bounded(file, size)  # genops is typed for whole files, of which it wants read and readline
        for count, (operation, argument, _) in enumerate(pickletools.genops(bounded)):
            if count > OPERATIONS:
                raise ValueError("its list of tensors has no end")
            machine.step(operation.name, argument)
        return machine.stack[-1], machine.storages
    except (IndexError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"its list of tensors is damaged, {type(error).__name__}") from error


class _Bounded:
    """What genops reads from: never asks the file for more than is there, nor for a line without end."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._left = size

    def read(self, n: int) -> bytes:
        return self._took(self._file.read(min(n, self._left)))

    def readline(self) -> bytes:
        return self._took(self._file.readline(min(LINE, self._left)))

    def _took(self, data: bytes) -> bytes:
        self._left -= len(data)
        return data


_VALUES = frozenset((
    "BININT1", "BININT", "BININT2", "INT", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8", "BYTEARRAY8",
))  # fmt: skip
_FRESH: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": lambda: Foreign("set"),
}


class _Machine:
    """Stack, marks and memo of one pickle."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def step(self, name: str, argument: Any) -> None:
        """One operation."""
        stack = self.stack
        if name in _VALUES:
            stack.append(argument)
        elif name in _FRESH:
            stack.append(_FRESH[name]())
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(self.memo[argument])
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            n = int(name[-1])
            stack[-n:] = [tuple(stack[-n:])]
        elif name == "TUPLE":
            stack.append(tuple(self.marked()))
        elif name == "LIST":
            stack.append(self.marked())
        elif name == "DICT":
            stack.append(_fill({}, self.marked()))
        elif name == "FROZENSET":
            self.marked()
            stack.append(Foreign("frozenset"))
        elif name in ("SETITEMS", "APPENDS", "ADDITEMS"):
            items = self.marked()
            _fill(stack[-1], items)
        elif name == "SETITEM":
            items = [stack.pop(-2), stack.pop()]
            _fill(stack[-1], items)
        elif name == "APPEND":
            item = stack.pop()
            _fill(stack[-1], [item])
        elif name == "GLOBAL":
            stack.append(Name(argument.replace(" ", ".")))
        elif name == "STACK_GLOBAL":
            parts = stack[-2:]
            stack[-2:] = [Name(".".join(parts) if all(map(_short, parts)) else "?")]
        elif name in ("REDUCE", "NEWOBJ"):
            arguments = stack.pop()
            stack.append(_make(stack.pop(), arguments))
        elif name == "NEWOBJ_EX":
            stack[-3:] = [_make(stack[-3], None)]
        elif name == "OBJ":
            stack.append(_make(self.marked()[0], None))
        elif name == "INST":
            self.marked()
            stack.append(Foreign(argument))
        elif name == "BINPERSID":
            storage = _storage(stack.pop())
            if isinstance(storage, Storage):
                self.storages[storage.key] = storage
            stack.append(storage)
        elif name in ("BUILD", "POP"):  # the state of an object is of no use without its class
            stack.pop()
        elif name == "POP_MARK":
            self.marked()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise ValueError(f"{name} has no place in a checkpoint")

    def marked(self) -> list[Any]:
        """Take what stands above the last mark."""
        at = self.marks.pop()
        items = self.stack[at:]
        del self.stack[at:]
        return items


def _fill(target: Any, items: list[Any]) -> Any:
    """Append to a list, or take text keys and their values into a dict: hashing anything else is not safe."""
    if isinstance(target, list):
        target += items
    elif isinstance(target, dict):
        target.update((k, v) for k, v in zip(items[::2], items[1::2]) if isinstance(k, str))
    return target


def _make(function: Any, arguments: Any) -> Any:
    """What calling the function stands for: a dict or a tensor if it is one of torch's few, else a placeholder."""
    name = function.text if isinstance(function, Name) else "object"
    if not isinstance(arguments, tuple):
        return Foreign(name)
    if name == "collections.OrderedDict":
        return {}  # its entries follow
    if name in ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state") and arguments:
        return arguments[0]
    if name == "torch._tensor._rebuild_from_type_v2" and len(arguments) == 4:
        return _make(arguments[0], arguments[2])
    if name in ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2") and len(arguments) >= 4:
        return _strided(arguments[:4], None)
    if name == "torch._utils._rebuild_tensor_v3" and len(arguments) >= 7:
        return _strided(arguments[:4], arguments[6])
    return Foreign(name)


def _strided(arguments: tuple[Any, ...], dtype: Any) -> Strided | Foreign:
    storage, offset, shape, stride = arguments
    if not isinstance(storage, Storage) or not _counts((offset,)) or not _counts(shape) or not _counts(stride):
        return Foreign("tensor")
    if len(shape) != len(stride):
        return Foreign("tensor")
    number = storage.dtype if dtype is None else _dtype(dtype)
    return Foreign("tensor") if number is None else Strided(storage, number, offset, shape, stride)


def _counts(values: Any) -> bool:
    few = isinstance(values, tuple) and len(values) <= DIMENSIONS
    return few and all(type(v) is int and 0 <= v < 2**62 for v in values)


def _short(value: Any) -> bool:
    """Text that is a name. What a pickle repeats must not be copied each time, nor a number be spelled out."""
    return isinstance(value, str) and len(value) < LINE


def _dtype(value: Any) -> torch.dtype | None:
    return DTYPES.get(value.text.removeprefix("torch.")) if isinstance(value, Name) else None


def _storage(value: Any) -> Storage | Foreign:
    """The storage a persistent id ('storage', type, key, device, numel) names; a sixth part would be a view on it."""
    if not isinstance(value, tuple) or len(value) < 5 or value[0] != "storage" or value[5:] not in ((), (None,)):
        return Foreign("storage")
    _, kind, key, _, numel = value[:5]
    if not isinstance(kind, Name) or not kind.text.startswith("torch.") or not _counts((numel,)):
        return Foreign("storage")
    dtype = DTYPES.get(_STORAGES.get(kind.text.rpartition(".")[2], ""))
    if dtype is None or not (_short(key) or _counts((key,))):
        return Foreign("storage")
    return Storage(str(key), dtype, numel)
