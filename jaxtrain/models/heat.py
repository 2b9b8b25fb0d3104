"""Where in an image the evidence for a class is: Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391) of any network.

Its map is the positive part of a weighted sum of the channels of a feature map; the weight of a channel is the mean
gradient of the score with respect to it. The feature map is what a convolutional network pools; in a vision transformer
the patches that enter the last block, as those that leave it no longer act on a class token; in a network of one's own
the last output of a module that has height and width. Where there is none, the absolute gradient of the pixels is taken
(Simonyan et al. 2013, arXiv 1312.6034).

Attention rollout (Abnar & Zuidema 2020, arXiv 2005.00928) says from which patches a vision transformer takes what it
pools, whatever the class: the product over the blocks of their attention, averaged over heads, and the identity, for
the residual branch, half each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen, nnx
from jax import Array

from jaxtrain.models.classifier import Classifier
from jaxtrain.models.own import called
from jaxtrain.models.vit import Attention, VisionTransformer

Method = Literal["gradcam", "rollout"]
Visit = Callable[[Array], Array]
"""Given an array of the network, gives what the network goes on with."""
Score = Callable[[Any, Array], Array]
"""`score(model, images)`: how much speaks for the class in question, `float[batch]`."""


def heat_maps(build: Callable[[], Any], images: Array, score: Score, method: Method = "gradcam") -> Array:
    """`float32[batch, height, width]`, not negative, of the size of the feature map, or of the images where none is.

    build: gives the network with its weights. images: normalised, `float32[batch, height, width, channels]`.
    method: "rollout" for networks that `rolls_out` alone.
    """
    if method == "rollout":
        return _rollout(build(), images, score)
    found = feature_map(build, images, score)
    if found is None:
        gradient = jax.grad(lambda pixels: jnp.sum(score(build(), pixels)))(images)
        return jnp.abs(gradient).max(axis=-1).astype(jnp.float32)
    number, shape = found

    def total(change: Array) -> tuple[Array, Array]:
        model, seen = build(), list[Array]()

        def visit(x: Array) -> Array:
            seen.append(x)
            return x + change.astype(x.dtype) if len(seen) == number else x

        with _visiting(model, visit):
            return jnp.sum(score(model, images)), seen[number - 1].astype(jnp.float32)

    gradient, features = jax.grad(total, has_aux=True)(jnp.zeros(shape, jnp.float32))
    model = build()
    if isinstance(model, VisionTransformer):
        features, gradient = (_grid(x[:, model.prefix :]) for x in (features, gradient))
    weights = gradient.mean(axis=(1, 2), keepdims=True)
    return jnp.maximum((weights * features).sum(axis=-1), 0.0)


def rolls_out(model: Any) -> bool:
    """Whether a network is a vision transformer with plain attention that pools a token or the mean of its patches."""
    module = called(model)
    if not isinstance(module, VisionTransformer) or module.pooling == "map":
        return False
    return all(type(block.attn) is Attention for block in module.blocks)


def _rollout(model: Any, images: Array, score: Score) -> Array:
    module, inputs = called(model), list[Array]()
    layers = [block.attn for block in module.blocks]

    def visit(x: Array) -> Array:
        inputs.append(x)
        return x

    with _visiting(model, visit, layers):
        score(model, images)
    flow = jnp.eye(inputs[0].shape[1], dtype=jnp.float32)
    for layer, x in zip(layers, inputs, strict=True):
        mixing = (layer.shares(x).mean(axis=1) + jnp.eye(x.shape[1])) / 2
        flow = jnp.matmul(mixing, flow, precision="highest")
    pooled = flow[:, :1] if module.pooling == "cls" else flow[:, module.prefix :]
    return _grid(pooled.mean(axis=1)[:, module.prefix :, None])[..., 0]


def feature_map(build: Callable[[], Any], images: Any, score: Score) -> tuple[int, tuple[int, ...]] | None:
    """Which of the arrays that are visited the map is taken from, from 1 on, and its shape; None: there is none."""
    shapes: list[tuple[int, ...]] = []

    def visit(x: Array) -> Array:
        shapes.append(x.shape)
        return x

    def trace(images: Array) -> Array:
        model = build()
        with _visiting(model, visit):
            return score(model, images)

    jax.eval_shape(trace, images)
    # One that is as large as a picture of a single place says nothing of where.
    fitting = [i for i, shape in enumerate(shapes, 1) if math.prod(shape[1:-1]) > 1]
    return (fitting[-1], shapes[fitting[-1] - 1]) if fitting else None


@contextmanager
def _visiting(model: Any, visit: Visit, entering: list[Any] | None = None) -> Iterator[None]:
    """While the network is called, `visit` sees its feature maps, or the tokens that enter the last block.

    entering: instead what enters these modules.
    """
    module = called(model)
    if isinstance(module, Classifier):
        module.remat = False  # whose arrays are not seen outside
    if entering is None and isinstance(module, VisionTransformer):
        entering = [module.blocks[-1]]
    changed: list[tuple[Any, type]] = []
    chosen = entering or [one for _, one in nnx.iter_modules(module)]

    def linens(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        return _seen(call(*args, **kwargs), visit)

    try:
        for one in chosen:
            kind = type(one)
            methods = ["__call__", *(["features"] if isinstance(one, Classifier) else [])]
            object.__setattr__(one, "__class__", _changed(kind, methods, visit, entering=entering is not None))
            changed.append((one, kind))
        with linen.intercept_methods(linens):
            yield
    finally:
        for one, kind in changed:
            object.__setattr__(one, "__class__", kind)


def _changed(kind: type, methods: list[str], visit: Visit, *, entering: bool) -> type:
    """The class with methods whose input (or else output) is visited."""

    def method(name: str) -> Any:
        original = getattr(kind, name)

        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            if entering:
                return original(self, visit(args[0]), *args[1:], **kwargs)
            return _seen(original(self, *args, **kwargs), visit)

        return call

    return type(kind)(kind.__name__, (kind,), {name: method(name) for name in methods})


def _seen(output: Any, visit: Visit) -> Any:
    return visit(output) if isinstance(output, jax.Array) and output.ndim == 4 else output


def _grid(tokens: Array) -> Array:
    """`[batch, patches, width]` -> `[batch, rows, columns, width]`."""
    side = math.isqrt(tokens.shape[1])
    return tokens.reshape(len(tokens), side, side, -1)
