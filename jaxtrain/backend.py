"""The backend that programs are made for: the one they run on, or another one that they are only compiled for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax

_compiling_for: ContextVar[str | None] = ContextVar("compiling_for", default=None)


def backend() -> str:
    """`cpu`, `gpu` or `tpu`."""
    return _compiling_for.get() or jax.default_backend()


@contextmanager
def compiling_for(name: str) -> Iterator[None]:
    """What is traced inside is meant for this backend, which need not be here."""
    token = _compiling_for.set(name)
    try:
        yield
    finally:
        _compiling_for.reset(token)
