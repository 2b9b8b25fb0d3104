"""`idx:PATH`: the files of the MNIST family (format: LeCun, Cortes and Burges, http://yann.lecun.com/exdb/mnist)."""

from __future__ import annotations

import gzip
import math
import os
import re
import struct
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxtrain.archives import DEFLATE
from jaxtrain.config import DataConfig
from jaxtrain.data.arrays import Pair, arrays_dataset
from jaxtrain.data.base import Dataset
from jaxtrain.data.known import KNOWN, mnist_relative
from jaxtrain.data.paths import existing
from jaxtrain.errors import DamagedError, UserError
from jaxtrain.readers import open_file, read_bytes, reading

_NAME = re.compile(r"(?:(?P<prefix>.+)-)?(?P<split>train|t10k|test)-(?P<kind>images|labels)[-.]idx[1-4]-ubyte(?:\.gz)?")
_LAYOUT = "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-..., each with or without .gz"


class _Files(NamedTuple):
    images: Path
    labels: Path


def idx_dataset(config: DataConfig, text: str) -> Dataset:
    """Train and test files of one set in a folder; `idx:FOLDER/PREFIX` picks among several (emnist-letters).

    EMNIST's images lie transposed in their files and are turned upright. Class names of Fashion-MNIST, KMNIST
    and EMNIST are recognised by the path.

    Raises `UserError` when files are missing, `DamagedError` when they are of another kind or damaged.
    """
    folder, prefix = Path(text).expanduser(), None
    if not folder.is_dir() and folder.parent.is_dir() and _sets(folder.parent).get(folder.name):
        folder, prefix = folder.parent, folder.name
    else:
        existing(text, "idx")
        if not folder.is_dir():
            raise UserError(f"idx:{text} is a file: give the folder that holds {_LAYOUT}")
    sets = _sets(folder)
    if not sets:
        raise UserError(f"idx:{text} holds no IDX files: expected {_LAYOUT}")
    if prefix is None:
        if len(sets) > 1:
            choices = ", ".join(f"idx:{folder / name}" for name in sorted(sets) if name)
            raise UserError(f"idx:{text} holds {len(sets)} sets: choose one of {choices}")
        prefix = next(iter(sets))
    splits = sets[prefix]
    if "train" not in splits:
        raise UserError(f"idx:{text} holds no training images: expected {_LAYOUT}")
    # The last two names: torchvision keeps its files under FashionMNIST/raw.
    relative = mnist_relative("/".join((*folder.resolve().parts[-2:], prefix)))
    characters = _emnist_characters(folder, prefix) if relative == "emnist" else None
    known = KNOWN[relative]
    if characters:
        known = replace(known, class_names=tuple(characters.values()))

    def read(files: _Files) -> Pair:
        images, labels = read_idx(files.images), read_idx(files.labels)
        if images.ndim not in (3, 4) or labels.ndim != 1:
            raise UserError(f"{files.images} has {images.ndim} dimensions, its labels {labels.ndim}")
        if relative == "emnist":
            images = images.swapaxes(1, 2)
        return images, _as_characters(labels, characters, files.labels) if characters else labels

    test = splits.get("t10k") or splits.get("test")
    return arrays_dataset(
        config,
        name=config.name,
        known=known,
        train=read(splits["train"]),
        val=None,
        open_test=None if test is None else lambda: read(test),
    )


def _sets(folder: Path) -> dict[str, dict[str, _Files]]:
    """Prefix ("" for MNIST's plain names) -> split -> files, of the sets whose files come in pairs."""
    found: dict[tuple[str, str], dict[str, Path]] = {}
    for path in sorted(folder.iterdir()):
        if match := _NAME.fullmatch(path.name):
            # Of a file and its compressed form, the first in order (the plain one) is used.
            found.setdefault((match["prefix"] or "", match["split"]), {}).setdefault(match["kind"], path)
    sets: dict[str, dict[str, _Files]] = {}
    for (prefix, split), files in found.items():
        missing = {"images", "labels"} - files.keys()
        if missing:
            present = next(iter(files.values()))
            raise UserError(f"{present} has no {missing.pop()} file beside it: expected {_LAYOUT}")
        sets.setdefault(prefix, {})[split] = _Files(**files)
    return sets


def read_idx(path: Path) -> NDArray[np.uint8]:
    """One IDX file of bytes, compressed or not, as a read-only array of the shape in its header.

    Raises `DamagedError` for another kind of file, and where it is truncated or damaged.
    """
    with open_file(path) as plain, reading(path, "IDX file", "fetch it again"):
        packed = plain.read(2) == b"\x1f\x8b"
        plain.seek(0)
        size = os.fstat(plain.fileno()).st_size * (DEFLATE if packed else 1)
        file = gzip.GzipFile(fileobj=plain) if packed else plain
        head = file.read(4)
        if len(head) < 4 or head[:2] != b"\0\0":
            raise DamagedError(f"{path} is not an IDX file: it begins with {head.hex(' ') or 'nothing'}, not 00 00 08")
        if head[2] != 0x08:
            raise DamagedError(f"{path} holds IDX type 0x{head[2]:02x}, not unsigned bytes (0x08)")
        sides = file.read(4 * head[3])
        if len(sides) < 4 * head[3]:
            raise DamagedError(f"{path} is damaged: it ends within its header")
        shape = struct.unpack(f">{head[3]}I", sides)
        needed = math.prod(shape)
        data = file.read(needed + 1) if needed <= size else b""
        if len(data) != needed:
            has = f"{len(data):,}" if data else f"at most {size:,}"
            raise DamagedError(f"{path} is damaged: shape {list(shape)} needs {needed:,} bytes, it has {has}")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _emnist_characters(folder: Path, prefix: str) -> dict[int, str] | None:
    """Label -> character, from the mapping file that EMNIST comes with (Cohen et al. 2017)."""
    path = folder / f"{prefix}-mapping.txt"
    if not path.is_file():
        return None
    data = read_bytes(path, 1 << 20)
    with reading(path, "list of labels and character codes", "fetch it again"):
        rows = [line.split() for line in data.decode().splitlines() if line.strip()]
        return {int(row[0]): chr(int(row[1])) for row in rows}


def _as_characters(labels: NDArray[np.uint8], characters: dict[int, str], path: Path) -> NDArray[np.str_]:
    unknown = set(np.unique(labels).tolist()) - characters.keys()
    if unknown:
        raise UserError(f"{path} holds label {min(unknown)}, which the mapping file does not")
    table = np.array([characters.get(label, "") for label in range(256)])
    return table[labels]
