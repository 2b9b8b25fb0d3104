"""The structure of a network, apart from its weights: split once, bound to weights inside every compiled function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flax import nnx

from jaxtrain.models.own import called, calling, placeholders
from jaxtrain.training.state import Tree
from jaxtrain.training.technique import Technique
from jaxtrain.trees import flat, leaf_name, leaves, nest

Trainable = Callable[[tuple[Any, ...], Any], bool]
"""Whether the parameter at a path gets gradients."""


class Network:
    """A network without arrays. Its weights are flat dicts: `{"blocks/0/norm1/scale": array}`."""

    def __init__(self, build: Callable[[], nnx.Module], trainable: Trainable, axis_name: str | None = None) -> None:
        """`trainable`: whether the parameter at a path gets gradients; `axis_name`: the mapped axis under pmap."""
        self.axis_name, self._trainable = axis_name, trainable
        self._graphdef, *parts, self._streams = self._split(nnx.eval_shape(build))
        self._paths = {leaf_name(path): path for part in parts for path in leaves(part)}
        params, frozen, model_state = map(flat, parts)
        self.shapes: Tree = {"params": params, "frozen": frozen, "model_state": model_state}

    @classmethod
    def of(cls, technique: Technique, axis_name: str | None) -> Network:
        """What a technique builds for its classes."""
        return cls(lambda: _built(technique, axis_name), technique.trainable, axis_name)

    def fresh(self, technique: Technique) -> tuple[Tree, Tree, Tree]:
        """Parameters, frozen ones and the rest from the seed, as `technique` (of the same structure) builds it."""
        return self.weights(_built(technique, self.axis_name))

    def weights(self, model: nnx.Module) -> tuple[Tree, Tree, Tree]:
        """Parameters, frozen ones and the rest of a network of this structure."""
        _, *parts, _ = self._split(model)
        params, frozen, model_state = map(flat, parts)
        return params, frozen, model_state

    def bind(self, params: Tree, frozen: Tree, model_state: Tree) -> Any:
        """The network with these weights, to be called as `model(images, train=False, key=None)`."""
        parts = (
            nest({self._paths[name]: leaf for name, leaf in part.items()}) for part in (params, frozen, model_state)
        )
        model = nnx.merge(self._graphdef, *parts, placeholders(self._streams))
        return calling(model, self.axis_name)

    def state_of(self, model: Any) -> Tree:
        """What a call in training has changed besides parameters: batch statistics."""
        rest = nnx.state(called(model), nnx.All(nnx.Not(nnx.Param), nnx.Not(nnx.RngState)))
        return flat(nnx.to_pure_dict(rest))

    def _split(self, model: nnx.Module) -> tuple[Any, Tree, Tree, Tree, Tree]:
        def trainable(path: tuple[Any, ...], value: Any) -> bool:
            return isinstance(value, nnx.Param) and self._trainable(path, value)

        nnx.pop(model, nnx.Intermediate)
        graphdef, *parts = nnx.split(model, trainable, nnx.Param, nnx.RngState, ...)
        params, frozen, streams, model_state = map(nnx.to_pure_dict, parts)
        return graphdef, params, frozen, model_state, streams


def _built(technique: Technique, axis_name: str | None) -> nnx.Module:
    return technique.build_model(num_classes=technique.binding.num_classes, axis_name=axis_name)
