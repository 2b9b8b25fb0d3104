"""At which step all processes of a run stop or save."""

from __future__ import annotations

import time
from typing import Any

from jaxtrain.training import processes
from jaxtrain.training.signals import StopRequest

_SECONDS = 1.0


class Agreement:
    """Signals come to one process and clocks differ, but all have to act after the same step.

    So process 0 decides, about once a second, and says at which step the next decision is due: between decisions a
    process asks nobody. In one process every step is decided by itself.
    """

    def __init__(self, stop: StopRequest) -> None:
        self._stop = stop
        self._due = 0
        self._last: tuple[float, int] | None = None

    def __call__(self, step: int, overdue: bool) -> tuple[bool, bool]:
        """(stop, save) after `step`; `overdue` is what this process's clock says of saving."""
        if processes.count() == 1:
            return self._stop.requested is not None, overdue
        if step < self._due:
            return False, False
        if self._stop.requested is not None:
            processes.tell_signal(self._stop.requested)
        told = processes.decided(lambda: self._decide(step, overdue))
        self._due = told["due"]
        if told["signal"] is not None:
            self._stop.requested = told["signal"]
        return told["signal"] is not None, told["save"]

    def _decide(self, step: int, overdue: bool) -> dict[str, Any]:
        now, ahead = time.monotonic(), 1
        if self._last is not None:
            seconds, steps = now - self._last[0], step - self._last[1]
            ahead = max(1, min(round(steps * _SECONDS / max(seconds, 1e-6)), 2 * steps))
        self._last = now, step
        signal = self._stop.requested or processes.signal_told()
        return {"due": step + ahead, "signal": signal, "save": overdue}
