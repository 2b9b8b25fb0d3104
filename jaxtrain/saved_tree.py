"""Arrays and JSON values in one verified folder: what was written, or an error.

Orbax alone restores a file with a flipped bit without a word. So a folder written here holds `state/`
(a plain Orbax tree, which Orbax itself can read) and `meta.json` with the SHA-256 of every file and of every
array. Files are checked before Orbax opens them, arrays after it has read them.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, NonNegativeInt

from jaxtrain.errors import DamagedError, RunError, UserError
from jaxtrain.files import flush_folder, reason
from jaxtrain.readers import json_object, read_bytes, reading
from jaxtrain.trees import Keys, Tree, array_digest, arrays, leaf_name, leaves, nest

Leaves = dict[Keys, NDArray[Any]]

_FORMAT = 1
_META_BYTES = 1 << 28
_KIND = "saved model or checkpoint"
_STATE, _META = "state", "meta.json"
_TEMPORARY, _REPLACED = ".tmp-", ".old-"


_SLACK = 64 << 20


class _Body(BaseModel):
    """The content of meta.json except for the digest of itself."""

    model_config = ConfigDict(strict=True)

    format: int
    meta: dict[str, Any]
    arrays: list[tuple[list[str | int], str, list[NonNegativeInt], str]]
    """Keys (older ones have numbers among them), dtype, shape and SHA-256 of each."""
    empty_dicts: list[list[str | int]]
    files: dict[str, str]
    """SHA-256 of each file by its path."""

    @property
    def described(self) -> dict[Keys, tuple[np.dtype[Any], tuple[int, ...], str]]:
        """dtype, shape and SHA-256 of each array by its keys. Raises TypeError for a dtype that there is not."""
        return {
            tuple(map(str, keys)): (np.dtype(dtype), tuple(shape), digest) for keys, dtype, shape, digest in self.arrays
        }

    def nested(self, leaves: Mapping[Keys, Any]) -> Tree:
        """These values by their keys as nested dicts, with those that are empty."""
        return nest({**{tuple(map(str, keys)): {} for keys in self.empty_dicts}, **leaves})


def save_tree(path: Path, tree: Tree, meta: Mapping[str, Any]) -> None:
    """Writes arrays and JSON values as one verified folder: complete under its name, or not there.

    A folder of this kind that stands at `path` is replaced: a kill in the middle leaves the old or the new.

    Raises:
        RunError: it could not be written (disk full: bytes needed and free); what was there is untouched.
        UserError: `path` is something else.
    """
    path = Path(path).absolute()
    leaves = arrays(tree)
    temporary, replaced = _temporary(path), _replaced(path)
    if os.path.lexists(path) and not (path / _META).is_file():
        raise UserError(f"{path} exists and is not a saved model or checkpoint; choose another path")
    need = sum(leaf.nbytes for leaf in leaves.values()) + (1 << 20)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _recover(path)
        if shutil.disk_usage(path.parent).free < need:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        _write_folder(temporary, tree, leaves, meta)
        if path.exists():
            os.rename(path, replaced)
        os.rename(temporary, path)
        flush_folder(path.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    except Exception as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise RunError(f"{path} could not be saved: {reason(error, path.parent, need)}") from error


def load_tree(path: Path) -> tuple[Tree, dict[str, Any]]:
    """The arrays and JSON values of a folder that `save_tree` wrote.

    Raises:
        UserError: there is no such folder.
        DamagedError: it is not what was written.
        RunError: it may not be read, or is of another version.
    """
    path = Path(path).absolute()
    if not path.exists() and _replaced(path).exists():  # killed while it was replaced
        path = _replaced(path)
    if not path.exists():
        raise UserError(f"{path} does not exist")
    with reading(path, _KIND):
        body = _verified(path)
        described = body.described
        stored = {keys: (dtype, shape) for keys, (dtype, shape, _) in described.items() if 0 not in shape}
        try:
            found = _orbax_restore(path / _STATE, stored) if stored else {}
        except DamagedError:
            raise
        except Exception as error:  # the files are as they were written: an older checkpoint would fare no better
            raise RunError(f"{path} could not be read by this version of Orbax: {reason(error)}") from error
        arrays: Leaves = {}
        for keys, (dtype, shape, digest) in described.items():
            array = found[keys] if keys in stored else np.empty(shape, dtype)
            if (array.dtype, array.shape, array_digest(array)) != (dtype, shape, digest):
                raise DamagedError(f"{path} is damaged: array {leaf_name(keys)} is not the one that was saved")
            arrays[keys] = array
        return body.nested(arrays), body.meta


def read_meta(path: Path) -> dict[str, Any]:
    """The caller's JSON values of a saved folder, without its arrays; raises as `load_tree` does."""
    return _read_body(Path(path).absolute()).meta


