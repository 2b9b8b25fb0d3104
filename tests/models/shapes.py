"""Models of which only the shapes are made: no values are drawn, not even traced, so all are built in seconds."""

import jax
import jax.numpy as jnp
from flax import nnx


class Shape:
    """In the place of a parameter's value: a shape, whatever is done to it."""

    def __init__(self, shape):
        self.shape = tuple(shape)

    def __mul__(self, other):
        return self

    __rmul__ = __add__ = __mul__


def without_values(monkeypatch):
    """While the `pytest.MonkeyPatch` lasts, new models have a `Shape` for each value."""
    monkeypatch.setattr(nnx.initializers, "he_normal", lambda: lambda key, shape, dtype: Shape(shape))
    for name in ("normal", "uniform"):
        monkeypatch.setattr(jax.random, name, lambda key, shape=(), *rest, **more: Shape(shape))
    for name in ("zeros", "ones", "full"):
        monkeypatch.setattr(
            jnp, name, lambda shape, *rest, **more: Shape(shape if isinstance(shape, tuple) else (shape,))
        )
    monkeypatch.setattr(nnx.RngStream, "__call__", lambda self: None)
    monkeypatch.setattr(nnx.Module, "_check_value", lambda *given, **more: None, raising=False)  # half of the time
