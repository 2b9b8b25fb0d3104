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
from jaxtrain.heads.lbfgs import HISTORY, TOLERANCE, Problem, solve
from jaxtrain.heads.scaling import Scaling, fit_scaling, stacked

_ROTATED = 4096  # features; beyond, their principal axes cost more than they save
_TOGETHER = 4  # members: neighbours take about as many iterations, and all wait for the slowest
_LABELS_TOGETHER = 32  # members of one column each
_LABELS_TOLERANCE = 2e-6  # a tenth more iterations than with five times as much, and within 1e-4 of the optimum

S = TypeVar("S")
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


class _Settings(NamedTuple):
    l2: Any  # float32[settings]
    label: Any  # int32[settings]: the column of the targets; 0 where images have one class


def fits(task: Task) -> bool:
    """Whether the vectors, and what one member needs, fit the device."""
    return _width(task) >= 1


def train(task: Task, decays: Sequence[float], scalings: Sequence[str]) -> Members:
    """All settings; validation figures are of the training vectors where there are no others."""
    val = task.val or task.train
    # scikit-learn's problem of two classes penalises one vector of weights, here the difference of two
    l2 = np.asarray(decays, np.float32) * (2 if len(task.present) == 2 else 1)
    target = np.eye(len(task.present), dtype=np.float32)[task.places(task.train.y)][:, :, None]
    data = task.train.x, target, task.sample_weights()[:, None]
    settings = _Settings(l2, np.zeros(len(l2), np.int32))
    return _members(data, scalings, settings, task.adjustment, (val.x, task.places(val.y)), _width(task, _TOGETHER))


def train_labels(task: Task, members: Sequence[tuple[int, float]], scalings: Sequence[str]) -> Members:
    """Logistic regressions of labels, the settings being pairs of label and weight decay; one class each.

    What is unknown weighs nothing. Members that stand together should have about the same weight decay.
    """
    val, y = task.val or task.train, task.train.y
    weight = np.where(y > 0, task.class_weights, 1.0) * (y >= 0)
    if task.train.w is not None:
        weight = weight * task.train.w[:, None]
    weight /= np.maximum(weight.sum(axis=0), np.finfo(np.float32).tiny)
    data = task.train.x, (y > 0).astype(np.float32)[:, None], weight.astype(np.float32)
    labels, decays = zip(*members, strict=True)
    settings = _Settings(np.asarray(decays, np.float32), np.asarray(labels, np.int32))
    width = _width(task, _LABELS_TOGETHER)
    return _members(data, scalings, settings, np.zeros(1, np.float32), (val.x, val.y), width)


def _members(
    data: tuple[Floats, Floats, Floats],
    scalings: Sequence[str],
    settings: _Settings,
    adjustment: Floats,
    val: tuple[Floats, NDArray[Any]],
    width: int,
) -> Members:
    problem = Problem(*map(jnp.asarray, data))
    together = stacked(fit_scaling(name, data[0], center=True) for name in scalings)
    width = max(1, min(width, len(settings.l2)))
    with jax.default_matmul_precision("highest"):
        result = _train(problem, together, settings, adjustment, *val, width=width)
    kernel, bias, figures = jax.device_get(result)
    return Members(np.asarray(together.mean), kernel, bias, figures)


def _width(task: Task, most: int = 1) -> int:
    """How many members fit the device together."""
    images, features = task.train.x.shape
    several = task.train.y.ndim == 2
    data = 4 * (5 * images * features + (2 * images * task.num_classes if several else 0))
    # A label's own target and weight are a member's.
    member = 4 * ((10 if several else 8 * len(task.present)) * images)
    member += 4 * (1 if several else len(task.present)) * (2 * HISTORY + 8) * features
    return min((_memory() - data) // member, most)


def _memory() -> int:
    """Bytes that training may take: half of an accelerator's memory, a quarter of the machine's."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        import psutil

        return psutil.virtual_memory().total // 4
    return (device.memory_stats() or {}).get("bytes_limit", 1 << 33) // 2


@functools.partial(jax.jit, static_argnames="width")
def _train(
    data: Problem, scalings: Scaling, settings: _Settings, adjustment: Array, val_x: Array, val_y: Array, width: int
) -> tuple[Array, Array, dict[str, Array]]:
    """Kernels, biases and figures. `data.z` are the vectors as they came; of several labels `data` has all."""
    # Biases are free: the optimum under adjusted logits is the plain one with the adjustment taken from them.

    def one(scaling: Scaling) -> tuple[Array, Array, dict[str, Array]]:
        z, axes = _principal(scaling(data.z))
        z = jnp.concatenate([z, jnp.ones((len(z), 1), z.dtype)], axis=1)
        scaled = scaling(val_x)

        def members(settings: _Settings) -> tuple[Array, Array, dict[str, Array]]:
            problem, truth = data._replace(z=z), val_y
            if val_y.ndim == 2:
                target, weight = data.target[:, :, settings.label], data.weight[:, settings.label]
                problem, truth = Problem(z, target, weight), val_y[:, settings.label]
            optimum = solve(problem, settings.l2, TOLERANCE if val_y.ndim == 1 else _LABELS_TOLERANCE)
            kernel = jnp.einsum("fd,dkm->fkm", axes, optimum.w[:-1])
            bias = optimum.w[-1] - adjustment[:, None]
            logits = jnp.einsum("nf,fkm->nkm", scaled, kernel) + bias
            loss, accuracy = _validate(logits, truth) if val_y.ndim == 1 else _validate_labels(logits[:, 0], truth)
            figures = {
                "train_loss": optimum.cross_entropy,
                "objective": optimum.objective,
                "iterations": optimum.iterations,
                "converged": optimum.converged,
                "val_loss": loss,
                "val_accuracy": accuracy,
            }
            return jnp.asarray(scaling.scale)[:, None, None] * kernel, bias, figures

        return in_groups(members, width, settings)

    return lax.map(one, scalings)


def in_groups(function: Callable[[S], T], width: int, settings: S) -> T:
    """`function(settings)`, called with at most `width` of them at once: the last axis of all its results."""
    count = len(jax.tree.leaves(settings)[0])
    groups = -(-count // width)
    places = np.minimum(np.arange(groups * width), count - 1)  # the last one fills the last group

    def merge(result: Array) -> Array:
        together = jnp.moveaxis(result, 0, -2)
        return together.reshape(*together.shape[:-2], groups * width)[..., :count]

    grouped = jax.tree.map(lambda array: array[places].reshape(groups, width), settings)
    return jax.tree.map(merge, lax.map(function, grouped))


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


def _validate(logits: Array, y: Array) -> tuple[Array, Array]:
    """Cross-entropy and accuracy of each member; `y` is -1 where the class was never trained."""
    truth = jnp.take_along_axis(logits, jnp.maximum(y, 0)[:, None, None], axis=1)[:, 0]
    truth = jnp.where((y < 0)[:, None], UNSEEN, truth)
    loss = jnp.mean(jax.nn.logsumexp(logits, axis=1) - truth, axis=0)
    return loss, jnp.mean(jnp.argmax(logits, axis=1) == y[:, None], axis=0, dtype=jnp.float32)


def _validate_labels(logits: Array, y: Array) -> tuple[Array, Array]:
    """Binary cross-entropy and accuracy over the known entries of each member; both are [images, members]."""
    share = (y >= 0) / jnp.maximum(jnp.sum(y >= 0, axis=0), 1)
    each = jnp.logaddexp(logits, 0.0) - logits * (y > 0)
    return jnp.sum(share * each, axis=0), jnp.sum(share * ((logits > 0) == (y > 0)), axis=0)
