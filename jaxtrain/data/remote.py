"""Files at remote addresses (s3://, gs://, hf://, http://), read through fsspec and kept in a cache."""

from __future__ import annotations

import errno
import hashlib
import os
import posixpath
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from jaxtrain.data.remote_cache import Cache
from jaxtrain.errors import RunError, UserError, nearest
from jaxtrain.redact import redact, secret_name

T = TypeVar("T")

_SCHEMES = {"s3": "s3fs", "gs": "gcsfs", "hf": "huggingface_hub", "http": "aiohttp", "https": "aiohttp", "memory": None}
"""What is read, and the package that it takes."""
ADDRESS = "^[A-Za-z][A-Za-z0-9+.-]*://"
"""How one begins."""
_USER_INFO = re.compile(f"({ADDRESS})[^/@]*@")
_OF_A_SIGNATURE = re.compile(
    r"x-amz-.*|x-goog-.*|awsaccesskeyid|googleaccessid|expires|policy|key-pair-id|s[vepri]|st|spr|sip|sk[a-z]*id|sk[tesv]"
)
"""Parameters that change whenever an address is signed again."""
_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds before each further attempt."""
_GONE = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
_HOPELESS = re.compile("Credential|ProfileNotFound|Certificate|RefreshError|InvalidURL|ParamValidation")
"""In the name of an error that another attempt does not mend."""
_CONTENT = ("ETag", "etag", "md5Hash", "blob_id", "Content-MD5", "Digest")
_TIMES = ("LastModified", "Last-Modified", "last_modified", "updated", "mtime", "created")
"""Keys by which fsspec's file systems say which version of a file there is."""
_SMALL = 1 << 20


def is_remote(text: str) -> bool:
    """Whether a path is an address that is not this machine's."""
    return re.match(ADDRESS, text) is not None and not text.startswith("file://")


def checked(address: str, table: str = "") -> str:
    """The address, its scheme in small letters; UserError for a scheme that is not read, or not without a package.

    `table`: what names it.
    """
    told = f"{table}: {shown(address)}" if table else shown(address)
    scheme = address.partition("://")[0].lower()
    if scheme not in _SCHEMES:
        raise UserError(f"{told}: {scheme}:// is not read: {nearest(scheme, [*_SCHEMES, 'file'])}")
    package = _SCHEMES[scheme]
    if package is not None and find_spec(package) is None:
        raise UserError(f'{told}: {scheme}:// needs the package {package}: pip install -e ".[remote]"')
    return scheme + address[len(scheme) :]


def normal(address: str) -> str:
    """The same without `.` and `..`, which stores do not know."""
    scheme, mark, path = address.partition("://")
    return f"{scheme}{mark}{posixpath.normpath(path)}" if mark else address


def shown(address: str) -> str:
    """What an address is called: the same without user, password, tokens and what belongs to a signature."""
    address = _USER_INFO.sub(r"\1", address)
    path, mark, query = address.partition("?")
    if not mark or not address.startswith("http"):
        return address
    parts = [(part.partition("=")[0].lower(), part) for part in query.split("&")]
    signed = any(name in ("sig", "signature") or name.endswith("-signature") for name, _ in parts)
    kept = [part for name, part in parts if not secret_name(name) and not (signed and _OF_A_SIGNATURE.fullmatch(name))]
    return path + ("?" if kept else "") + "&".join(kept)


@dataclass(frozen=True)
class RemoteFile:
    """A file at an address. Its methods raise OSError where it is missing or not for us, RunError for other trouble."""

    address: str
    size: int
    """Bytes; -1: unknown."""
    version: int
    """Another one for a file that has changed; -1: unknown, and a copy is used as long as there is one."""
    cache: Cache

    def __str__(self) -> str:
        return shown(self.address)

    def read(self, most: int) -> bytes:
        """The whole file, from the cache or into it; `most`: bytes that it may have."""
        self._refuse_large(self.size, most)
        place = self._place()
        data = self.cache.get(place)
        if data is None:
            data = patient(self.address, lambda system, path: system.cat_file(path))
            if 0 <= self.size != len(data):
                raise RunError(f"{self} has changed: it had {self.size:,} bytes, now {len(data):,}; start again")
            self._refuse_large(len(data), most)
            self.cache.put(place, data)
        return data

    def _refuse_large(self, size: int, most: int) -> None:
        if size > most:
            raise OSError(errno.EFBIG, f"has {size:,} bytes, more than the {most:,} that are read", str(self))

    def part(self, start: int, length: int) -> bytes:
        """Some bytes of it, from the cache or into it; fewer where the file ends."""
        data = self.cache.get(self._place(), start, length)
        if data is None:
            place = self._place(start, length)
            data = self.cache.get(place)
            if data is None:
                end = start + length
                data = patient(self.address, lambda system, path: system.cat_file(path, start=start, end=end))
                data = data if len(data) <= length else data[start:end]  # of a server that sends whole files only
                self.cache.put(place, data)
        return data

    def head(self, length: int, most: int) -> bytes:
        """The first bytes of a large file; all of any other, which is then in the cache."""
        return self.part(0, length) if self.size > _SMALL else self.read(most)

    def forget(self) -> None:
        """Fetches it again next time, where nothing else would say that it has changed."""
        if self.version < 0:
            self._place().unlink(missing_ok=True)

    @contextmanager
    def local(self) -> Iterator[Path]:
        """A copy on this machine, which is there while the block lasts; errors in it name the address instead.

        Raises UserError where the file is missing or not for us.
        """

        def fetch(file: Path) -> None:
            try:
                patient(self.address, lambda system, path: system.get_file(path, str(file)))
            except OSError as error:
                raise UserError(f"{self} cannot be read: {error.strerror}") from None

        name = ""
        try:
            with self.cache.whole(self._place(), self.size, fetch) as path:
                name = str(path)
                yield path
        except (UserError, RunError) as error:
            if name and name in str(error):
                raise type(error)(str(error).replace(name, str(self))) from None
            raise

    def _place(self, *part: int) -> Path:
        return self.cache.place(str(self), self.size, self.version, *part)