def read_shapes(path: Path) -> dict[str, Any]:
    """A `jax.ShapeDtypeStruct` in the place of each array, nested as in `load_tree`; raises as it does."""
    import jax

    path = Path(path).absolute()
    with reading(path, _KIND):
        body = _read_body(path)
        return body.nested(
            {keys: jax.ShapeDtypeStruct(shape, dtype) for keys, (dtype, shape, _) in body.described.items()}
        )


def recover(folder: Path) -> None:
    """Ends what a killed `save_tree` left: unfinished writes go, a replaced folder returns."""
    for leftover in list(folder.iterdir()):
        for prefix in (_TEMPORARY, _REPLACED):
            if leftover.name.startswith(prefix):
                _recover(leftover.with_name(leftover.name.removeprefix(prefix)))


def _temporary(path: Path) -> Path:
    return path.with_name(f"{_TEMPORARY}{path.name}")


def _replaced(path: Path) -> Path:
    return path.with_name(f"{_REPLACED}{path.name}")


def _recover(path: Path) -> None:
    if _temporary(path).exists():
        shutil.rmtree(_temporary(path))
    if _replaced(path).exists():
        if path.exists():
            shutil.rmtree(_replaced(path))
        else:
            os.rename(_replaced(path), path)


def _empty_dicts(tree: Mapping[str, Any], prefix: Keys = ()) -> list[Keys]:
    """Paths of the dicts that hold nothing: part of the structure, but without a leaf."""
    found = [prefix] if prefix and not tree else []
    for key in sorted(tree):
        if isinstance(tree[key], Mapping):
            found += _empty_dicts(tree[key], (*prefix, key))
    return found


# --- one folder -----------------------------------------------------------------------------------


def _write_folder(path: Path, tree: Tree, leaves: Leaves, meta: Mapping[str, Any]) -> None:
    path.mkdir()
    stored = {keys: leaf for keys, leaf in leaves.items() if leaf.size}  # Orbax refuses empty arrays
    described = [[keys, leaf.dtype.name, leaf.shape, array_digest(leaf)] for keys, leaf in leaves.items()]
    if stored:
        _orbax_save(path / _STATE, stored)
    body = {
        "format": _FORMAT,
        "meta": dict(meta),
        "arrays": described,
        "empty_dicts": _empty_dicts(tree),
        "files": {name: _file_digest(path / name, flush=True) for name in _files(path)},
    }
    (path / _META).write_text(_encode(body), encoding="ascii")
    _file_digest(path / _META, flush=True)
    for folder, _, _ in os.walk(path):
        flush_folder(Path(folder))


def _verified(path: Path) -> _Body:
    """The content of meta.json, after every file was found to be the one that was written.

    Names and sizes are compared before anything is hashed.
    """
    try:
        body = _read_body(path)
        names = set(_files(path)) - {_META}
        for name in sorted(names ^ body.files.keys()):
            raise DamagedError(f"{path} is damaged: {name} {'was added' if name in names else 'is missing'}")
        check_sizes(path, [(dtype, shape) for dtype, shape, _ in body.described.values()])
        for name in sorted(names):
            if _file_digest(path / name) != body.files[name]:
                raise DamagedError(f"{path} is damaged: {name} changed")
    except PermissionError as error:
        raise RunError(f"{path} could not be read: {reason(error)}") from error
    except OSError as error:
        raise DamagedError(f"{path} is damaged: {reason(error)}") from error
    return body


def check_sizes(path: Path, arrays: Sequence[tuple[np.dtype[Any], tuple[int, ...]]]) -> None:
    """DamagedError where the files in a folder are far from what arrays of these types and shapes take."""
    size = sum((path / name).stat().st_size for name in _files(path))
    need = sum(math.prod(shape) * dtype.itemsize for dtype, shape in arrays)
    if size > 2 * need + _SLACK or need > 64 * size + _SLACK:
        raise DamagedError(f"{path} is damaged: its arrays have {need:,} bytes, its files {size:,}")


