"""The state of training: one pytree. What is not in it does not exist after a restart."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxtrain.training.param_groups import CountState, StartState

Array = Any  # a jax.Array, or a NumPy array on its way to the devices
Tree = Any  # arrays by name, as in {"blocks/0/norm1/scale": array}; or such dicts by what they are


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that one step reads and the next one needs."""

    step: jax.Array
    """`int32[]`: optimizer steps done."""
    params: Tree
    """Trainable parameters, float32."""
    frozen: Tree
    """Parameters that get no gradient and no optimizer state."""
    model_state: Tree
    """Batch statistics."""
    opt_state: Any
    ema: Tree
    """{"params", "model_state"}: moving averages, or {} when off."""
    key: jax.Array
    """Key of the run; the step folds its own number into it."""
    values: Tree = field(default_factory=dict)
    """Scalars by option path, where the step takes options as arguments (runs of a sweep); in no checkpoint."""

    @property
    def eval_params(self) -> Tree:
        """What evaluation and the exported model use: the moving average where there is one."""
        return self.ema.get("params", self.params)

    @property
    def eval_weights(self) -> Tree:
        """{"params", "frozen", "model_state"} for evaluation and the exported model."""
        return {"params": self.eval_params, "frozen": self.frozen, "model_state": self.eval_model_state}

    @property
    def eval_model_state(self) -> Tree:
        """Batch statistics that belong to `eval_params`."""
        return self.ema.get("model_state", self.model_state)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """What the loss sees: a global batch, or this device's part of it under pmap."""

    image: Array
    """`uint8[batch, height, width, channels]` from the feed, float32 after `inputs`."""
    label: Array
    """`int32[batch]` (or `int8[batch, classes]`) from the feed, `float32[batch, classes]` after `inputs`."""
    weight: Array | None = None
    """`float32[batch]`: how much each image counts, 0 for one that could not be read; None: all the same."""


def to_arrays(state: TrainState) -> dict[str, Any]:
    """The state as nested dicts of host arrays, for a checkpoint: independent of strategy and devices."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(_raw_key(replace(state, values={})))
    host = jax.device_get([leaf for _, leaf in leaves])
    # device_get can hand out views of device memory on CPU; the next step reuses that memory (donation).
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.array(leaf)
        for (path, _), leaf in zip(leaves, host, strict=True)
    }


def from_arrays(arrays: dict[str, Any], like: TrainState) -> TrainState:
    """The inverse of `to_arrays`; `like` gives the structure (its leaves may be ShapeDtypeStructs)."""
    raw = jax.eval_shape(_raw_key, replace(like, values={}))
    leaves, treedef = jax.tree_util.tree_flatten_with_path(raw)
    values = [arrays[jax.tree_util.keystr(path, simple=True, separator="/")] for path, _ in leaves]
    state = jax.tree_util.tree_unflatten(treedef, values)
    return replace(state, key=jax.random.wrap_key_data(jnp.asarray(state.key)), values=like.values)


def moved_to(state: TrainState, step: int) -> TrainState:
    """The same parameters before another step: batches, randomness and learning rates are that step's.

    What else the optimizer counts is how often it has updated its moments, which stays.
    """

    def moved(part: Any) -> Any:
        return part._replace(**{_COUNTERS[type(part)]: jnp.int32(step)}) if _follows_steps(part) else part

    opt_state = jax.tree.map(moved, state.opt_state, is_leaf=_follows_steps)
    return replace(state, step=jnp.int32(step), opt_state=opt_state)


_COUNTERS = {optax.ScaleByScheduleState: "count", CountState: "step", StartState: "step"}
"""Parts of optimizers that go by the step of the run, and the field that holds it."""


def _follows_steps(part: Any) -> bool:
    return type(part) in _COUNTERS


def _raw_key(state: TrainState) -> TrainState:
    return replace(state, key=jax.random.key_data(state.key))
