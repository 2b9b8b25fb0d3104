"""The linear head: softmax regression with an L2 penalty on the weights, a grid of settings in one program.

With L-BFGS the objective is scikit-learn's `LogisticRegression(C=1 / (weight_decay * images))`: mean cross-entropy plus
weight_decay / 2 times the squared norm of the weights, intercepts free.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from numpy.typing import NDArray

from jaxtrain.config import HeadConfig, chosen
from jaxtrain.errors import RunError
from jaxtrain.heads.base import UNSEEN, Arrays, JaxHead, Task, choose, needs_validation
from jaxtrain.heads.lbfgs import Problem
from jaxtrain.heads.path import Level, in_groups, plan, solve_path

_SCALINGS = ("none", "standard", "l2")
_ROTATED = 4096  # features; beyond, their principal axes cost more than they save


class LinearHead(JaxHead):
    """Logits are (scaled vector - mean) @ kernel + bias."""

    kind = "linear"

    def apply(self, arrays: Mapping[str, Array], x: Array) -> Array:
        """Pure: float32[images, features] to float32[images, classes]."""
        if self.settings["scaling"] == "l2":
            x = x * _row_factor(x)
        with jax.default_matmul_precision("highest"):
            return (x - arrays["mean"]) @ arrays["kernel"] + arrays["bias"]


def load(name: str, classes: int, features: int, settings: Any, curve: Any, arrays: Arrays) -> LinearHead:
    """The saved head."""
    return LinearHead(classes, features, settings, curve, arrays)


def fit(config: HeadConfig, task: Task) -> LinearHead:
    """Trains every setting of the grid in one program and keeps the one that is best on validation."""
    decays, scalings = sorted(set(chosen(config.weight_decay))), list(dict.fromkeys(chosen(config.scaling)))
    total = len(decays) * len(scalings)
    needs_validation(total, task)
    task.progress(0, total)
    grid = _Grid.fit(task, decays, scalings)
    curve = grid.curve()
    # Of equals the one with the larger penalty.
    best = choose(curve[::-1], config.choose_by) if task.val is not None else 0
    best = len(curve) - 1 - best
    task.progress(total, total)
    scaling, decay = curve[best]["scaling"], curve[best]["weight_decay"]
    arrays = grid.member(best)
    if config.refit:
        arrays = _Grid.fit(task.joined(), [decay], [scaling]).member(0)
    settings = {"solver": "lbfgs", "scaling": scaling, "weight_decay": decay}
    return LinearHead(task.num_classes, task.train.x.shape[1], settings, curve, arrays)


class _Fitted(NamedTuple):
    """What the program returns; the first axis is the scaling."""

    mean: Array  # [scalings, features]
    kernel: Array  # [scalings, features, classes, decays]
    bias: Array  # [scalings, classes, decays]
    train_loss: Array  # [scalings, decays], like all that follow
    objective: Array
    iterations: Array
    converged: Array
    val_loss: Array
    val_accuracy: Array


class _Grid(NamedTuple):
    """A trained grid on the host: all weight decays for each scaling."""

    decays: Sequence[float]
    scalings: Sequence[str]
    present: NDArray[Any]  # classes that the training vectors have
    num_classes: int
    validated: bool
    fitted: _Fitted

    @classmethod
    def fit(cls, task: Task, decays: Sequence[float], scalings: Sequence[str]) -> _Grid:
        x, y = task.train
        present = np.unique(y)
        val = task.val or task.train
        place = np.full(task.num_classes, -1, np.int32)
        place[present] = np.arange(len(present))
        # scikit-learn's problem of two classes penalises one vector of weights, here the difference of two
        l2 = np.asarray(decays, np.float32) * (2 if len(present) == 2 else 1)
        target = np.eye(len(present), dtype=np.float32)[place[y]]
        problem = Problem(*map(jnp.asarray, (x, target, task.sample_weights())))
        codes = np.array([_SCALINGS.index(scaling) for scaling in scalings], np.int32)
        with jax.default_matmul_precision("highest"):
            result = _train(problem, codes, l2, plan(l2), val.x, place[val.y], width=len(decays))
        fitted = _Fitted(*jax.device_get(result))
        if not np.isfinite(fitted.objective).all():
            raise RunError("the linear head's loss is not finite: are the vectors of a sensible size?")
        return cls(decays, scalings, present, task.num_classes, task.val is not None, fitted)

    def curve(self) -> list[dict[str, Any]]:
        """One entry a setting, in the order scaling, weight decay."""
        entries = []
        for i, scaling in enumerate(self.scalings):
            for j, decay in enumerate(self.decays):
                entry = {"scaling": scaling, "weight_decay": decay}
                for name in ("train_loss", "objective", "iterations", "converged"):
                    entry[name] = getattr(self.fitted, name)[i, j].item()
                if self.validated:
                    entry |= {name: getattr(self.fitted, name)[i, j].item() for name in ("val_loss", "val_accuracy")}
                entries.append(entry)
        return entries

    def member(self, index: int) -> Arrays:
        """Mean, kernel and bias of an entry of the curve, with all classes."""
        i, j = divmod(index, len(self.decays))
        kernel = np.zeros((self.fitted.kernel.shape[1], self.num_classes), np.float32)
        bias = np.full(self.num_classes, UNSEEN, np.float32)
        kernel[:, self.present] = self.fitted.kernel[i, :, :, j]
        bias[self.present] = self.fitted.bias[i, :, j]
        return {"mean": np.ascontiguousarray(self.fitted.mean[i]), "kernel": kernel, "bias": bias}


@functools.partial(jax.jit, static_argnames="width")
def _train(
    data: Problem, scalings: Array, l2: Array, levels: Sequence[Level], val_x: Array, val_y: Array, width: int
) -> _Fitted:
    """The grid. `data.z` are the vectors as they came; labels of validation are -1 for classes never trained."""

    def one(scaling: Array) -> _Fitted:
        rows = scaling == _SCALINGS.index("l2")
        x = data.z * jnp.where(rows, _row_factor(data.z), 1.0)
        mean = jnp.mean(x, axis=0)
        x = x - mean
        deviation = jnp.sqrt(jnp.mean(x * x, axis=0))
        constant = deviation <= 1e-5 * jnp.abs(mean) + 1e-30
        standard = (scaling == _SCALINGS.index("standard")) & ~constant
        scale = jnp.where(standard, 1.0 / jnp.where(constant, 1.0, deviation), 1.0)
        z, axes = _principal(x * scale)
        ones = jnp.ones((z.shape[0], 1), z.dtype)
        optimum = solve_path(data._replace(z=jnp.concatenate([z, ones], axis=1)), l2, levels, width)
        kernel = scale[:, None, None] * jnp.einsum("fd,dkm->fkm", axes, optimum.w[:-1])
        bias = optimum.w[-1]
        centred = val_x * jnp.where(rows, _row_factor(val_x), 1.0) - mean
        loss, accuracy = in_groups(functools.partial(_validate, centred, val_y), width, kernel, bias)
        return _Fitted(
            mean=mean,
            kernel=kernel,
            bias=bias,
            train_loss=optimum.cross_entropy,
            objective=optimum.objective,
            iterations=optimum.iterations,
            converged=optimum.converged,
            val_loss=loss,
            val_accuracy=accuracy,
        )

    return lax.map(one, scalings)


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


def _row_factor(x: Array) -> Array:
    """What brings each vector to length sqrt(features), so that a feature is of size 1; zero stays zero."""
    norm = jnp.linalg.norm(x, axis=1, keepdims=True)
    return jnp.sqrt(jnp.float32(x.shape[1])) / jnp.maximum(norm, 1e-30)
