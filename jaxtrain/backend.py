"""What programs are made for: the backend they run on, or are only compiled for, and the devices that share a batch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
from jax.sharding import Mesh

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


_sharing: ContextVar[Mesh | None] = ContextVar("sharing", default=None)


def sharing() -> Mesh | None:
    """The devices among which the rows of each batch are shared; None where nobody has said so.

    XLA does not divide a kernel of ours by itself: a network uses one only where this is known.
    """
    return _sharing.get()


def shared_by(mesh: Mesh, function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, traced as one whose batches these devices share."""

    @functools.wraps(function)
    def traced(*args: Any, **kwargs: Any) -> Any:
        token = _sharing.set(mesh)
        try:
            return function(*args, **kwargs)
        finally:
            _sharing.reset(token)

    return traced
