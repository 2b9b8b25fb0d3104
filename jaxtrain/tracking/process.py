"""The training process's end of the line to the process that talks to MLflow."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

Listener = Callable[[Mapping[str, Any]], None]

_CHILD_DEFAULTS = {
    # The sidecar tries again itself, after asking what arrived; the user's own settings win.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


class Sidecar:
    """One process of `jaxtrain.tracking.sidecar`, shared by all runs of this Python process."""

    def __init__(self) -> None:
        environment = {
            **_CHILD_DEFAULTS,
            **os.environ,
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "jaxtrain.tracking.sidecar"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            text=True,
            start_new_session=True,  # Ctrl-C is for training alone
        )
        self._listeners: dict[str, Listener] = {}
        self._sending = threading.Lock()
        self._listening = threading.Thread(target=self._listen, name="jaxtrain-tracking", daemon=True)
        self._listening.start()

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def attach(self, run_dir: str, listener: Listener, **command: Any) -> None:
        """Serve this run directory; what happens to it is told to `listener`, in another thread."""
        self._listeners[run_dir] = listener
        self.send(do="attach", run_dir=run_dir, **command)

    def serves(self, run_dir: str) -> bool:
        """Whether a run of this process is in that directory."""
        return run_dir in self._listeners

    def detach(self, run_dir: str) -> None:
        """Stop listening."""
        self._listeners.pop(run_dir, None)

    def send(self, **command: Any) -> None:
        """Send one command; a process that has died hears nothing, which `listener` was told."""
        assert self._process.stdin is not None
        with self._sending, contextlib.suppress(OSError):
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()

    def heard_out(self, timeout: float) -> None:
        """Wait until the listeners of a process that has died know all that it said, and that it is gone."""
        self._listening.join(timeout)

    def close(self, timeout: float) -> None:
        """End the process."""
        assert self._process.stdin is not None
        with self._sending, contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            event = json.loads(line)
            listener = self._listeners.get(event["run_dir"])
            if listener is not None:
                listener(event)
        for listener in list(self._listeners.values()):
            listener({"event": "gone"})


_shared: Sidecar | None = None
_starting = threading.Lock()


def sidecar() -> Sidecar:
    """The process of this Python process, started where there is none.

    Raises OSError where it cannot be started.
    """
    global _shared
    with _starting:
        if _shared is None or not _shared.alive:
            if _shared is None:
                atexit.register(_close_shared)
            else:
                _shared.heard_out(5.0)  # its end, heard later, would be taken for that of the new one
            _shared = Sidecar()
        return _shared


def _close_shared() -> None:
    if _shared is not None:
        _shared.close(timeout=6.0)
