"""The MLP head: a small network on vectors by AdamW, early stopping on validation, a grid of settings at once."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxtrain.config import HeadConfig, LossConfig, chosen
from jaxtrain.errors import RunError
from jaxtrain.heads.base import Arrays, JaxHead, Task, all_columns, choose, needs_validation
from jaxtrain.heads.measure import DIVERGED, even, measure_in_blocks
from jaxtrain.heads.mini_batch import batches
from jaxtrain.heads.scaling import Scaling, fit_scaling, stacked
from jaxtrain.losses import named_loss

Layers = list[tuple[Array, Array]]
"""Kernel and bias of each layer."""
_State = tuple[Layers, Any]  # with the optimizer's; every array has the members as its first axis


class MLPHead(JaxHead):
    """ReLU between layers; the first sees scaled vectors."""

    kind = "mlp"
    follows = ("epochs",)

    def apply(self, arrays: Mapping[str, Array], x: Array) -> Array:
        """Pure: float32[images, features] to float32[images, classes]."""
        rows = np.bool_(self.settings["scaling"] == "l2")
        depth = len(self.settings["hidden"]) + 1
        layers = [(arrays[f"kernel_{i}"], arrays[f"bias_{i}"]) for i in range(depth)]
        with jax.default_matmul_precision("highest"):
            return _forward(layers, Scaling(rows, arrays["mean"], arrays["scale"])(x))


def load(name: str, classes: int, features: int, settings: Any, curve: Any, arrays: Arrays) -> MLPHead:
    """The saved head."""
    return MLPHead(classes, features, settings, curve, arrays)


def fit(config: HeadConfig, task: Task) -> MLPHead:
    """Trains all settings together, each until its validation stops getting better, and keeps the best."""
    axes = ("scaling", "learning_rate", "weight_decay")
    grid = [dict(zip(axes, v, strict=True)) for v in itertools.product(*(chosen(getattr(config, a)) for a in axes))]
    needs_validation(len(grid), task)
    trainer = _Trainer(config, task, grid)
    curve, layers = trainer.run(chosen(config.epochs))
    best = choose(curve, config.choose_by) if task.val is not None else 0
    settings = {**grid[best], "hidden": list(chosen(config.hidden)), "epochs": curve[best]["epochs"]}
    if config.refit:
        trainer = _Trainer(config, task.joined(), [grid[best]])
        _, layers = trainer.run(settings["epochs"])
        best = 0
    arrays = trainer.arrays(layers, best)
    return MLPHead(task.num_classes, task.train.x.shape[1], settings, curve, arrays)


@dataclass(frozen=True)
class _Trainer:
    config: HeadConfig
    task: Task
    grid: Sequence[dict[str, Any]]

    @functools.cached_property
    def scaling(self) -> Scaling:
        """Of each member: its arrays have the members as their first axis."""
        names = [setting["scaling"] for setting in self.grid]
        known = {name: fit_scaling(name, self.task.train.x) for name in dict.fromkeys(names)}
        return stacked(known[name] for name in names)

    def run(self, epochs: int) -> tuple[list[dict[str, Any]], Layers]:
        """At most this many epochs: the curve, and each member's layers at its best epoch."""
        key = jax.random.key(self.task.seed)
        rate, decay = (np.array([s[name] for s in self.grid], np.float32) for name in ("learning_rate", "weight_decay"))
        state = self._start(key)
        logits = functools.partial(_logits, self.scaling)
        watch = _Watch(self.config, len(self.grid), state[0])
        step = 0
        for epoch in range(epochs):
            for batch in batches(self.task, chosen(self.config.batch_size), epoch):
                here, task = jax.random.fold_in(key, step), self.task
                given = (*batch, task.adjustment)
                state = _step(state, self.scaling, rate, decay, here, given, self.config.dropout, task.loss)
                step += 1
            if self.task.val is not None:
                now = functools.partial(logits, state[0])
                watch.see(epoch + 1, state[0], *measure_in_blocks(now, self.task, self.task.val, even(self.task.val)))
            else:
                watch.take_all(epoch + 1, state[0])
            if watch.over:
                break
        best = functools.partial(logits, watch.best)
        train_loss, _ = measure_in_blocks(best, self.task, self.task.train, self.task.sample_weights())
        if not (train_loss < DIVERGED).any():
            raise RunError("the MLP head's loss is not finite: lower head.learning_rate")
        curve = [{**s, "train_loss": loss} for s, loss in zip(self.grid, train_loss.tolist(), strict=True)]
        return [{**entry, **seen} for entry, seen in zip(curve, watch.entries(), strict=True)], watch.best

    def arrays(self, layers: Layers, member: int) -> Arrays:
        """What the head keeps of one member."""
        kept = [(np.asarray(kernel[member]), np.asarray(bias[member])) for kernel, bias in layers]
        kept[-1] = all_columns(self.task, *kept[-1])
        arrays = {"mean": np.array(self.scaling.mean[member]), "scale": np.array(self.scaling.scale[member])}
        for i, (kernel, bias) in enumerate(kept):
            arrays |= {f"kernel_{i}": kernel, f"bias_{i}": bias}
        return arrays

    def _start(self, key: Array) -> _State:
        """The same layers for all members: He's initialisation, and zero for the last layer."""
        widths = [self.task.train.x.shape[1], *chosen(self.config.hidden), len(self.task.present)]
        layers = []
        for i, (inside, outside) in enumerate(itertools.pairwise(widths)):
            kernel = jax.random.normal(jax.random.fold_in(key, 1_000_000 + i), (inside, outside)) * np.sqrt(2 / inside)
            kernel = kernel if i < len(widths) - 2 else jnp.zeros_like(kernel)
            layers.append((kernel, jnp.zeros(outside)))
        layers = jax.tree.map(lambda array: jnp.repeat(array[None], len(self.grid), axis=0), layers)
        return layers, jax.vmap(optax.adamw(1.0).init)(layers)


