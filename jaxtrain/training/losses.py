"""Classification losses and the per-image figures that evaluation sums on the host."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxtrain.errors import UserError


def soft_labels(labels: jax.Array, classes: int, smoothing: float | jax.Array) -> jax.Array:
    """Label smoothing (Szegedy et al. 2016): `int32[batch]` to `float32[batch, classes]`."""
    return jax.nn.one_hot(labels, classes) * (1.0 - smoothing) + smoothing / classes


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """`float32[batch]` from logits and target distributions, both `[batch, classes]`."""
    return -jnp.sum(targets * jax.nn.log_softmax(logits.astype(jnp.float32)), axis=-1)


def image_metrics(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    """Loss, accuracy and top-5 accuracy of each image: `float32[batch]` each.

    The rank of the true class counts classes with a higher logit, and lower-numbered ones with an equal logit, so
    that ties have one answer everywhere (argmax's). NaN is lower than nothing: a broken network is never right.
    """
    logits = logits.astype(jnp.float32)
    true = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    after = jnp.arange(logits.shape[-1]) >= labels[:, None]
    rank = jnp.sum(~((logits < true) | ((logits == true) & after)), axis=-1)
    return {
        "loss": jax.nn.logsumexp(logits, axis=-1) - true[:, 0],
        "accuracy": (rank == 0).astype(jnp.float32),
        "top5_accuracy": (rank < 5).astype(jnp.float32),
    }


def checked(result: Any, images: int) -> jax.Array:
    """What a loss function of one's own returned, `float32[]` or `float32[images]`; UserError for anything else."""
    shape = None if isinstance(result, tuple | list | dict) else jnp.shape(result)
    if shape not in ((), (images,)):
        what = f"a {type(result).__name__}" if shape is None else f"shape {list(shape)}"
        raise UserError(f"loss: must return one number, or one for each of the {images} images; it returned {what}")
    return jnp.asarray(result)
