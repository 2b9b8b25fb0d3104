"""One pure training step; everything else (compile, shard, scan, log, save) wraps it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxtrain.backend import backend
from jaxtrain.errors import UserError
from jaxtrain.losses import checked, cross_entropy
from jaxtrain.training.network import Network, Trainable
from jaxtrain.training.optimizers import Followed, ema_update, rate_in_force
from jaxtrain.training.state import Batch, TrainState, Tree
from jaxtrain.training.technique import Learner, Metrics

Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


LossFunction = Callable[[jax.Array, jax.Array], jax.Array]
"""From logits and targets, `float32[batch, classes]` each, to a scalar or `float32[batch]`."""


@dataclass(frozen=True)
class TrainStep:
    """The pure step `step(state, batch) -> (state, metrics)`: its randomness is `fold_in(key, step)`.

    Jit it, shard it, scan it. `train_step` makes one for a loop of your own.
    """

    learner: Learner
    network: Network
    optimizer: optax.GradientTransformation
    schedule: Followed | None = None
    """That the optimizer was made with, for the metric `learning_rate`."""
    accumulate: int = 1
    ema_decay: float | None = None
    skip_nonfinite: bool = False
    """A step whose loss or gradient is not finite changes nothing but the step's number; metric `skipped` is 1 then."""

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """One optimizer step; metrics are scalars: `loss`, `accuracy` and what else the loss logs."""
        axis_name = self.network.axis_name
        key = jax.random.fold_in(state.key, state.step)
        image_keys = _image_keys(jax.random.fold_in(key, 0), batch.label.shape[0], axis_name)
        batch = self.learner.inputs(batch, image_keys)
        gradients, model_state, metrics = _gradients(self, state, batch, jax.random.fold_in(key, 1))
        if axis_name is not None:
            gradients, metrics = jax.lax.pmean((gradients, metrics), axis_name)
        updates, opt_state = self.optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if self.ema_decay is not None:
            now = {"params": params, "model_state": model_state}
            ema = ema_update(ema, now, self.ema_decay, state.step)
        new = {"params": params, "model_state": model_state, "opt_state": opt_state, "ema": ema}
        if self.skip_nonfinite:
            finite = _all_finite((metrics["loss"], gradients))
            old = {name: getattr(state, name) for name in new}
            new = jax.tree.map(lambda after, before: jnp.where(finite, after, before), new, old)
            metrics["skipped"] = 1.0 - finite
        rate = rate_in_force(opt_state, self.schedule, state.step)
        if rate is not None:
            metrics["learning_rate"] = rate
        return replace(state, step=state.step + 1, **new), metrics

    def start(self, weights: tuple[Tree, Tree, Tree], key: jax.Array, values: Tree | None = None) -> TrainState:
        """The state before the first step, from `network.weights(model)` or `network.fresh(technique)`."""
        params, frozen, model_state = weights
        ema: Tree = {} if self.ema_decay is None else {"params": params, "model_state": model_state}
        moments = self.optimizer.init(params)
        return TrainState(jnp.int32(0), params, frozen, model_state, moments, ema, key, values or {})

    def model(self, state: TrainState) -> Any:
        """The network with the weights of a state (averaged ones where there are): images to logits."""
        return self.network.bind(**state.eval_weights)


def train_step(
    model: nnx.Module,
    optimizer: optax.GradientTransformation,
    loss: LossFunction = cross_entropy,
    *,
    seed: int = 0,
    trainable: Trainable = lambda path, value: True,
    accumulate: int = 1,
    ema_decay: float | None = None,
) -> tuple[TrainStep, TrainState]:
    """The step of a network for a loop of your own, and the state before the first one.

    Batches hold what the network takes, `float32[batch, height, width, channels]`, and `float32[batch, classes]`.

    Args:
        model: of `create_model`, or any `nnx.Module`; it stays as it is.
        optimizer: an optax transform.
        loss: of logits and targets, to a scalar or one number for each image.
        seed: of dropout and other random streams.
        trainable: whether the parameter at a path learns; the others get no gradients and no optimizer state.
        accumulate: split each batch into this many parts and sum their gradients.
        ema_decay: of a moving average of the parameters, which `TrainStep.model` then uses.
    """
    network = Network(lambda: model, trainable)
    step = TrainStep(_Plain(loss), network, optimizer, None, accumulate, ema_decay)
    weights = jax.tree.map(jnp.array, network.weights(model))
    return step, jax.tree.map(jnp.copy, step.start(weights, jax.random.key(seed)))


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
        return jnp.mean(checked(self.loss_function(logits, batch.label), len(logits))), {
            "accuracy": jnp.mean(hits.astype(jnp.float32))
        }


def checked_loss(result: Any, owner: str) -> tuple[jax.Array, Metrics]:
    """What a `loss` method returned: a scalar, and scalars to log. Raises UserError for anything else."""
    form = f"{owner}.loss must return (loss, metrics): a scalar and a dict of scalars to log, {{}} where there are none"
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], Mapping):
        got = f"a tuple of {len(result)}" if isinstance(result, tuple) else f"a {type(result).__name__} alone"
        raise UserError(f"{form}; it returned {got}")
    for name, value in {"the loss": result[0], **result[1]}.items():
        if jnp.shape(value) != ():
            raise UserError(f"{form}; {name} has shape {list(jnp.shape(value))}")
    return result


def _all_finite(tree: Tree) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def _image_keys(key: jax.Array, images: int, axis_name: str | None) -> jax.Array:
    """One key for each image by its place in the global batch: `key[images]`."""
    places = jnp.arange(images)
    if axis_name is not None:
        places += jax.lax.axis_index(axis_name) * images
    return jax.vmap(jax.random.fold_in, (None, 0))(key, places)


def _gradients(spec: TrainStep, state: TrainState, batch: Batch, key: jax.Array) -> tuple[Tree, Tree, Metrics]:
    def objective(params: Tree, model_state: Tree, part: Batch, key: jax.Array) -> Any:
        model = spec.network.bind(params, state.frozen, model_state)
        loss, metrics = checked_loss(spec.learner.loss(model, part, key), type(spec.learner).__name__)
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
    unroll = spec.accumulate if backend() == "cpu" else 1
    parts = (jax.tree.map(part_of, batch), jnp.arange(spec.accumulate))
    (total, model_state), metrics = jax.lax.scan(body, start, parts, unroll=unroll)
    gradients = jax.tree.map(lambda g: g / spec.accumulate, total)
    return gradients, model_state, jax.tree.map(jnp.mean, metrics)
