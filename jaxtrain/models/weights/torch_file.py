"""Arrays from a PyTorch file (`.pth`, `.pt`, `.bin`) without torch, and without unpickling anything.

Such a file is a pickle that describes tensors, and their raw values. The pickle is read as data: `pickletools` gives
its instructions one by one, and the few that a plain state dict is made of are followed here. Nothing is ever imported
or called: a file that asks for anything else is refused by the name of what it asked for.
"""

from __future__ import annotations

import io
import math
import pickletools
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from jaxtrain.errors import UserError
from jaxtrain.files import reason

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_DTYPES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
_ORDERED_DICT = "collections OrderedDict"
_TENSOR, _PARAMETER = "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"
_GLOBALS = {_ORDERED_DICT, _TENSOR, _PARAMETER, *(f"torch {name}" for name in _DTYPES)}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}


class _Global(NamedTuple):
    """A name that the pickle would have imported: one of `_GLOBALS`."""

    name: str


class _Storage(NamedTuple):
    """Values that tensors look at: where they lie in the file, and how many of what."""

    key: str
    dtype: str
    size: int


class _Tensor(NamedTuple):
    """A view of a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


_MARK = _Global("MARK")
_DAMAGE = (
    *(ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError),
    *(EOFError, NotImplementedError, zipfile.BadZipFile),
)
"""What reading a file that is not what it seems can raise."""


def read_torch_file(path: Path) -> dict[str, Any]:
    """The nested dicts of arrays that `torch.save` wrote; values that are no arrays stay what they are.

    Both of torch's layouts are read: the zip archive, and the stream of before torch 1.6. Raises UserError for a file
    that is neither, is damaged, or holds anything but tensors, numbers, texts, lists and dicts.
    """
    try:
        with open(path, "rb") as file:
            tree, storages = _read_zip(file) if zipfile.is_zipfile(file) else _read_legacy(file)
        value = _arrays(tree, storages, {})
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    except _DAMAGE as error:
        raise UserError(f"{path}: is no PyTorch file, or a damaged one ({reason(error)})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a {type(value).__name__}, not a dict of tensors (a state dict)")
    return value


# --- the two layouts


def _read_zip(file: IO[bytes]) -> tuple[Any, Mapping[str, NDArray[Any]]]:
    """`NAME/data.pkl`, and each storage as `NAME/data/KEY`."""
    file.seek(0)
    with zipfile.ZipFile(file) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise UserError("is a zip archive, but not one that torch.save wrote")
        folder = pickles[0].removesuffix("data.pkl")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise UserError("is refused: it is compressed, which torch.save never does")
        order = f"{folder}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise UserError("was written on a big-endian machine")
        found: dict[str, _Storage] = {}
        tree = _follow(io.BytesIO(archive.read(pickles[0])), found)
        values = {
            key: np.frombuffer(archive.read(f"{folder}data/{key}"), _dtype(storage), storage.size)
            for key, storage in found.items()
        }
    return tree, values


def _read_legacy(file: IO[bytes]) -> tuple[Any, Mapping[str, NDArray[Any]]]:
    """Five pickles: magic number, version, machine, tree, keys; then of each key a count and the values."""
    file.seek(0)
    found: dict[str, _Storage] = {}
    magic, version = _follow(file, found), _follow(file, found)
    if (magic, version) != (_LEGACY_MAGIC, _LEGACY_PROTOCOL):
        raise ValueError("no magic number")
    if _follow(file, found).get("little_endian") is not True:
        raise UserError("was written on a big-endian machine")
    tree, keys = _follow(file, found), _follow(file, found)
    values = {}
    for key in keys:
        storage = found[key]
        count = int.from_bytes(file.read(8), "little", signed=True)
        if count != storage.size:
            raise ValueError(f"storage {key} has {count} values, not {storage.size}")
        dtype = _dtype(storage)
        values[key] = np.frombuffer(file.read(count * dtype.itemsize), dtype, count)
    return tree, values


def _dtype(storage: _Storage) -> np.dtype[Any]:
    if storage.dtype == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(storage.dtype)


# --- the pickle, as data


def _follow(file: IO[bytes], storages: dict[str, _Storage]) -> Any:
    """What one pickle describes; adds the storages that it names."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    argument: Any
    for instruction, argument, _ in pickletools.genops(file):
        name = instruction.name
        if name == "STOP":
            return stack.pop()
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "GLOBAL":
            if argument not in _GLOBALS:
                _refuse(argument)
            stack.append(_Global(argument))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in _ACTIONS:
            _ACTIONS[name](stack)
        elif name == "BINPERSID":
            storage = _storage(stack.pop())
            storages[storage.key] = storage
            stack.append(storage)
        elif name != "PROTO":
            raise UserError(f"is refused: a file of tensors has no pickle instruction {name}")
    raise ValueError("it ends too early")


