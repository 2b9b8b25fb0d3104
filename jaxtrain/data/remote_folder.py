"""Folders at remote addresses: listed once, then looked into as local ones are."""

from __future__ import annotations

import fnmatch
import glob
import posixpath
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from jaxtrain.data.remote import RemoteFile, RemotePaths, checked, missing, patient, state_of
from jaxtrain.data.remote_cache import Cache
from jaxtrain.errors import UserError


class Entry(NamedTuple):
    """As of `os.scandir`."""

    name: str
    path: str
    folder: bool

    def is_symlink(self) -> bool:
        """Never."""
        return False

    def is_dir(self) -> bool:
        """Whether it is a folder."""
        return self.folder

    def is_file(self) -> bool:
        """Whether it is a file."""
        return not self.folder


@dataclass(frozen=True)
class _Tree:
    cache: Cache
    within: dict[str, dict[str, tuple[int, int] | None]] = field(default_factory=lambda: defaultdict(dict))
    """Names in each folder, with size and version; None for folders."""


@dataclass(frozen=True)
class RemoteFolder:
    """A folder in a remote store, with as much of `Path` as it takes to find classes and images in it."""

    address: str
    _tree: _Tree = field(repr=False, compare=False)

    def __str__(self) -> str:
        return self.address

    def __truediv__(self, name: str) -> RemoteFolder:
        return RemoteFolder(f"{self.address}/{name}", self._tree)

    @property
    def name(self) -> str:
        """The last part of its address."""
        return self.address.rpartition("/")[2]

    @property
    def parent(self) -> RemoteFolder:
        """The folder that it is in."""
        return RemoteFolder(self.address.rpartition("/")[0], self._tree)

    def relative_to(self, other: RemoteFolder) -> str:
        """Its path within another folder."""
        return self.address[len(other.address) + 1 :]

    def entries(self) -> Iterator[Entry]:
        """What is in it."""
        for name, state in self._tree.within.get(self.address, {}).items():
            yield Entry(name, f"{self.address}/{name}", state is None)

    def below(self) -> Iterator[str]:
        """The addresses of all files below it."""
        for entry in self.entries():
            yield from (self / entry.name).below() if entry.folder else [entry.path]

    def file(self, address: str) -> RemoteFile:
        """A file below it."""
        return RemoteFile(address, *self._state(address), self._tree.cache)

    def _state(self, address: str) -> tuple[int, int]:
        folder, _, name = address.rpartition("/")
        state = self._tree.within[folder][name]
        assert state is not None, "a folder is not a file"
        return state

    def files(self, names: Sequence[str]) -> RemotePaths:
        """Files below it, by their addresses."""
        states = np.empty((len(names), 2), np.int64)
        for place, name in enumerate(names):
            states[place] = self._state(name)
        return RemotePaths(names, self._tree.cache, states)


def remote_folder(address: str, cache: Cache, where: str) -> RemoteFolder:
    """All that is below an address. UserError where there is nothing, or a file; else raises as `patient`."""
    address = checked(address).rstrip("/")
    if address.startswith("http"):
        raise UserError(f"{where}: a folder cannot be listed over http: name its files in a table (csv:FILE)")
    try:
        root, found = patient(
            address, lambda system, path: (path.rstrip("/"), system.find(path, detail=True, withdirs=False))
        )
        if not found:
            raise FileNotFoundError
    except OSError as error:
        raise UserError(f"{where} {missing(address, error)}") from None
    if root in found:
        raise UserError(f"{where} is a file, not a folder")
    tree = _Tree(cache)
    for name, details in found.items():
        inner = name[len(root) :].lstrip("/")
        if inner and not inner.endswith("/"):  # as some consoles mark folders
            _enter(tree, address, inner, state_of(details))
    return RemoteFolder(address, tree)


def _enter(tree: _Tree, folder: str, inner: str, state: tuple[int, int]) -> None:
    *above, name = inner.split("/")
    for part in above:
        tree.within[folder][part] = None
        folder = f"{folder}/{part}"
    tree.within[folder].setdefault(name, state)


def remote_files(patterns: Sequence[str], cache: Cache, where: str) -> tuple[list[RemoteFile], list[str]]:
    """The files that addresses name, each once and in order, whose last parts may be patterns; and those not there.

    Raises as `remote_folder`.
    """
    found: dict[str, tuple[int, int]] = {}
    lacking: list[str] = []
    patterns = [checked(pattern) for pattern in patterns]
    folders = dict.fromkeys(posixpath.dirname(pattern) for pattern in patterns)
    if magic := next((folder for folder in folders if glob.has_magic(folder)), None):
        raise UserError(f"{where}: {magic} is a pattern; of remote files only the last part may be one")
    for folder in folders:
        if folder.startswith("http"):  # which has no lists
            found |= _one_by_one([pattern for pattern in patterns if posixpath.dirname(pattern) == folder], where)
            continue
        try:
            listed = patient(folder, lambda system, path: system.ls(path, detail=True))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise UserError(f"{where} {missing(folder, error)}") from None
        found |= {
            f"{folder}/{posixpath.basename(details['name'])}": state_of(details)
            for details in listed
            if details.get("type") != "directory"
        }
    chosen: dict[str, None] = {}
    for pattern in patterns:
        of_pattern = [name for name in found if fnmatch.fnmatchcase(name, pattern)] if glob.has_magic(pattern) else []
        of_pattern += [pattern] if pattern in found else []
        lacking += [] if of_pattern else [pattern]
        chosen |= dict.fromkeys(of_pattern)
    return [RemoteFile(name, *found[name], cache) for name in sorted(chosen)], lacking


def _one_by_one(addresses: Sequence[str], where: str) -> dict[str, tuple[int, int]]:
    """Size and version of those that are there."""
    found = {}
    for address in addresses:
        try:
            found[address] = state_of(patient(address, lambda system, path: system.info(path)))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise UserError(f"{where} {missing(address, error)}") from None
    return found
