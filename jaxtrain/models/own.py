"""Networks that a stranger wrote: any `nnx.Module` or Linen module, built and called as its own signature says.

Flax's documentation writes networks in several ways: with a `train` or `deterministic` argument, or with
`model.train()` and `model.eval()`; with dropout that keeps its own random streams, or gets a key. `calling` makes one
call of them all, that of our own models: `model(images, train=False, key=None)`, and `model.embed(images)`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen, nnx
from jax import Array

from jaxtrain.errors import UserError
from jaxtrain.models.classifier import Classifier

Network = Callable[..., Any]
"""An `nnx.Module` class or a function `(num_classes, rngs) -> nnx.Module`, or a Linen module or its class."""
_MODES = {"train": True, "training": True, "is_training": True, "deterministic": False}
"""Arguments that say whether a call trains, and their value when it does."""


def build_own(network: Network, *, num_classes: int, image_shape: tuple[int, int, int], seed: Any) -> nnx.Module:
    """The network with fresh parameters, inside `jax.jit`. Raises UserError where it is none.

    image_shape: [height, width, channels], by which a Linen module finds the shapes of its parameters.
    """
    name, key = _name(network), jax.random.key(seed)
    if isinstance(network, type) and issubclass(network, linen.Module):
        network = network(num_classes=num_classes) if "num_classes" in _parameters(network) else network(num_classes)
    if isinstance(network, linen.Module):
        bridged = nnx.bridge.ToNNX(network, rngs=nnx.Rngs(params=key))
        with _attributes_of_linen(bridged):
            nnx.bridge.lazy_init(bridged, jnp.zeros((1, *image_shape)), **_mode(_signature(bridged), train=False))
        return bridged
    parameters, rngs = _parameters(network), nnx.Rngs(key)
    by_name = {"num_classes", "rngs"} <= set(parameters)
    try:
        if by_name:
            module = network(num_classes=num_classes, rngs=rngs)
        else:
            module = network(num_classes, **({"rngs": rngs} if "rngs" in parameters else {}))
    except TypeError as error:
        raise UserError(f"network: {name} is called with (num_classes, rngs): {error}") from error
    if not isinstance(module, nnx.Module):
        raise UserError(f"network: {name} gives a {type(module).__name__}, not an nnx.Module")
    return module


def synchronised(model: nnx.Module, axis_name: str | None) -> nnx.Module:
    """Has batch norms see one global batch over the mapped axis of pmap."""
    if axis_name is not None and isinstance(model, nnx.bridge.ToNNX):
        model.to_nnx__axis_name = axis_name
    for _, module in nnx.iter_modules(model) if axis_name is not None else ():
        if isinstance(module, nnx.BatchNorm):
            module.axis_name = axis_name
    return model


class FrozenBatchNorm(nnx.BatchNorm):  # type: ignore[misc]
    """Flax's batch norm, always by its running statistics."""

    def __call__(self, x: Array, *args: Any, **kwargs: Any) -> Array:
        """As in evaluation, whatever the arguments say."""
        return super().__call__(x, use_running_average=True)


def freeze_statistics(model: nnx.Module, frozen: Callable[[tuple[Any, ...]], bool]) -> None:
    """Has batch norms (those of a Linen module: all or none) keep the statistics that they have, by their path."""
    if isinstance(model, nnx.bridge.ToNNX):
        model.to_nnx__frozen = frozen(())
    for path, module in list(nnx.iter_modules(model)):
        if type(module) is nnx.BatchNorm and frozen(path):
            object.__setattr__(module, "__class__", FrozenBatchNorm)


def calling(model: Any, axis_name: str | None = None) -> Any:
    """The model as our own are called; what it is else, its attributes, stays within reach."""
    return model if isinstance(model, Classifier) else Called(model, axis_name)


def called(model: Any) -> Any:
    """The module inside `calling`."""
    return object.__getattribute__(model, "_module") if isinstance(model, Called) else model


