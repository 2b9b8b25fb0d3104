"""Drop rates as arguments of a compiled step: a model holds them as constants, which are exchanged around its loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx

from jaxtrain.models.own import called
from jaxtrain.training.state import Batch
from jaxtrain.training.technique import Learner, Metrics

RATES = ("model.drop_rate", "model.drop_path_rate")


@dataclass(frozen=True)
class WithDropRates:
    """A learner whose model drops at other rates than it was built with."""

    learner: Learner
    factors: Mapping[str, Any]
    """By the name of the attribute: what the rate that the model was built with is multiplied by."""

    def inputs(self, batch: Batch, keys: jax.Array) -> Batch:
        """The learner's."""
        return self.learner.inputs(batch, keys)

    def loss(self, model: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """The learner's, at these rates."""
        with _multiplied(model, self.factors):
            return self.learner.loss(model, batch, key)


@contextmanager
def _multiplied(model: Any, factors: Mapping[str, Any]) -> Iterator[None]:
    """Rates of all modules multiplied, and as they were afterwards; past NNX, to which they are constants."""
    before = [
        (vars(module), name, vars(module)[name])
        for _, module in nnx.iter_modules(called(model))
        for name in factors
        if vars(module).get(name, 0.0) != 0.0
    ]
    try:
        for attributes, name, rate in before:
            attributes[name] = rate * factors[name]
        yield
    finally:
        for attributes, name, rate in before:
            attributes[name] = rate
