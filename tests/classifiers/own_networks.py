"""Networks as people write them, none of them after jaxtrain's protocol."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen, nnx

from jaxtrain import PTClassifier


class Documented(nnx.Module):
    """As Flax's documentation writes it: modes by train() and eval(), dropout with its own stream, batch norm."""

    def __init__(self, num_classes, rngs):
        self.conv = nnx.Conv(1, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.drop = nnx.Dropout(0.3, rngs=rngs)
        self.out = nnx.Linear(8 * 4, num_classes, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x)))
        x = nnx.avg_pool(x, (4, 4), (4, 4))
        return self.out(self.drop(x.reshape(len(x), -1)))


class Keyed(nnx.Module):
    """A call with train and key; blocks in a list; an `embed` of its own."""

    def __init__(self, num_classes, *, rngs):
        self.stem = nnx.Linear(64, 16, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(16, 16, rngs=rngs) for _ in range(3)])
        self.drop = nnx.Dropout(0.2)
        self.final = nnx.Linear(16, num_classes, rngs=rngs)

    def embed(self, x):
        x = self.stem(x.reshape(len(x), -1))
        for layer in self.layers:
            x = x + nnx.relu(layer(x))
        return x

    def __call__(self, x, train=False, key=None):
        x = self.embed(x)
        if train:
            x = self.drop(x, deterministic=False, rngs=key)
        return self.final(x)


class Deterministic(nnx.Module):
    """The mode as an argument called deterministic, dropout with its own stream, keys that are digits in a dict."""

    def __init__(self, num_classes, rngs):
        self.parts = nnx.Dict({"0": nnx.Linear(64, 16, rngs=rngs), "1": nnx.Linear(16, num_classes, rngs=rngs)})
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x, deterministic=True):
        x = nnx.relu(self.parts["0"](x.reshape(len(x), -1)))
        return self.parts["1"](self.drop(x, deterministic=deterministic))


class Linen(linen.Module):
    num_classes: int

    @linen.compact
    def __call__(self, x, train: bool = False):
        x = linen.Conv(8, (3, 3))(x)
        x = linen.BatchNorm(use_running_average=not train)(x)
        x = linen.relu(x).reshape(len(x), -1)
        x = linen.Dropout(0.3, deterministic=not train)(x)
        return linen.Dense(self.num_classes)(x)


def made(num_classes, rngs):
    """A function that makes one of Flax's own containers."""
    return nnx.Sequential(
        lambda x: x.reshape(len(x), -1), nnx.Linear(64, 16, rngs=rngs), nnx.relu, nnx.Linear(16, num_classes, rngs=rngs)
    )


NETWORKS = {"documented": Documented, "keyed": Keyed, "deterministic": Deterministic, "linen": Linen, "function": made}


class Inverted(PTClassifier):
    """The registry's network with another forward pass."""

    def build_model(self, *, num_classes, axis_name):
        model = super().build_model(num_classes=num_classes, axis_name=axis_name)
        object.__setattr__(model, "__class__", negative(type(model)))
        return model


def negative(kind):
    if kind not in _NEGATIVE:
        call = lambda self, x, **how: kind.__call__(self, -x, **how)  # noqa: E731
        _NEGATIVE[kind] = type(kind)(kind.__name__, (kind,), {"__call__": call})
    return _NEGATIVE[kind]


_NEGATIVE: dict = {}


def focal(logits, targets):
    log = jax.nn.log_softmax(logits)
    return -jnp.sum(targets * (1 - jnp.exp(log)) ** 2 * log, -1)


def momentum(schedule):
    return optax.sgd(schedule, momentum=0.9)


def balanced(logits, labels):
    hits = logits.argmax(1) == labels
    return float(np.mean([hits[labels == label].mean() for label in np.unique(labels)]))
