"""The structure of a network, apart from its weights: split once, bound to weights inside every compiled function."""

from __future__ import annotations

from typing import Any

from flax import nnx

from jaxtrain.models.own import called, calling, placeholders
from jaxtrain.training.state import Tree
from jaxtrain.training.technique import Technique


class Network:
    """What a technique builds, without arrays."""

    def __init__(self, technique: Technique, axis_name: str | None) -> None:
        """`axis_name`: the mapped axis under pmap."""
        self.technique, self.axis_name = technique, axis_name
        self._graphdef, params, frozen, self._streams, model_state = self._split(nnx.eval_shape(self._build))
        self.shapes: Tree = {"params": params, "frozen": frozen, "model_state": model_state}

    def fresh(self, technique: Technique) -> tuple[Tree, Tree, Tree]:
        """Parameters, frozen ones and the rest from the seed, as `technique` (of the same structure) builds it."""
        _, params, frozen, _, model_state = self._split(
            technique.build_model(num_classes=technique.binding.num_classes, axis_name=self.axis_name)
        )
        return params, frozen, model_state

    def bind(self, params: Tree, frozen: Tree, model_state: Tree) -> Any:
        """The network with these weights, to be called as `model(images, train=False, key=None)`."""
        model = nnx.merge(self._graphdef, params, frozen, placeholders(self._streams), model_state)
        return calling(model, self.axis_name)

    def state_of(self, model: Any) -> Tree:
        """What a call in training has changed besides parameters: batch statistics."""
        return nnx.to_pure_dict(nnx.state(called(model), nnx.All(nnx.Not(nnx.Param), nnx.Not(nnx.RngState))))

    def _build(self) -> nnx.Module:
        return self.technique.build_model(num_classes=self.technique.binding.num_classes, axis_name=self.axis_name)

    def _split(self, model: nnx.Module) -> tuple[Any, Tree, Tree, Tree, Tree]:
        technique = self.technique

        def trainable(path: tuple[Any, ...], value: Any) -> bool:
            return isinstance(value, nnx.Param) and technique.trainable(path, value)

        nnx.pop(model, nnx.Intermediate)
        graphdef, *parts = nnx.split(model, trainable, nnx.Param, nnx.RngState, ...)
        params, frozen, streams, model_state = (nnx.to_pure_dict(part) for part in parts)
        return graphdef, params, frozen, streams, model_state