def _refuse(name: str) -> NoReturn:
    raise UserError(
        f"is refused: it asks for {name.replace(' ', '.')}, and only tensors in dicts are read; "
        "save the state dict alone, best as .safetensors"
    )


def _since_mark(stack: list[Any]) -> list[Any]:
    place = max(i for i, value in enumerate(stack) if value is _MARK)
    values = stack[place + 1 :]
    del stack[place:]
    return values


def _pop(stack: list[Any], count: int) -> list[Any]:
    if len(stack) < count:
        raise ValueError("its pickle takes more than there is")
    values = stack[-count:]
    del stack[-count:]
    return values


def _set_items(stack: list[Any], values: list[Any]) -> None:
    stack[-1].update(zip(values[::2], values[1::2], strict=True))


def _reduce(stack: list[Any]) -> None:
    """A call, which is made of three known functions only."""
    function, arguments = _pop(stack, 2)
    if function == _Global(_ORDERED_DICT) and arguments == ():
        stack.append({})
    elif function == _Global(_TENSOR):
        storage, offset, shape, stride = arguments[:4]
        stack.append(_Tensor(storage, offset, shape, stride))
    elif function == _Global(_PARAMETER):
        stack.append(arguments[0])
    else:
        _refuse(function.name)


def _build(stack: list[Any]) -> None:
    """Attributes of an OrderedDict (torch keeps versions of modules there), which are dropped."""
    _, target = stack.pop(), stack[-1]
    if not isinstance(target, dict):
        raise TypeError("attributes of something that is no dict")


_ACTIONS: dict[str, Callable[[list[Any]], None]] = {
    "MARK": lambda stack: stack.append(_MARK),
    "EMPTY_DICT": lambda stack: stack.append({}),
    "EMPTY_LIST": lambda stack: stack.append([]),
    "EMPTY_TUPLE": lambda stack: stack.append(()),
    "TUPLE": lambda stack: stack.append(tuple(_since_mark(stack))),
    "TUPLE1": lambda stack: stack.append(tuple(_pop(stack, 1))),
    "TUPLE2": lambda stack: stack.append(tuple(_pop(stack, 2))),
    "TUPLE3": lambda stack: stack.append(tuple(_pop(stack, 3))),
    "APPEND": lambda stack: stack[-2].append(stack.pop()),
    "APPENDS": lambda stack: stack[-1].extend(values) if (values := _since_mark(stack)) else None,
    "SETITEM": lambda stack: _set_items(stack, _pop(stack, 2)),
    "SETITEMS": lambda stack: _set_items(stack, _since_mark(stack)),
    "REDUCE": _reduce,
    "BUILD": _build,
}


def _storage(persistent: Any) -> _Storage:
    """From ("storage", torch.FloatStorage, key, device, size[, view])."""
    kind, dtype, key, _, size = persistent[:5]
    if kind != "storage" or not isinstance(key, str) or any(persistent[5:]) or size < 0:
        raise ValueError("a storage of an unknown kind")
    return _Storage(key, _DTYPES[dtype.name.removeprefix("torch ")], size)


# --- the values


def _arrays(node: Any, storages: Mapping[str, NDArray[Any]], done: dict[int, Any]) -> Any:
    """Tensors as arrays; what stands in several places is converted once, so that no file can grow by repetition."""
    if isinstance(node, _Tensor):
        return _view(node, storages[node.storage.key])
    if not isinstance(node, dict | list):
        return node
    if id(node) not in done:
        done[id(node)] = None  # met again inside itself: a cycle ends here
        if isinstance(node, dict):
            done[id(node)] = {key: _arrays(value, storages, done) for key, value in node.items()}
        else:
            done[id(node)] = [_arrays(value, storages, done) for value in node]
    return done[id(node)]


def _view(tensor: _Tensor, storage: NDArray[Any]) -> NDArray[Any]:
    """The tensor as a view of its storage, after it was found to stay inside."""
    _, offset, shape, stride = tensor
    if min((offset, *shape, *stride), default=0) < 0 or len(shape) != len(stride):
        raise ValueError("a tensor of negative size")
    if math.prod(shape) == 0:
        return np.empty(shape, storage.dtype)
    last = offset + sum((side - 1) * step for side, step in zip(shape, stride, strict=True))
    if last >= len(storage) or math.prod(shape) > len(storage):
        raise ValueError("a tensor that reaches beyond its storage")
    strides = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, strides, writeable=False)