def _encode(body: Mapping[str, Any]) -> str:
    """The text of meta.json, which holds the digest of itself."""
    text = json.dumps(body)
    return json.dumps({**body, "sha256": hashlib.sha256(text.encode()).hexdigest()})


def _read_body(path: Path) -> _Body:
    """The content of meta.json, proven to be what was written, byte for byte."""
    _refuse_links(path)
    if not (path / _META).exists():
        raise DamagedError(f"{path} is damaged: it holds no {_META}")
    data = read_bytes(path / _META, _META_BYTES)
    try:
        body = json_object(data)
        body.pop("sha256")
        sound = _encode(body).encode() == data
    except (ValueError, KeyError, RecursionError):
        sound = False
    if not sound:
        raise DamagedError(f"{path} is damaged: {_META} changed")
    if body.get("format") != _FORMAT:
        formats = f"format {body.get('format')}, not {_FORMAT}"
        raise RunError(f"{path} was written by another version of jaxtrain ({formats})")
    with reading(path / _META, _KIND):
        return _Body.model_validate_json(json.dumps(body))


def _refuse_links(path: Path) -> None:
    """Only regular files and folders may be read: a link could lead anywhere, a pipe could block for ever."""
    pending = [path]
    while pending:
        entry = pending.pop()
        mode = entry.lstat().st_mode
        if stat.S_ISDIR(mode):
            pending += entry.iterdir()
        elif not stat.S_ISREG(mode):
            kind = "a symbolic link" if stat.S_ISLNK(mode) else "no regular file"
            raise DamagedError(f"{path} is refused: {entry.relative_to(path.parent)} is {kind}")


def _files(path: Path) -> list[str]:
    return sorted(entry.relative_to(path).as_posix() for entry in path.rglob("*") if not entry.is_dir())


def _file_digest(path: Path, flush: bool = False) -> str:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if flush:
            os.fsync(file.fileno())
    return digest


# --- Orbax ----------------------------------------------------------------------------------------


def _orbax_key(path: Keys) -> Keys:
    """Orbax joins keys with dots: {"a.b": x} and {"a": {"b": x}} would be one file."""
    return tuple(quote(key, safe=" ").replace(".", "%2E") for key in path)


def _handler() -> Any:
    """Orbax's handler of trees, for this process alone (no barrier with other hosts), without compression."""
    import jax
    import orbax.checkpoint as ocp

    process = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=process, active_processes={process}, barrier_sync_key_prefix=f"jaxtrain-{process}"
    )
    return ocp.PyTreeCheckpointHandler(use_compression=False, multiprocessing_options=alone)


def _orbax_save(path: Path, leaves: Leaves) -> None:
    import orbax.checkpoint as ocp

    with _quiet():
        handler = _handler()
        path.mkdir()
        tree = nest({_orbax_key(keys): leaf for keys, leaf in leaves.items()})
        handler.save(path, args=ocp.args.PyTreeSave(tree))
        handler.finalize(path)
        handler.close()


def _orbax_restore(path: Path, stored: Mapping[Keys, tuple[np.dtype[Any], tuple[int, ...]]]) -> Leaves:
    """The arrays; DamagedError, before any is read, where those in the folder have other types or shapes."""
    import orbax.checkpoint as ocp

    with _quiet():
        handler = _handler()
        there = leaves(handler.metadata(path).tree)
        known = {_orbax_key(keys): about for keys, about in stored.items()}
        for keys in known.keys() | there.keys():
            array = there.get(keys)
            if array is None or (np.dtype(array.dtype), tuple(array.shape)) != known.get(keys):
                raise DamagedError(f"{path.parent} is damaged: array {leaf_name(keys)} is not the one that was saved")
        as_numpy = nest({_orbax_key(keys): ocp.RestoreArgs(restore_type=np.ndarray) for keys in stored})
        tree = handler.restore(path, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
        handler.close()
    found = leaves(tree)
    return {keys: np.asarray(found[_orbax_key(keys)]) for keys in stored}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Orbax's notes on its own timing out of the log, and nothing else."""
    logger = logging.getLogger("absl")

    def only_errors(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR or "orbax" not in record.pathname

    logger.addFilter(only_errors)
    try:
        yield
    finally:
        logger.removeFilter(only_errors)
