"""Copies of remote files in the user's cache: whole or not at all, and no more of them than a bound allows."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from jaxtrain.errors import RunError
from jaxtrain.files import reason, try_lock, user_cache

_log = logging.getLogger(__name__)
_MADE_AT = 0
"""The time of change of every copy, so that one that was fetched again is the same to who looks at it."""
_USE_NOTED_AFTER, _LEFT_OVER_AFTER = 600.0, 86_400.0
"""Seconds."""
_FULL = 0.9
"""Share of the limit at which the oldest copies go."""
_numbers = itertools.count()
_added: Counter[Path] = Counter()
"""Bytes that this process has added since it last looked at how much there is."""
_warned: set[Path] = set()
_guard = threading.Lock()


@dataclass(frozen=True)
class Cache:
    """A folder of copies; those that were used longest ago go first. Any number of processes may share it."""

    folder: Path
    limit: int
    """Bytes."""

    @classmethod
    def of(cls, gigabytes: float) -> Cache:
        """The user's."""
        return cls(user_cache() / "remote", int(gigabytes * 1e9))

    def place(self, *key: object) -> Path:
        """Where the copy of what is so called lies."""
        name = hashlib.sha256(repr(key).encode(errors="surrogateescape")).hexdigest()
        return self.folder / name[:2] / name[2:34]

    def get(self, place: Path, start: int = 0, length: int | None = None) -> bytes | None:
        """A copy, or `length` bytes of it from `start` on; None where there is none."""
        try:
            with open(place, "rb", buffering=0) as file:
                state = os.fstat(file.fileno())
                if time.time() - state.st_atime > _USE_NOTED_AFTER:
                    _note_use(place)
                return os.pread(file.fileno(), state.st_size if length is None else length, start)
        except OSError:
            return None

    def put(self, place: Path, data: bytes) -> None:
        """Keeps a copy. A full or read-only disk costs time, nothing else, which is said once."""
        try:
            with self._new(place, len(data)) as temporary:
                temporary.write_bytes(data)
        except OSError as error:
            if self.folder not in _warned:
                _warned.add(self.folder)
                _log.warning("%s keeps no copies of remote files: %s", self.folder, reason(error))

    @contextlib.contextmanager
    def whole(self, place: Path, size: int, fetch: Callable[[Path], None]) -> Iterator[Path]:
        """A name for the copy that stays while the block lasts; `fetch` writes it to a file where there is none.

        Raises RunError where it cannot be written.
        """
        try:
            with self._held(place) as held:
                if held is not None:
                    yield held
                    return
            with self._new(place, size) as temporary:
                fetch(temporary)
                yield temporary
        except OSError as error:
            if not str(error.filename or "").startswith(str(self.folder)):
                raise
            why = reason(error, self.folder, max(size, 0))
            raise RunError(
                f"{self.folder} takes no copy of a remote file: {why}; XDG_CACHE_HOME names another folder"
            ) from None

    @contextlib.contextmanager
    def _held(self, place: Path) -> Iterator[Path | None]:
        """Another name for a copy, by which it stays when it is removed from the cache meanwhile."""
        name = _temporary(place)
        try:
            os.link(place, name)
        except OSError:
            if not place.exists():
                yield None
                return
            name = place  # on a file system without links
        try:
            _note_use(place)
            yield name
        finally:
            if name != place:
                name.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _new(self, place: Path, size: int) -> Iterator[Path]:
        """A file to write and to use, which becomes the copy at the end, unless it alone would fill the cache."""
        place.parent.mkdir(parents=True, exist_ok=True)
        self._make_room(size)
        name = _temporary(place)
        try:
            yield name
            with open(name, "rb") as file:
                os.fsync(file.fileno())
                if os.fstat(file.fileno()).st_size > _FULL * self.limit:
                    return
            os.utime(name, (time.time(), _MADE_AT))
            os.replace(name, place)
        finally:
            name.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        """Keeps the copies below the limit: looked at when a process first adds one, then after each 20th of it."""
        size = max(size, 0) if size <= _FULL * self.limit else 0
        with _guard:
            due = self.folder not in _added or _added[self.folder] + size > self.limit / 20
            _added[self.folder] = 0 if due else _added[self.folder] + size
        if not due or (lock := try_lock(self.folder / "lock")) is None:
            return
        try:
            self._remove_oldest(size)
        finally:
            os.close(lock)

    def _remove_oldest(self, size: int) -> None:
        found, total, now = [], size, time.time()
        for entry in _copies(self.folder):
            with contextlib.suppress(OSError):
                state = entry.stat(follow_symlinks=False)
                if entry.name.startswith("."):  # what a process left that was killed, or is at work on
                    if now - state.st_ctime > _LEFT_OVER_AFTER:
                        os.unlink(entry.path)
                    continue
                found.append((state.st_atime, state.st_size, entry.path))
                total += state.st_size
        if total <= _FULL * self.limit:
            return
        for _, length, path in sorted(found):
            if total <= 0.8 * self.limit:
                break
            with contextlib.suppress(OSError):
                os.unlink(path)
                total -= length


def _copies(folder: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as parts:
        for part in parts:
            if part.is_dir(follow_symlinks=False):
                with os.scandir(part.path) as entries:
                    yield from entries


def _note_use(place: Path) -> None:
    with contextlib.suppress(OSError):
        os.utime(place, (time.time(), _MADE_AT))


def _temporary(place: Path) -> Path:
    return place.with_name(f".{place.name}.{os.getpid()}.{next(_numbers)}")
