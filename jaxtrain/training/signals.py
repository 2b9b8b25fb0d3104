"""SIGINT, SIGTERM and SIGHUP: a run saves and stops, everything else ends at once.

Nothing here raises from a signal handler. Python runs handlers wherever the main thread happens to be, inside a
callback of JAX's garbage collection too, where an exception is printed and forgotten. And it runs none at all while
the main thread compiles: so a program (`listen`) hears of signals in a thread, which can also end the process.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import signal
import threading
import time
from typing import Any, NoReturn

from jaxtrain.errors import JaxtrainError

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
PATIENCE_SECONDS = 4.0
"""A program that was asked to stop, and has nothing to save, ends after this long wherever it is."""
_REPEATED_SECONDS = 3.0
"""`timeout`, Slurm and closed terminals send SIGTERM or SIGHUP twice, to a process and to its group."""
_KEPT = "what is finished is kept"


class Interrupted(JaxtrainError):  # noqa: N818  (not an error: someone asked for it)
    """A run that stopped because of a signal, after saving. Exit code 130 (SIGINT), 143 (SIGTERM) or 129 (SIGHUP)."""

    def __init__(self, signum: int | None, message: str, *, agreed: bool = False) -> None:
        """`agreed`: all processes of the run stop at this same point."""
        super().__init__(message)
        self.agreed = agreed
        self.signum = signum or signal.SIGINT
        self.exit_code = 128 + self.signum


class _Asked:
    """What the requests that are entered share."""

    def __init__(self, words: str | None) -> None:
        self.words = words  # said where the process has to be ended; None: nothing is ever said
        self.signum: int | None = None
        self.since = 0.0
        self.unsaved: set[StopRequest] = set()  # those that guard work which would be lost if the process ended now


_current: _Asked | None = None
_listening = False
_silent = False


class StopRequest:
    """While entered, a first signal only sets `requested`; SIGINT after that ends the process at once.

    So does another SIGTERM or SIGHUP, some seconds later. Requests that are entered inside another one share what was
    asked for. Outside the main thread, where Python allows no signal handlers, entering does nothing.
    """

    def __init__(self, words: str | None = _KEPT) -> None:
        """`words`: what is said where the process ends before its owner looks at the request; None: nothing at all."""
        self._asked = _Asked(words)
        self._before: dict[int, Any] = {}
        self._outermost = False

    @property
    def requested(self) -> int | None:
        """The number of the signal that came, if any."""
        return self._asked.signum

    @requested.setter
    def requested(self, signum: int | None) -> None:
        self._asked.signum = signum

    def unsaved(self, unsaved: bool) -> None:
        """Whether work would be lost if the process ended now; at first nothing would."""
        (self._asked.unsaved.add if unsaved else self._asked.unsaved.discard)(self)

    def check(self, message: str) -> None:
        """Raises Interrupted with this message after a signal."""
        if self.requested is not None:
            raise Interrupted(self.requested, message)

    def __enter__(self) -> StopRequest:
        global _current
        if threading.current_thread() is not threading.main_thread():
            return self
        if _current is not None:
            self._asked = _current
            return self
        self._outermost, _current = True, self._asked
        if not _listening:
            self._before = {number: signal.signal(number, _answer) for number in _heard()}
        return self

    def __exit__(self, *_: object) -> None:
        global _current
        self.unsaved(False)
        if not self._outermost:
            return
        self._outermost = False
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before, _current = {}, None


def listen() -> None:
    """The first thing that a program does: from now on a signal ends it, at once where no StopRequest is entered."""
    global _listening
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    for number in _heard():
        signal.signal(number, lambda *_: None)  # the thread answers
    _listening = True
    atexit.register(_end_undisturbed)
    threading.Thread(target=_listen, args=(read,), name="signals", daemon=True).start()


def last_words_said() -> None:
    """Whatever ends the program from now on does so silently."""
    global _silent
    _silent = True


def _heard() -> list[int]:
    """All but SIGHUP under `nohup`."""
    return [each for each in SIGNALS if each == signal.SIGINT or signal.getsignal(each) != signal.SIG_IGN]


def _end_undisturbed() -> None:
    """Run last: while Python takes itself down, signals would end it without a word."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _listen(read: int) -> None:
    first: tuple[float, int, str | None] | None = None
    while True:
        ready, _, _ = select.select([read], [], [], None if first is None else 0.1)
        for number in os.read(read, 64) if ready else ():
            if number in SIGNALS:
                asked = _current
                _answer(number, None)
                if first is None and asked is not None:
                    first = time.monotonic(), number, asked.words
        if first is not None and not (_current is not None and _current.unsaved):
            since, number, words = first
            if time.monotonic() - since > PATIENCE_SECONDS:
                _end(number, words)


def _answer(signum: int, _: Any) -> None:
    asked = _current
    name = signal.Signals(signum).name
    if asked is None:
        _end(signum, _KEPT)
    elif asked.signum is None:
        asked.signum, asked.since = signum, time.monotonic()
        if asked.words is not None:
            _say(f"\n{name}: saving at the next safe point, then stopping; Ctrl-C to stop at once\n")
    elif signum == signal.SIGINT or time.monotonic() - asked.since > _REPEATED_SECONDS:
        _end(signum, asked.words and "stopped at once; the last checkpoint is kept")


def _end(signum: int, words: str | None) -> NoReturn:
    if words is not None and not _silent:
        _say(f"\ninterrupted: by {signal.Signals(signum).name}; {words}\n")
    os._exit(128 + signum)


def _say(text: str) -> None:
    # Printing from a handler may meet the very print that it interrupted; a closed terminal takes nothing.
    with contextlib.suppress(OSError):
        os.write(2, text.encode())


__all__ = ["SIGNALS", "Interrupted", "StopRequest", "last_words_said", "listen"]