class Called:
    """A network in the place of a `Classifier`; random streams that it keeps follow from the key of each call."""

    def __init__(self, module: nnx.Module, axis_name: str | None) -> None:
        self._module, self._axis_name = module, axis_name

    def __call__(self, images: Array, *, train: bool = False, key: Array | None = None) -> Array:
        """Logits `[batch, classes]` of `float[batch, height, width, channels]`."""
        module, parameters = self._module, _signature(self._module)
        arguments = _mode(parameters, train=train)
        if key is not None and self._axis_name is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(self._axis_name))
        if "key" in parameters:
            arguments["key"] = key
        if train and key is not None:
            _seed_streams(module, key)
        if isinstance(module, nnx.bridge.ToNNX):
            updated = linen.DenyList(("params", "intermediates")) if train else False
            with _attributes_of_linen(module):
                return module(images, mutable=updated, **arguments)
        if not set(_MODES) & set(arguments):
            module.train() if train else module.eval()
        logits = module(images, **arguments)
        nnx.pop(module, nnx.Intermediate)
        return logits

    def embed(self, images: Array) -> Array:
        """`float32[batch, features]`: the network's own `embed`, else what its last linear layer sees."""
        own = getattr(self._module, "embed", None)
        if own is not None:
            if not isinstance(self._module, nnx.bridge.ToNNX):
                self._module.eval()
            return own(images, **_mode(inspect.signature(own).parameters, train=False))
        return self.last_linear(images).seen.astype(jnp.float32)

    def last_linear(self, images: Array) -> Linear:
        """The linear layer that gives the logits. Raises UserError where none does."""
        seen: list[Linear] = []
        with _noting_linears(self._module, seen):
            logits = self(images)
        last = next((one for one in reversed(seen) if one.given == logits.shape), None)
        if last is None or last.seen.ndim != 2:
            raise UserError(
                f"{_name(self._module)} ends in no linear layer that could be found: give the network a method "
                "embed(images) for vectors, and finetune.strategy full"
            )
        return last

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_module"), name)


class Linear(NamedTuple):
    """A call of a linear layer."""

    path: tuple[Any, ...]
    seen: Array
    given: tuple[int, ...]
    """Shape of the output."""


@contextmanager
def _noting_linears(module: nnx.Module, seen: list[Linear]) -> Iterator[None]:
    def dense(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        given = call(*args, **kwargs)
        if isinstance(context.module, linen.Dense) and context.method_name == "__call__":
            seen.append(Linear(tuple(context.module.path), args[0], given.shape))
        return given

    def noting(kind: type, path: tuple[Any, ...]) -> type:
        def call(self: Any, x: Array, *args: Any, **kwargs: Any) -> Any:
            given = kind.__call__(self, x, *args, **kwargs)
            seen.append(Linear(path, x, given.shape))
            return given

        return type(kind)(kind.__name__, (kind,), {"__call__": call})

    linears = [(path, one, type(one)) for path, one in nnx.iter_modules(module) if isinstance(one, nnx.Linear)]
    try:
        for path, one, kind in linears:
            object.__setattr__(one, "__class__", noting(kind, path))
        with linen.intercept_methods(dense):
            yield
    finally:
        for _, one, kind in linears:
            object.__setattr__(one, "__class__", kind)


def _attributes_of_linen(module: Any) -> Any:
    """While a bridged Linen module is called, its batch norms are synchronised or frozen as it was told."""
    axis_name, frozen = (vars(module).get(f"to_nnx__{name}") for name in ("axis_name", "frozen"))
    if not axis_name and not frozen:
        return nullcontext()

    def attributes(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if isinstance(context.module, linen.BatchNorm):
            object.__setattr__(context.module, "axis_name", axis_name)
            if frozen:
                object.__setattr__(context.module, "use_running_average", None)
                kwargs = {**kwargs, "use_running_average": True}
        return call(*args, **kwargs)

    return linen.intercept_methods(attributes)


def _seed_streams(module: nnx.Module, key: Array) -> None:
    """Every random stream of the module starts afresh, from this key and its place among them."""
    fresh = {}
    for number, (path, variable) in enumerate(sorted(nnx.to_flat_state(nnx.state(module, nnx.RngState)), key=str)):
        value = variable.get_value()
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            one = jax.random.fold_in(key, number)
            fresh[path] = one if value.shape == () else jax.random.split(one, value.shape)
        else:
            fresh[path] = jnp.zeros_like(value)
    if fresh:
        nnx.update(module, nnx.traversals.unflatten_mapping(fresh))


def placeholders(shapes: Any) -> Any:
    """Random streams of these shapes (pure dict) for calls that draw nothing."""

    def value(shape: Any) -> Array:
        if jnp.issubdtype(shape.dtype, jax.dtypes.prng_key):
            return jnp.broadcast_to(jax.random.key(0), shape.shape)
        return jnp.zeros(shape.shape, shape.dtype)

    return jax.tree.map(value, shapes)


def _signature(module: nnx.Module) -> Any:
    inner = module.to_nnx__module if isinstance(module, nnx.bridge.ToNNX) else module
    return inspect.signature(type(inner).__call__).parameters


def _parameters(network: Any) -> Any:
    try:
        # The call of a class of Flax hides the arguments of its __init__.
        made_by = getattr(network, "__init__") if isinstance(network, type) else network  # noqa: B009
        return inspect.signature(made_by).parameters
    except (TypeError, ValueError):
        raise UserError(f"network: {network!r} cannot be called with (num_classes, rngs)") from None


def _mode(parameters: Any, *, train: bool) -> dict[str, Any]:
    """The arguments among `parameters` that say whether a call trains."""
    return {name: train == training for name, training in _MODES.items() if name in parameters}


def _name(network: Any) -> str:
    return getattr(network, "__name__", type(network).__name__)
