"""A loss that is NaN or infinite: the error that names its step, and the replay that finds where it began."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxtrain.errors import RunError
from jaxtrain.models.own import called
from jaxtrain.training.feed import Feed
from jaxtrain.training.parallel import Strategy, must_block
from jaxtrain.training.state import Array, Batch, TrainState, Tree
from jaxtrain.training.step import TrainStep
from jaxtrain.training.technique import Learner, Metrics
from jaxtrain.trees import flat


class Diverged(RunError):  # noqa: N818  (a state, as its users call it)
    """Something became NaN or infinite in optimizer step `step` (counted from 1) or just before it."""

    def __init__(self, what: str, step: int) -> None:
        super().__init__(what)
        self.step = step


def bad_array(arrays: dict[str, Any]) -> str | None:
    """The first of a saved state's parameters or batch statistics that holds NaN or infinity."""
    learned = (name for name in arrays if name.startswith(("params", "model_state")))
    return next((name for name in learned if not np.isfinite(arrays[name]).all()), None)


def find_origin(
    spec: Callable[[Any], TrainStep], feed: Feed, strategy: Strategy, state: TrainState, start: int, step: int
) -> str | None:
    """What first became NaN or infinite up to optimizer step `step`, found by computing it again.

    `spec` makes the step from `state.values`; `state` is that after `start` steps, placed, and given away. Steps up to
    the one before last are computed as in training; in the last two every layer's output, every gradient and every
    update is looked at. None where nothing was found: the fault did not come back.
    """

    def as_trained(state: TrainState, *args: Any) -> Any:
        return spec(state.values)(state, feed.batch(state.step, *args))

    plain = strategy.compile_steps(as_trained)
    probe = _Probe(spec, feed)
    probed = strategy.compile_steps(probe.step)
    for number in range(start, step):
        state, metrics = (plain if number < step - 2 else probed)(state, *feed.args(number))
        if number >= step - 2 or must_block(strategy):
            jax.block_until_ready((state, metrics))
        if number >= step - 2:
            jax.effects_barrier()
            found = probe.first()
            if found is not None:
                return f"{found} (step {number + 1})"
    return None


class _Probe:
    """A training step that notes, in the order of computation, what is finite.

    The notes leave the compiled program by callbacks, also from inside scans and rematerialised blocks.
    """

    def __init__(self, spec: Callable[[Any], TrainStep], feed: Feed) -> None:
        self._spec, self._feed = spec, feed
        self._names: list[str] = []
        self._bad: set[int] = set()

    def step(self, state: TrainState, *args: Any) -> tuple[TrainState, Metrics]:
        """Inside a compiled function, as any step."""
        spec = self._spec(state.values)
        optimizer = optax.GradientTransformation(spec.optimizer.init, partial(self._update, spec.optimizer))
        spec = replace(spec, learner=_ProbedLearner(spec.learner, self), optimizer=optimizer)
        return spec(state, self._feed.batch(state.step, *args))

    def note(self, named: Iterable[tuple[str, Array]]) -> None:
        """Have it recorded which of these arrays are finite."""
        floats = [(name, leaf) for name, leaf in named if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)]
        if floats:
            finite = jnp.stack([jnp.all(jnp.isfinite(leaf)) for _, leaf in floats])
            jax.debug.callback(partial(self._record, len(self._names)), finite)
            self._names += [name for name, _ in floats]

    def first(self) -> str | None:
        """The first thing that was not finite."""
        return self._names[min(self._bad)] if self._bad else None

    def _record(self, first: int, finite: Array) -> None:
        self._bad.update((first + np.flatnonzero(~np.asarray(finite))).tolist())

    def _update(self, optimizer: Any, gradients: Tree, opt_state: Any, params: Tree) -> tuple[Tree, Any]:
        self.note((f"the gradient of {name}", leaf) for name, leaf in self._last_layers_first(gradients))
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        self.note((f"the update of {name}", leaf) for name, leaf in self._last_layers_first(updates))
        return updates, opt_state

    def _last_layers_first(self, tree: Tree) -> list[tuple[str, Array]]:
        """Leaves by name, in the order in which a backward pass reaches their layers."""

        def depth(item: tuple[str, Array]) -> int:
            layer = item[0].rpartition("/")[0]
            return next((i for i, name in enumerate(self._names) if name.startswith(f"the output of {layer} ")), -1)

        return sorted(tree.items(), key=depth, reverse=True)


class _ProbedLearner:
    """A learner whose inputs, layers and loss are noted."""

    def __init__(self, learner: Learner, probe: _Probe) -> None:
        self._learner, self._probe = learner, probe

    def inputs(self, batch: Batch, keys: jax.Array) -> Batch:
        """See `Learner`."""
        batch = self._learner.inputs(batch, keys)
        self._probe.note([("the augmented images", batch.image), ("the labels", batch.label)])
        return batch

    def loss(self, model: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """See `Learner`; `model` is this trace's own, so its modules may be given a class that takes notes."""
        module = called(model)
        params = flat(nnx.to_pure_dict(nnx.state(module, nnx.Param)))
        self._probe.note((f"{name}, before the step", leaf) for name, leaf in params.items())
        for path, part in list(nnx.iter_modules(module)):
            if callable(part) and path:
                name = f"the output of {'/'.join(map(str, path))} ({type(part).__name__})"
                object.__setattr__(part, "__class__", _noting(type(part), name, self._probe))
        loss, metrics = self._learner.loss(model, batch, key)
        self._probe.note([("the loss", loss)])
        return loss, metrics


def _noting(kind: type, name: str, probe: _Probe) -> type:
    """A subclass whose calls note their outputs."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = kind.__call__(self, *args, **kwargs)
        probe.note((name, leaf) for leaf in jax.tree.leaves(outputs))
        return outputs

    return type(kind)(kind.__name__, (kind,), {"__call__": call})