class _Watch:
    """The best epoch of each member so far, and which members are still getting better."""

    def __init__(self, config: HeadConfig, members: int, layers: Layers) -> None:
        self.by, self.patience = config.choose_by, chosen(config.patience)
        self.best = jax.tree.map(jnp.copy, layers)
        self.epochs, self.seen = np.zeros(members, int), 0
        self.loss, self.accuracy = np.full(members, np.inf), np.full(members, -1.0)

    @property
    def over(self) -> bool:
        return bool((self.seen - self.epochs >= self.patience).all())

    def see(self, epoch: int, layers: Layers, loss: Any, accuracy: Any) -> None:
        """Validation after an epoch."""
        old, new = (self.loss, -self.accuracy), (loss, -accuracy)
        first, second = (0, 1) if self.by == "loss" else (1, 0)
        better = (new[first] < old[first]) | ((new[first] == old[first]) & (new[second] < old[second]))
        better &= epoch - 1 - self.epochs < self.patience  # who has stopped, has stopped
        self.loss, self.accuracy = np.where(better, loss, self.loss), np.where(better, accuracy, self.accuracy)
        self._take(epoch, layers, better)

    def take_all(self, epoch: int, layers: Layers) -> None:
        """Without validation the last epoch is the best."""
        self._take(epoch, layers, np.ones(len(self.epochs), bool))

    def entries(self) -> list[dict[str, Any]]:
        entries = [{"epochs": epochs} for epochs in self.epochs.tolist()]
        if np.isinf(self.loss).all():
            return entries
        figures = zip(entries, self.loss.tolist(), self.accuracy.tolist(), strict=True)
        return [{**entry, "val_loss": loss, "val_accuracy": accuracy} for entry, loss, accuracy in figures]

    def _take(self, epoch: int, layers: Layers, which: Any) -> None:
        self.best = _select(which, layers, self.best)
        self.epochs, self.seen = np.where(which, epoch, self.epochs), epoch


def _forward(layers: Layers, x: Array, key: Array | None = None, dropout: float = 0.0) -> Array:
    for i, (kernel, bias) in enumerate(layers[:-1]):
        x = jax.nn.relu(x @ kernel + bias)
        if key is not None and dropout:
            x = jnp.where(
                jax.random.bernoulli(jax.random.fold_in(key, i), 1 - dropout, x.shape), x / (1 - dropout), 0.0
            )
    return x @ layers[-1][0] + layers[-1][1]


@jax.jit
def _logits(scaling: Scaling, layers: Layers, x: Array) -> Array:
    """float32[images, classes, members]."""
    return jax.vmap(lambda scaling, layers: _forward(layers, scaling(x)), out_axes=-1)(scaling, layers)


@jax.jit
def _select(which: Array, new: Layers, old: Layers) -> Layers:
    return jax.tree.map(lambda a, b: jnp.where(which.reshape(-1, *[1] * (a.ndim - 1)), a, b), new, old)


@functools.partial(jax.jit, static_argnums=(6, 7), donate_argnums=0)
def _step(
    state: _State,
    scaling: Scaling,
    rate: Array,
    decay: Array,
    key: Array,
    batch: tuple[Array, ...],
    dropout: float,
    loss_config: LossConfig,
) -> _State:
    """One step of all members."""
    x, y, weight, adjustment = batch

    def one(state: _State, scaling: Scaling, rate: Array, decay: Array) -> _State:
        layers, moments = state

        def loss(layers: Layers) -> Array:
            logits = _forward(layers, scaling(x), key, dropout)
            target = jax.nn.one_hot(y, logits.shape[-1])
            return jnp.mean(weight * named_loss(loss_config)(logits + adjustment, target))

        optimizer = optax.adamw(rate, weight_decay=decay)
        updates, moments = optimizer.update(jax.grad(loss)(layers), moments, layers)
        return optax.apply_updates(layers, updates), moments

    return jax.vmap(one)(state, scaling, rate, decay)