@dataclass(frozen=True)
class RemotePaths(Sequence["str | RemoteFile"]):
    """Files by address and by path: paths stay strings."""

    names: Sequence[str]
    cache: Cache
    states: NDArray[np.int64] | None = None
    """Size and version of each: `int64[files, 2]`."""

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        name = self.names[index]
        if not is_remote(name):
            return name
        size, version = (-1, -1) if self.states is None else self.states[index].tolist()
        return RemoteFile(name, size, version, self.cache)


def remote_file(address: str, cache: Cache, where: str) -> RemoteFile:
    """One file whose size and version are looked up; UserError where it is not there."""
    address = checked(address)
    try:
        details = patient(address, lambda system, path: system.info(path))
        if details.get("type") == "directory":
            raise UserError(f"{where} is a folder: name a file")
    except OSError as error:
        raise UserError(f"{where} {missing(address, error)}") from None
    return RemoteFile(address, *state_of(details), cache)


def missing(address: str, error: OSError) -> str:
    """Why something cannot be read; for what is not there, the nearest of its neighbours."""
    if not isinstance(error, FileNotFoundError):
        return f"cannot be read: {error.strerror}"
    folder, _, name = address.rstrip("/").rpartition("/")
    try:
        names = [posixpath.basename(found.rstrip("/")) for found in _neighbours(folder)]
    except (OSError, RunError, NotImplementedError):  # http has no lists: no name is suggested
        names = []
    return f"does not exist: {nearest(name, names)}" if names else "does not exist"


def _neighbours(folder: str) -> list[str]:
    return patient(folder, lambda system, path: system.ls(path, detail=False))


def state_of(details: Mapping[str, Any]) -> tuple[int, int]:
    """Size and version of what a file system tells of a file; -1 where it does not tell."""
    known = [str(details[key]) for key in _CONTENT if details.get(key)]
    known = known or [str(details[key]) for key in _TIMES if details.get(key)]
    size = details.get("size")
    version = int.from_bytes(hashlib.sha256("\0".join(known).encode()).digest()[:7], "big") if known else -1
    return -1 if size is None else int(size), version


def patient(address: str, action: Callable[[Any, str], T]) -> T:
    """`action(file system, path)`, with further attempts after ever longer pauses.

    Raises FileNotFoundError where there is nothing, PermissionError where it is not for us, each with the reason as
    `strerror`; RunError for a store that does not answer.
    """
    scheme, mark, rest = address.partition("://")
    scheme = scheme.lower()
    for pause in (*_PAUSES, None):
        try:
            system = _system(scheme, os.getpid())
            return action(system, system._strip_protocol(scheme + mark + rest))
        except _GONE as error:
            raise type(error)(errno.ENOENT, os.strerror(errno.ENOENT), shown(address)) from None
        except Exception as error:
            status = getattr(error, "status", None) or getattr(error, "code", None)
            refused = isinstance(status, int) and 400 <= status < 500 and status not in (408, 425, 429)
            if isinstance(error, PermissionError) or refused:
                why = os.strerror(errno.EACCES) + (f" (HTTP {status})" if refused else "")
                raise PermissionError(errno.EACCES, why, shown(address)) from None
            if pause is None or isinstance(error, ValueError | TypeError | ImportError) or _hopeless(error):
                why = " ".join(redact(str(error)).split())[:300]
                raise RunError(
                    f"{shown(address)} cannot be read: {type(error).__name__}: {why}; the same command goes on when it "
                    "can be"
                ) from None
        time.sleep(pause)
    raise AssertionError


def _hopeless(error: BaseException) -> bool:
    return _HOPELESS.search(type(error).__name__) is not None


@lru_cache
def _system(scheme: str, process: int) -> Any:
    """fsspec's file system, one per process: its connections do not survive a fork."""
    del process
    import fsspec

    options: dict[str, Any] = {}
    if scheme == "s3":
        given = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
        limits = {"connect_timeout": 10, "read_timeout": 20, "retries": {"total_max_attempts": 1}}
        options = {"config_kwargs": {**limits, **given}}
    elif scheme in ("http", "https"):
        import aiohttp

        options = {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=20)}}
    system = fsspec.filesystem(scheme, use_listings_cache=False, skip_instance_cache=True, **options)
    if scheme == "s3":
        system.retries = 1  # further attempts are made here
    return system
