"""Processes that we start end with us, also after `kill -9`: each reads from a pipe that closes when we are gone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from multiprocessing.connection import wait
from typing import Any


def follow(pipe: Any, end: Callable[[], None]) -> None:
    """Call `end` in a thread once nobody holds the other end of `pipe` any more (nothing is ever sent through it)."""

    def watch() -> None:
        wait([pipe])
        end()

    threading.Thread(target=watch, name="lifeline", daemon=True).start()
