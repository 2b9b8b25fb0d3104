"""The linear head's grid trained to convergence on all vectors at once, in one compiled program."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from numpy.typing import NDArray

from jaxtrain.heads.base import UNSEEN, Floats, Task
from jaxtrain.heads.lbfgs import HISTORY, Problem, solve
from jaxtrain.heads.scaling import Scaling, fit_scaling, stacked

_ROTATED = 4096  # features; beyond, their principal axes cost more than they save
_TOGETHER = 4  # members: neighbours take about as many iterations, and all wait for the slowest

T = TypeVar("T")


class Members(NamedTuple):
    """Trained linear heads: a member for every scaling and every other setting."""

    mean: Floats
    """float32[scalings, features]"""
    kernel: Floats
    """float32[scalings, features, classes, settings]: of the classes that were trained, as is `bias`."""
    bias: Floats
    """float32[scalings, classes, settings]"""
    figures: dict[str, NDArray[Any]]
    """[scalings, settings]: `objective`, `train_loss`, `val_loss`, `val_accuracy` and what else is known."""


def fits(task: Task) -> bool:
    """Whether the vectors, and what one member needs, fit the device."""
    return _width(task) >= 1


def train(task: Task, decays: Sequence[float], scalings: Sequence[str]) -> Members:
    """All settings; validation figures are of the training vectors where there are no others."""
    x, y, _ = task.train
    val = task.val or task.train
    # scikit-learn's problem of two classes penalises one vector of weights, here the difference of two
    l2 = np.asarray(decays, np.float32) * (2 if len(task.present) == 2 else 1)
    target = np.eye(len(task.present), dtype=np.float32)[task.places(y)]
    problem = Problem(*map(jnp.asarray, (x, target, task.sample_weights())))
    all_scalings = stacked(fit_scaling(name, x, center=True) for name in scalings)
    width = max(1, min(_width(task), _TOGETHER, len(l2)))
    with jax.default_matmul_precision("highest"):
        result = _train(problem, all_scalings, l2, task.adjustment, val.x, task.places(val.y), width=width)
    kernel, bias, figures = jax.device_get(result)
    return Members(np.asarray(all_scalings.mean), kernel, bias, figures)


def _width(task: Task) -> int:
    """How many members fit the device together."""
    images, features = task.train.x.shape
    vectors = 4 * 5 * images * features
    member = 4 * len(task.present) * (8 * images + (2 * HISTORY + 8) * features)
    return (_memory() - vectors) // member


def _memory() -> int:
    """Bytes that training may take: half of an accelerator's memory, a quarter of the machine's."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        import psutil

        return psutil.virtual_memory().total // 4
    return (device.memory_stats() or {}).get("bytes_limit", 1 << 33) // 2


@functools.partial(jax.jit, static_argnames="width")
def _train(
    data: Problem, scalings: Scaling, l2: Array, adjustment: Array, val_x: Array, val_y: Array, width: int
) -> tuple[Array, Array, dict[str, Array]]:
    """Kernels, biases and figures. `data.z` are the vectors as they came; `val_y` is -1 for classes never trained."""
    # Biases are free: the optimum under adjusted logits is the plain one with the adjustment taken from them.

    def one(scaling: Scaling) -> tuple[Array, Array, dict[str, Array]]:
        z, axes = _principal(scaling(data.z))
        problem = data._replace(z=jnp.concatenate([z, jnp.ones((len(z), 1), z.dtype)], axis=1))
        validate = functools.partial(_validate, scaling(val_x), val_y)

        def members(l2: Array) -> tuple[Array, Array, dict[str, Array]]:
            optimum = solve(problem, l2)
            kernel = jnp.einsum("fd,dkm->fkm", axes, optimum.w[:-1])
            bias = optimum.w[-1] - adjustment[:, None]
            loss, accuracy = validate(kernel, bias)
            figures = {
                "train_loss": optimum.cross_entropy,
                "objective": optimum.objective,
                "iterations": optimum.iterations,
                "converged": optimum.converged,
                "val_loss": loss,
                "val_accuracy": accuracy,
            }
            return jnp.asarray(scaling.scale)[:, None, None] * kernel, bias, figures

        return in_groups(members, width, l2)

    return lax.map(one, scalings)


def in_groups(function: Callable[[Array], T], width: int, settings: Array) -> T:
    """`function(settings)`, called with at most `width` of them at once: the last axis of all its results."""
    count = len(settings)
    groups = -(-count // width)
    places = np.minimum(np.arange(groups * width), count - 1)  # the last one fills the last group

    def merge(result: Array) -> Array:
        together = jnp.moveaxis(result, 0, -2)
        return together.reshape(*together.shape[:-2], groups * width)[..., :count]

    return jax.tree.map(merge, lax.map(function, settings[places].reshape(groups, width)))


def _principal(x: Array) -> tuple[Array, Array]:
    """Centred vectors in their principal axes, and the axes: float32[features, min(images, features)].

    The penalty is the same there, weights off the axes are zero at the optimum, and the Hessian is nearly diagonal.
    """
    images, features = x.shape
    if min(images, features) > _ROTATED:
        return x, jnp.eye(features, dtype=x.dtype)
    if images < features:
        span, _ = jnp.linalg.qr(x.T)
        inside = x @ span
        _, turn = jnp.linalg.eigh(inside.T @ inside)
        return inside @ turn, span @ turn
    _, axes = jnp.linalg.eigh(x.T @ x)
    return x @ axes, axes


def _validate(x: Array, y: Array, kernel: Array, bias: Array) -> tuple[Array, Array]:
    """Cross-entropy and accuracy of each member; `y` is -1 where the class was never trained."""
    logits = jnp.einsum("nf,fkm->nkm", x, kernel) + bias
    truth = jnp.take_along_axis(logits, jnp.maximum(y, 0)[:, None, None], axis=1)[:, 0]
    truth = jnp.where((y < 0)[:, None], UNSEEN, truth)
    loss = jnp.mean(jax.nn.logsumexp(logits, axis=1) - truth, axis=0)
    return loss, jnp.mean(jnp.argmax(logits, axis=1) == y[:, None], axis=0, dtype=jnp.float32)
