"""Arrays from a PyTorch file (`.pth`, `.pt`, `.bin`) without torch, and without running anything that it asks for.

Such a file is a pickle that describes tensors, and their raw values. `pickle.Unpickler` reads the description, held
to the few instructions and the few names that a plain state dict is made of. A name stands for an entry of a table
here: nothing is ever imported, and a file that asks for anything else is refused by the name of what it asked for.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jaxtrain.archives import check_archive
from jaxtrain.errors import UserError
from jaxtrain.readers import open_file, reading

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_DTYPES: dict[str, Any] = {
    "torch.DoubleStorage": "<f8",
    "torch.FloatStorage": "<f4",
    "torch.HalfStorage": "<f2",
    "torch.BFloat16Storage": jnp.bfloat16,
    "torch.LongStorage": "<i8",
    "torch.IntStorage": "<i4",
    "torch.ShortStorage": "<i2",
    "torch.CharStorage": "i1",
    "torch.ByteStorage": "u1",
    "torch.BoolStorage": "?",
}
_ORDERED_DICT = "collections.OrderedDict"
_TENSOR, _PARAMETER = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"
_NAMES = {_ORDERED_DICT, _TENSOR, _PARAMETER, *_DTYPES}
_INSTRUCTIONS = {
    *("PROTO", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "TUPLE"),
    *("TUPLE1", "TUPLE2", "TUPLE3", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "BINPUT", "LONG_BINPUT", "BINGET"),
    *("LONG_BINGET", "GLOBAL", "BINPERSID", "REDUCE", "BUILD"),
}
"""What torch.save writes. Nothing here makes an object other than through `_Name`, or takes memory unasked."""


class _Storage(NamedTuple):
    """Values that tensors look at: where they are in the file, and how many of what."""

    key: str
    dtype: np.dtype[Any]
    size: int


class _Tensor(NamedTuple):
    """A view of a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _OrderedDict(dict[Any, Any]):
    """A dict that drops its attributes: torch keeps versions of modules there."""

    def __setstate__(self, state: Any) -> None:
        pass


class _Name(NamedTuple):
    """A name that the pickle would have imported: one of `_NAMES`. As a tuple it has no attributes to overwrite."""

    name: str

    def __call__(self, *arguments: Any) -> Any:
        """A call, which is made of three known functions only."""
        if self.name == _ORDERED_DICT and not arguments:
            return _OrderedDict()
        if self.name == _TENSOR:
            return _Tensor(*arguments[:4])
        if self.name == _PARAMETER:
            return arguments[0]
        raise _refusal(self.name)


def _refusal(name: str) -> UserError:
    return UserError(
        f"is refused: it asks for {name[:100]}, and only tensors in dicts are read; "
        "save the state dict alone, best as .safetensors"
    )


class _Reader(pickle.Unpickler):
    """What one pickle describes; `storages` are those that it names."""

    def __init__(self, file: IO[bytes]) -> None:
        start = file.tell()
        places = 0
        for instruction, argument, _ in pickletools.genops(file):
            places += instruction.name.endswith("BINPUT")
            if instruction.name not in _INSTRUCTIONS:
                raise UserError(f"is refused: a file of tensors has no pickle instruction {instruction.name}")
            if instruction.name == "LONG_BINPUT" and (argument or 0) > 256 + places:  # memory for all before it
                raise ValueError("its pickle skips places of the memo")
        file.seek(start)
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> _Name:  # type: ignore[override]
        if f"{module}.{name}" not in _NAMES:
            raise _refusal(f"{module}.{name}")
        return _Name(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        """From ("storage", torch.FloatStorage, key, device, size[, view])."""
        kind, dtype, key, _, size, *view = pid
        if kind != "storage" or not isinstance(key, str) or any(view) or not isinstance(size, int) or size < 0:
            raise ValueError("a storage of an unknown kind")
        storage = _Storage(key, np.dtype(_DTYPES[dtype.name]), size)
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError(f"two descriptions of storage {key}")
        return storage


def read_torch_file(path: Path) -> dict[str, Any]:
    """The nested dicts of arrays that `torch.save` wrote; values that are not arrays stay what they are.

    Both of torch's layouts are read: the zip archive, and the stream of before torch 1.6. Raises UserError for a file
    that is neither, is damaged, or holds anything but tensors, numbers, texts, lists and dicts.
    """
    with open_file(path) as file, reading(path, "PyTorch file", "fetch it again"):
        tree, storages = _read_zip(file) if zipfile.is_zipfile(file) else _read_legacy(file)
        value = _arrays(tree, storages, {})
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a {type(value).__name__}, not a dict of tensors (a state dict)")
    return value


def _read_zip(file: IO[bytes]) -> tuple[Any, Mapping[str, NDArray[Any]]]:
    """`NAME/data.pkl`, and each storage as `NAME/data/KEY`."""
    file.seek(0)
    with zipfile.ZipFile(file) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise UserError("is a zip archive, but not one that torch.save wrote")
        folder = pickles[0].removesuffix("data.pkl")
        check_archive(archive, file.seek(0, io.SEEK_END))
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise UserError("is refused: it is compressed, which torch.save never does")
        order = f"{folder}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise UserError("was written on a big-endian machine")
        reader = _Reader(io.BytesIO(archive.read(pickles[0])))
        tree = reader.load()
        values = {
            key: np.frombuffer(archive.read(f"{folder}data/{key}"), storage.dtype, storage.size)
            for key, storage in reader.storages.items()
        }
    return tree, values


def _read_legacy(file: IO[bytes]) -> tuple[Any, Mapping[str, NDArray[Any]]]:
    """Five pickles: magic number, version, machine, tree, keys; then of each key a count and the values."""
    file.seek(0)
    if (_Reader(file).load(), _Reader(file).load()) != (_LEGACY_MAGIC, _LEGACY_PROTOCOL):
        raise ValueError("no magic number")
    if _Reader(file).load().get("little_endian") is not True:
        raise UserError("was written on a big-endian machine")
    reader = _Reader(file)
    tree, keys = reader.load(), _Reader(file).load()
    values = {}
    for key in keys:
        _, dtype, size = reader.storages[key]
        count = int.from_bytes(file.read(8), "little", signed=True)
        if count != size:
            raise ValueError(f"storage {key} has {count} values, not {size}")
        values[key] = np.frombuffer(file.read(count * dtype.itemsize), dtype, count)
    return tree, values


def _arrays(node: Any, storages: Mapping[str, NDArray[Any]], done: dict[int, Any]) -> Any:
    """Tensors as arrays; what is in several places is converted once, so that no file can grow by repetition."""
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
