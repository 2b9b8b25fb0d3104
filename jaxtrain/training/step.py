"""One pure training step; everything else (compile, shard, scan, log, save) wraps it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxtrain.training.losses import cross_entropy
from jaxtrain.training.network import Network
from jaxtrain.training.optimizers import Schedule, ema_update
from jaxtrain.training.state import Batch, TrainState, Tree
from jaxtrain.training.technique import Learner, Metrics

Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


@dataclass(frozen=True)
class StepSpec:
    """What a step is made of."""

    learner: Learner
    network: Network
    optimizer: optax.GradientTransformation
    schedule: Schedule | None
    """For the metric `learning_rate`."""
    accumulate: int = 1
    ema_decay: float | None = None
    skip_nonfinite: bool = False
    """A step whose loss or gradient is not finite changes nothing but the step's number; metric `skipped` is 1 then."""

    @property
    def axis_name(self) -> str | None:
        """Mapped axis under pmap, whose gradients and metrics are averaged; None under jit: the compiler does it."""
        return self.network.axis_name


def make_step(spec: StepSpec) -> Step:
    """`step(state, batch) -> (state, metrics)`: pure, its randomness is `fold_in(key, step)`."""

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        image_keys = _image_keys(jax.random.fold_in(key, 0), batch.label.shape[0], spec.axis_name)
        batch = spec.learner.inputs(batch, image_keys)
        gradients, model_state, metrics = _gradients(spec, state, batch, jax.random.fold_in(key, 1))
        if spec.axis_name is not None:
            gradients, metrics = jax.lax.pmean((gradients, metrics), spec.axis_name)
        updates, opt_state = spec.optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if spec.ema_decay is not None:
            now = {"params": params, "model_state": model_state}
            ema = ema_update(ema, now, spec.ema_decay, state.step)
        new = {"params": params, "model_state": model_state, "opt_state": opt_state, "ema": ema}
        if spec.skip_nonfinite:
            finite = _all_finite((metrics["loss"], gradients))
            old = {name: getattr(state, name) for name in new}
            new = jax.tree.map(lambda after, before: jnp.where(finite, after, before), new, old)
            metrics["skipped"] = 1.0 - finite
        if spec.schedule is not None:
            metrics["learning_rate"] = jnp.asarray(spec.schedule(state.step), jnp.float32)
        return replace(state, step=state.step + 1, **new), metrics

    return step


def _all_finite(tree: Tree) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def _image_keys(key: jax.Array, images: int, axis_name: str | None) -> jax.Array:
    """One key for each image by its place in the global batch: `key[images]`."""
    places = jnp.arange(images)
    if axis_name is not None:
        places += jax.lax.axis_index(axis_name) * images
    return jax.vmap(jax.random.fold_in, (None, 0))(key, places)


def _gradients(spec: StepSpec, state: TrainState, batch: Batch, key: jax.Array) -> tuple[Tree, Tree, Metrics]:
    def objective(params: Tree, model_state: Tree, part: Batch, key: jax.Array) -> Any:
        model = spec.network.bind(params, state.frozen, model_state)
        loss, metrics = spec.learner.loss(model, part, key)
        return loss, (spec.network.state_of(model), {"loss": loss, **metrics})

    differentiate = jax.grad(objective, has_aux=True)
    if spec.accumulate == 1:
        gradients, (model_state, metrics) = differentiate(state.params, state.model_state, batch, key)
        return gradients, model_state, metrics

    def part_of(x: jax.Array) -> jax.Array:
        # Every accumulate-th image: parts then lie evenly on the devices of a sharded batch.
        return x.reshape(-1, spec.accumulate, *x.shape[1:]).swapaxes(0, 1)

    def body(carry: Any, xs: Any) -> Any:
        total, model_state = carry
        part, index = xs
        gradients, (model_state, metrics) = differentiate(
            state.params, model_state, part, jax.random.fold_in(key, index)
        )
        return (jax.tree.map(jnp.add, total, gradients), model_state), metrics

    start = (jax.tree.map(jnp.zeros_like, state.params), state.model_state)
    # XLA:CPU runs convolutions inside a loop over ten times slower than outside; unrolled they are equal.
    unroll = spec.accumulate if jax.default_backend() == "cpu" else 1
    parts = (jax.tree.map(part_of, batch), jnp.arange(spec.accumulate))
    (total, model_state), metrics = jax.lax.scan(body, start, parts, unroll=unroll)
    gradients = jax.tree.map(lambda g: g / spec.accumulate, total)
    return gradients, model_state, jax.tree.map(jnp.mean, metrics)


LossFunction = Callable[[jax.Array, jax.Array], jax.Array]
"""From logits and targets, `float32[batch, classes]` each, to a scalar or `float32[batch]`."""


@dataclass(frozen=True)
class _Plain:
    """A learner of batches that are ready for the network."""

    loss_function: LossFunction

    def inputs(self, batch: Batch, keys: jax.Array) -> Batch:
        """As they are."""
        return batch

    def loss(self, model: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """The mean over the batch."""
        logits = model(batch.image, train=True, key=key)
        hits = jnp.argmax(logits, axis=-1) == jnp.argmax(batch.label, axis=-1)
        return jnp.mean(self.loss_function(logits, batch.label)), {"accuracy": jnp.mean(hits.astype(jnp.float32))}


class TrainStep:
    """The pure step of a network, for a loop of one's own: `step(state, batch) -> (state, metrics)`.

    Jit it, shard it, scan it: its randomness is `fold_in(key, step)`. `batch.image` is what the network takes,
    `float32[batch, height, width, channels]`; `batch.label` is `float32[batch, classes]`.
    """

    def __init__(
        self,
        model: nnx.Module,
        optimizer: optax.GradientTransformation,
        loss: LossFunction = cross_entropy,
        *,
        trainable: Callable[[tuple[Any, ...], Any], bool] = lambda path, value: True,
        accumulate: int = 1,
        ema_decay: float | None = None,
    ) -> None:
        """`model`: of `create_model`, or any `nnx.Module`; `trainable`: whether the parameter at a path learns."""
        network = Network(lambda: model, trainable)
        self._spec = StepSpec(_Plain(loss), network, optimizer, None, accumulate, ema_decay)
        self._weights = network.weights(model)
        self._step = make_step(self._spec)

    def start(self, seed: int = 0) -> TrainState:
        """The state before the first step: the weights of the model, and a key."""
        params, frozen, model_state = jax.tree.map(jnp.array, self._weights)
        ema: Tree = {}
        if self._spec.ema_decay is not None:
            ema = jax.tree.map(jnp.array, {"params": params, "model_state": model_state})
        moments = self._spec.optimizer.init(params)
        return TrainState(jnp.int32(0), params, frozen, model_state, moments, ema, jax.random.key(seed))

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """One step; metrics are scalars: `loss`, `accuracy`."""
        return self._step(state, batch)

    def model(self, state: TrainState) -> Any:
        """The network with the weights of a state (averaged ones where there are): images to logits."""
        return self._spec.network.bind(**state.eval_weights)
