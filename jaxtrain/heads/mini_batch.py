"""Training on mini-batches, for vectors that need not fit the device and for heads that are not a convex problem.

All members (settings) see the same batches, so that a batch is sent to the device once for all of them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxtrain.config import LossConfig
from jaxtrain.heads.base import PLAIN, Floats, Task, blocks
from jaxtrain.heads.full_batch import Members
from jaxtrain.heads.measure import DIVERGED, even, measure_in_blocks
from jaxtrain.heads.scaling import Scaling, fit_scaling, stacked
from jaxtrain.losses import named_loss

_MOMENTUM = 0.9


def batches(task: Task, batch_size: int, epoch: int) -> Iterator[tuple[Floats, Any, Floats]]:
    """Vectors, labels (as places in `task.present`) and weights of the batches of an epoch, in an order of its own.

    The weights have mean 1 over the training set. What is left at the end of the order after whole batches waits for
    another epoch.
    """
    task.check()
    x, y, _ = task.train
    order = np.random.default_rng((task.seed, epoch)).permutation(len(x))
    weights = task.sample_weights() * len(x)
    size = min(batch_size, len(x))
    for start in range(0, len(x) - size + 1, size):
        rows = np.sort(order[start : start + size])  # sorted: memory-mapped vectors are read forward
        yield x[rows], task.places(y[rows]), weights[rows]


def train(
    task: Task,
    decays: Sequence[float],
    rates: Sequence[float],
    scalings: Sequence[str],
    *,
    batch_size: int,
    epochs: int,
) -> Members:
    """The linear head's grid by SGD with Nesterov momentum, the learning rate falling to zero as a cosine.

    Settings are ordered by learning rate, then weight decay. With cross-entropy the objective is that of
    `full_batch.train`; with `Task.start` the penalty is on the distance from there.
    """
    x = task.train.x
    each = [fit_scaling(name, x, center=True) for name in scalings]
    scaling = stacked(each)
    l2 = np.tile(np.asarray(decays, np.float32) * (2 if len(task.present) == 2 else 1), len(rates))
    # The Hessian is at most half the second moment of the vectors, so this makes one rate fit all scalings.
    length = np.array([_mean_square(one, x) for one in each], np.float32)
    rate = np.repeat(np.asarray(rates, np.float32), len(decays)) / (1.0 + length[:, None])
    start = _start(task, np.asarray(scaling.mean))
    shape = (len(each), x.shape[1] + 1, len(task.present), len(l2))
    state = (jnp.zeros(shape) + (0.0 if start is None else start), jnp.zeros(shape))
    steps = epochs * (len(x) // min(batch_size, len(x)))
    step = 0
    for epoch in range(epochs):
        for batch in batches(task, batch_size, epoch):
            factor = np.float32(0.5 * (1 + np.cos(np.pi * step / steps)))
            state = _step(state, start, scaling, l2, rate * factor, task.adjustment, *batch, loss=task.loss)
            step += 1
    return _members(task, start, scaling, l2, np.asarray(state[0]))


def _start(task: Task, mean: Floats) -> Floats | None:
    """`Task.start` on centred vectors, with its bias: float32[scalings, features + 1, present, 1]."""
    if task.start is None:
        return None
    kernel = task.start[:, task.present]
    each = np.broadcast_to(kernel, (len(mean), *kernel.shape))
    return np.concatenate([each, (mean @ kernel)[:, None]], axis=1)[..., None]


def _mean_square(scaling: Scaling, x: Floats) -> float:
    return sum((float(jnp.sum(scaling(x[part]) ** 2)) for part in blocks(len(x))), 0.0) / len(x)


@functools.partial(jax.jit, donate_argnums=0, static_argnames="loss")
def _step(
    state: tuple[Array, Array],
    start: Array | None,
    scaling: Scaling,
    l2: Array,
    rate: Array,
    adjustment: Array,
    x: Array,
    y: Array,
    weight: Array,
    *,
    loss: LossConfig,
) -> tuple[Array, Array]:
    """One step of all members; `rate` is float32[scalings, settings]."""
    w, velocity = state  # [scalings, features + 1, classes, settings]
    z = jax.vmap(Scaling.__call__, in_axes=(0, None))(scaling, x)
    z = jnp.concatenate([z, jnp.ones((*z.shape[:2], 1))], axis=2)
    penalty = l2 * jnp.ones((w.shape[1], 1, 1)).at[-1].set(0.0)
    logits = jnp.einsum("snf,sfkm->snkm", z, w)
    target = jax.nn.one_hot(y, w.shape[2])[:, None]

    def total(logits: Array) -> Array:
        each = named_loss(loss)(jnp.moveaxis(logits, 2, -1) + adjustment, target)  # [scalings, images, settings]
        return jnp.sum(each * (weight / len(weight))[:, None])

    residual = jax.grad(total)(logits)
    gradient = jnp.einsum("snf,snkm->sfkm", z, residual) + penalty * (w if start is None else w - start)
    velocity = _MOMENTUM * velocity + gradient
    return w - rate[:, None, None, :] * (gradient + _MOMENTUM * velocity), velocity


def _members(task: Task, start: Floats | None, scaling: Scaling, l2: Floats, w: Floats) -> Members:
    kernel, bias = w[:, :-1] * np.asarray(scaling.scale)[:, :, None, None], w[:, -1]
    plain = Scaling(scaling.rows, scaling.mean, np.ones_like(scaling.scale))  # the scale is in the kernel

    @jax.jit
    def logits(kernel: Array, bias: Array, x: Array) -> Array:
        centred = jax.vmap(Scaling.__call__, in_axes=(0, None))(plain, x)
        return jnp.einsum("snf,sfkm->nksm", centred, kernel) + jnp.moveaxis(bias, 0, 1)

    on_device = functools.partial(logits, *jax.device_put((kernel, bias)))
    val = task.val or task.train
    train_loss, _ = measure_in_blocks(on_device, task, task.train, task.sample_weights())
    val_loss, val_accuracy = measure_in_blocks(on_device, task, val, even(val))
    figures = {"train_loss": train_loss, "val_loss": val_loss, "val_accuracy": val_accuracy}
    if task.loss == PLAIN:
        moved = (w if start is None else w - start)[:, :-1].astype(np.float64)
        objective = train_loss + 0.5 * l2 * (moved**2).sum((1, 2))
        figures["objective"] = np.minimum(np.nan_to_num(objective, nan=DIVERGED), DIVERGED)
    return Members(np.asarray(scaling.mean), kernel, bias, figures)
