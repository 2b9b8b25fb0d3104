"""The linear head: softmax regression with an L2 penalty on the weights, a grid of settings in one program.

The objective is scikit-learn's `LogisticRegression(C=1 / (weight_decay * images))`: mean cross-entropy (with solver sgd
also another loss) plus weight_decay / 2 times the squared norm of the weights, intercepts free.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax import Array

from jaxtrain.config import HeadConfig, chosen
from jaxtrain.errors import RunError
from jaxtrain.heads import full_batch, mini_batch
from jaxtrain.heads.base import Arrays, JaxHead, Task, all_columns, choose, needs_validation
from jaxtrain.heads.measure import DIVERGED
from jaxtrain.heads.scaling import Scaling

_SGD_DECAYS = (1e-6, 1e-4, 1e-3, 1e-2, 0.1)
"""Weight decays of SGD where none are given: with three scalings and three learning rates 45 settings."""
_LARGEST_C, _DECADES, _STEPS = 30.0, 4.9, 15


class LinearHead(JaxHead):
    """Logits are (vector, scaled if l2, - mean) @ kernel + bias; other scaling is in the kernel."""

    kind = "linear"

    def apply(self, arrays: Mapping[str, Array], x: Array) -> Array:
        """Pure: float32[images, features] to float32[images, classes]."""
        scaling = Scaling(np.bool_(self.settings["scaling"] == "l2"), arrays["mean"], np.float32(1))
        with jax.default_matmul_precision("highest"):
            return scaling(x) @ arrays["kernel"] + arrays["bias"]


def load(name: str, classes: int, features: int, settings: Any, curve: Any, arrays: Arrays) -> LinearHead:
    """The saved head."""
    return LinearHead(classes, features, settings, curve, arrays)


@dataclass(frozen=True)
class _Grid:
    """Settings to train together: every scaling with every weight decay and, for SGD, every learning rate."""

    solver: str
    scalings: tuple[str, ...]
    decays: tuple[float, ...]
    rates: tuple[float, ...] = ()

    @property
    def size(self) -> int:
        return len(self.scalings) * len(self.decays) * max(len(self.rates), 1)


def fit(config: HeadConfig, task: Task) -> LinearHead:
    """Trains every setting of the grid in one program and keeps the one that is best on validation."""
    grid = _grid(config, task)
    needs_validation(grid.size, task)
    curve, members = _train(grid, config, task)
    # Of equals the one with the larger penalty.
    best = len(curve) - 1 - (choose(curve[::-1], config.choose_by) if task.val is not None else 0)
    settings: dict[str, Any] = {
        name: curve[best][name] for name in ("scaling", "weight_decay", "learning_rate") if name in curve[best]
    }
    if config.refit:
        rates = (settings["learning_rate"],) if grid.rates else ()
        one = _Grid(grid.solver, (settings["scaling"],), (settings["weight_decay"],), rates)
        arrays = _train(one, config, task.joined())[1](0)
    else:
        arrays = members(best)
    return LinearHead(task.num_classes, task.train.x.shape[1], {"solver": grid.solver, **settings}, curve, arrays)


def default_decays(images: int) -> tuple[float, ...]:
    """Fifteen weight decays 1 / (C * images), scikit-learn's C going down from 30 by 4.9 decades.

    The best penalty shrinks with the number of images. Weaker ones than C = 30 separate the classes of few images:
    the optimum lies far out, takes long to reach, and seldom generalises better.
    """
    inverse = _LARGEST_C * 10.0 ** -np.linspace(0.0, _DECADES, _STEPS)
    return tuple(float(f"{1 / (c * images):.3g}") for c in inverse)


def _grid(config: HeadConfig, task: Task) -> _Grid:
    solver = chosen(config.solver)
    if solver == "auto":
        solver = "lbfgs" if task.loss.name == "cross_entropy" and full_batch.fits(task) else "sgd"
    scalings = tuple(dict.fromkeys(chosen(config.scaling)))
    own = _SGD_DECAYS if solver == "sgd" else default_decays(len(task.train.y))
    decays = tuple(sorted(set(config.weight_decay or own)))
    rates = tuple(dict.fromkeys(chosen(config.learning_rate))) if solver == "sgd" else ()
    if config.epochs == 0:
        decays, rates = (0.0,), (0.0,)
    return _Grid(solver, scalings, decays, rates)


def _train(grid: _Grid, config: HeadConfig, task: Task) -> tuple[list[dict[str, Any]], Any]:
    """The curve, and a function that gives the arrays of an entry of it."""
    if grid.solver == "lbfgs":
        trained = full_batch.train(task, grid.decays, grid.scalings)
    else:
        batch_size, epochs = chosen(config.batch_size), chosen(config.epochs)
        trained = mini_batch.train(task, grid.decays, grid.rates, grid.scalings, batch_size=batch_size, epochs=epochs)
    curve: list[dict[str, Any]] = []
    settings = [{"weight_decay": decay} for decay in grid.decays]
    if grid.rates:
        settings = [{"learning_rate": rate, **setting} for rate in grid.rates for setting in settings]
    for i, scaling in enumerate(grid.scalings):
        for j, setting in enumerate(settings):
            figures = {name: values[i, j].item() for name, values in trained.figures.items()}
            if task.val is None:
                figures = {name: value for name, value in figures.items() if not name.startswith("val_")}
            curve.append({"scaling": scaling, **setting, **figures})
    if not (np.nan_to_num(trained.figures["train_loss"], nan=np.inf) < DIVERGED).any():
        raise RunError("the linear head's loss is not finite: are the vectors of a sensible size?")

    def arrays(index: int) -> Arrays:
        i, j = divmod(index, len(settings))
        mean = np.ascontiguousarray(trained.mean[i])
        kernel, bias = all_columns(task, trained.kernel[i, :, :, j], trained.bias[i, :, j])
        if task.start is not None:  # a class without training vectors stays as it starts
            absent = np.setdiff1d(np.arange(task.num_classes), task.present)
            kernel[:, absent], bias[absent] = task.start[:, absent], mean @ task.start[:, absent]
        return {"mean": mean, "kernel": kernel, "bias": bias}

    return curve, arrays
