"""SIGINT and SIGTERM become a request that the training loop looks at between steps."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from jaxtrain.errors import JaxtrainError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(JaxtrainError):  # noqa: N818  (it is no error: someone asked for it)
    """A run that stopped because of a signal, after saving. Exit code 130 (SIGINT) or 143 (SIGTERM)."""

    def __init__(self, signum: int | None, message: str, *, agreed: bool = False) -> None:
        """`agreed`: all processes of the run stop at this same point."""
        super().__init__(message)
        self.agreed = agreed
        self.signum = signum or signal.SIGINT
        self.exit_code = 128 + self.signum


@contextmanager
def stopped_at_once(message: str) -> Iterator[None]:
    """What is between runs ends where a SIGINT or SIGTERM finds it, as Interrupted with this message."""
    came = signal.SIGINT

    def stop(signum: int, _: FrameType | None) -> None:
        nonlocal came
        came = signal.Signals(signum)
        raise KeyboardInterrupt  # which nobody takes for a failure that can be passed over

    before = {number: signal.signal(number, stop) for number in _SIGNALS}
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(came, message) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


class StopRequest:
    """While entered, a first SIGINT or SIGTERM only sets `requested`; another SIGINT ends the process at once.

    Another SIGTERM does not: `timeout`, Slurm and a sweep's first process send it again to those who have it already.
    What cannot look at the flag (compiling, reading data) runs to its end first. Outside the main thread,
    where Python allows no signal handlers, entering does nothing.
    """

    requested: int | None = None
    """The number of the signal that came, if any."""

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    def _handle(self, signum: int, _: FrameType | None) -> None:
        # os.write: printing from a handler may meet the very print that it interrupted
        if self.requested is not None:
            if signum == signal.SIGTERM:
                return
            os.write(2, b"\nstopped at once; the last checkpoint is kept\n")
            os._exit(128 + signum)
        self.requested = signum
        name = signal.Signals(signum).name
        os.write(2, f"\n{name}: saving at the next safe point, then stopping; Ctrl-C to stop at once\n".encode())
