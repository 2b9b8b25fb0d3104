"""Optimizer parts for fine-tuning: learning rates that differ by parameter, and decay towards the starting point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxtrain.training.optimizers import Mask, Schedule

Factor = Callable[[str, jax.Array], jax.Array | float]
"""From a parameter's name and the step to what its learning rate is multiplied by."""


class CountState(NamedTuple):
    """Steps done."""

    step: jax.Array


class StartState(NamedTuple):
    """Steps done, and where the parameters started (None where they do not decay)."""

    step: jax.Array
    start: Any


def scale_learning_rates(factor: Factor) -> optax.GradientTransformation:
    """Multiplies each parameter's update, which is the same as multiplying its learning rate.

    It comes last in the chain: all our optimizers' updates (decoupled weight decay included) are proportional to the
    learning rate, and adaptive ones would undo a factor on the gradient.
    """

    def init(params: Any) -> CountState:
        return CountState(jnp.int32(0))

    def update(updates: Any, state: CountState, params: Any = None) -> tuple[Any, CountState]:
        scaled = {name: update * factor(name, state.step) for name, update in updates.items()}
        return scaled, CountState(state.step + 1)

    return optax.GradientTransformation(init, update)


def decay_towards_start(rate: float, schedule: Schedule, applies: Mask) -> optax.GradientTransformation:
    """L2-SP (Li et al. 2018, arXiv 1802.01483): pulls parameters to where they were when training began.

    Decoupled from the gradient, as weight decay is (Loshchilov and Hutter 2017, arXiv 1711.05101), so that it means the
    same with every optimizer: each step moves them by learning rate * `rate` of the way back. The state keeps a copy of
    the parameters that `applies` marks.
    """

    def init(params: Any) -> StartState:
        start = jax.tree.map(lambda p, yes: jnp.array(p) if yes else None, params, applies(params))
        return StartState(jnp.int32(0), start)

    def update(updates: Any, state: StartState, params: Any) -> tuple[Any, StartState]:
        pull = rate * schedule(state.step)

        def pulled(update: jax.Array, param: jax.Array, start: jax.Array | None) -> jax.Array:
            return update if start is None else update - pull * (param - start)

        new = jax.tree.map(pulled, updates, params, state.start)
        return new, StartState(state.step + 1, state.start)

    return optax.GradientTransformation(init, update)
