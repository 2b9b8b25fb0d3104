"""The training process's end of the line to the process that talks to MLflow."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import sys
import threading
from typing import Any

_CHILD_DEFAULTS = {
    # The sidecar tries again itself, after asking what arrived; the user's own settings win.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


class Sidecar:
    """One process of `jaxtrain.tracking.sidecar`, shared by all runs of this Python process.

    It is only ever told something; what it has to say is in the `mlflow.json` of each run.
    """

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "jaxtrain.tracking.sidecar"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=_environment(),
            text=True,
            start_new_session=True,  # Ctrl-C is for training alone
        )
        self.serves: set[str] = set()
        """Directories of runs that it was told of and that have not ended."""
        self._sending = threading.Lock()

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def attach(self, **run: Any) -> None:
        """Have a run followed, with the environment as it is now: a notebook may log in after its first run."""
        self.send(do="attach", environment=_environment(), **run)

    def send(self, **command: Any) -> None:
        """Send one command; a process that has died hears nothing."""
        assert self._process.stdin is not None
        with self._sending, contextlib.suppress(OSError):
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()

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


def _environment() -> dict[str, str]:
    return {
        **_CHILD_DEFAULTS,
        **os.environ,
        "PYTHONWARNINGS": "ignore",  # those of MLflow's imports, which the user may have made errors
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }


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
            _shared = Sidecar()
        return _shared


def _close_shared() -> None:
    if _shared is not None:
        _shared.close(timeout=3.0 if _shared.serves else 1.0)
