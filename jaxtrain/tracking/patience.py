"""How long anything here waits for a store of MLflow: once for all runs of the process, and never in silence."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

MOST_SECONDS = 30.0
"""In all, for a store that does not answer; it comes back by a twentieth of the time that passes."""
SILENT_SECONDS = 8.0
_SHARE = 0.05
_POLL_SECONDS = 0.05
_log = logging.getLogger("jaxtrain.tracking")


class Patience:
    """Seconds left to wait for one store, or for what `who` else follows a run; at most `most`."""

    def __init__(self, where: str, most: float = MOST_SECONDS, who: str | None = None) -> None:
        self._who, self._most = who or f"MLflow at {where}", most
        self._left, self._then = most, time.monotonic()

    def left(self) -> float:
        """Seconds that may be waited now."""
        now = time.monotonic()
        self._left, self._then = min(self._most, self._left + _SHARE * (now - self._then)), now
        return self._left

    def restore(self) -> None:
        """The store has answered."""
        self._left = self._most

    def wait(self, done: Callable[[], bool], timeout: float) -> None:
        """Until `done`, Ctrl-C (which goes on without MLflow), or the end of `timeout` or patience."""
        start = time.monotonic()
        told, most = False, min(timeout, self.left())
        with _interrupts() as interrupted:
            while not done() and not interrupted.is_set() and time.monotonic() - start < most:
                if not told and time.monotonic() - start > SILENT_SECONDS:
                    told = True
                    _log.warning("waiting up to %.0f s for %s; Ctrl-C goes on without it", most, self._who)
                time.sleep(_POLL_SECONDS)
        self._left = 0.0 if interrupted.is_set() else max(0.0, self._left - (time.monotonic() - start))


@contextlib.contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """Whether Ctrl-C was pressed, which does nothing else meanwhile."""
    came = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before: Any = signal.signal(signal.SIGINT, lambda *_: came.set())
    try:
        yield came
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)


_stores: dict[str, Patience] = {}


def patience(where: str, who: str | None = None) -> Patience:
    """That with a store, named without its password, or with `who` else follows runs."""
    return _stores.setdefault(where, Patience(where, who=who))
