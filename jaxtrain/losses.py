"""Classification losses and the per-image figures that evaluation sums on the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid, log_softmax

from jaxtrain.config import LossConfig, chosen
from jaxtrain.errors import UserError

Loss = Callable[[jax.Array, jax.Array], jax.Array]
"""From logits and targets, `float32[..., classes]` each, to `float32[...]`."""
_LEAST = 1e-7  # the resolution of float32 at 1: below it powers of a difference have no sound gradient


def soft_labels(labels: jax.Array, classes: int, smoothing: float | jax.Array) -> jax.Array:
    """Label smoothing (Szegedy et al. 2016): `int32[batch]` to `float32[batch, classes]`."""
    return jax.nn.one_hot(labels, classes) * (1.0 - smoothing) + smoothing / classes


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """`float32[batch]` from logits and target distributions, both `[batch, classes]`."""
    return -jnp.sum(targets * log_softmax(logits.astype(jnp.float32)), axis=-1)


def named_loss(config: LossConfig) -> Loss:
    """The loss that a resolved config names; its numbers may be traced.

    Each is a sum over classes of the target's share times the loss if that class is the true one, so that a mixed
    target has the mixed loss. Targets of `bce` and `asymmetric` need not sum to 1: any matrix of 0 and 1 will do.
    """
    return lambda logits, targets: _LOSSES[config.name](config, logits.astype(jnp.float32), targets)


def label_loss(config: LossConfig, pos_weight: Sequence[float] | None = None) -> Loss:
    """The loss of several labels per image: of each label by itself, summed over those that are known.

    Targets are `float32[..., classes]` from 0 to 1, and below 0 where a label is unknown. `cross_entropy` is the binary
    one, as `bce`; `focal` is that of Lin et al. 2017 on the sigmoid. `pos_weight`, of each label, weighs what a binary
    cross-entropy has of images with the label.
    """
    weights = 1.0 if pos_weight is None else jnp.asarray(pos_weight, jnp.float32)[:, None]
    function = {"asymmetric": _asymmetric, "focal": _focal_of_labels}.get(config.name, partial(_bce, weights=weights))

    def loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
        known = targets >= 0
        # Label by label: what is unknown leaves the sum, and takes no gradient with it.
        each = function(config, logits.astype(jnp.float32)[..., None], jnp.where(known, targets, 0.0)[..., None])
        return jnp.sum(jnp.where(known, each, 0.0), axis=-1)

    return loss


def log_shares(counts: Any) -> Any:
    """Logarithm of each class's share of the images, `float32[classes]`; a class without any counts as one image."""
    known = jnp.maximum(jnp.asarray(counts, jnp.float32), 1.0)
    return jnp.log(known / known.sum())


def _bce(config: LossConfig, logits: jax.Array, targets: jax.Array, weights: jax.Array | float = 1.0) -> jax.Array:
    if config.target_threshold is not None:
        targets = (targets > config.target_threshold).astype(jnp.float32)
    return -jnp.sum(weights * targets * log_sigmoid(logits) + (1 - targets) * log_sigmoid(-logits), axis=-1)


def _focal(config: LossConfig, logits: jax.Array, targets: jax.Array) -> jax.Array:
    log_p = log_softmax(logits)
    return -jnp.sum(targets * _rest(log_p) ** chosen(config.gamma) * log_p, axis=-1)


def _focal_of_labels(config: LossConfig, logits: jax.Array, targets: jax.Array) -> jax.Array:
    gamma, log_p, log_absent = chosen(config.gamma), log_sigmoid(logits), log_sigmoid(-logits)
    present, absent = _rest(log_p) ** gamma * log_p, _rest(log_absent) ** gamma * log_absent
    return -jnp.sum(targets * present + (1 - targets) * absent, axis=-1)


def _poly1(config: LossConfig, logits: jax.Array, targets: jax.Array) -> jax.Array:
    log_p = log_softmax(logits)
    return jnp.sum(targets * (chosen(config.epsilon) * (1 - jnp.exp(log_p)) - log_p), axis=-1)


def _gce(config: LossConfig, logits: jax.Array, targets: jax.Array) -> jax.Array:
    q = chosen(config.q)
    return -jnp.sum(targets * jnp.expm1(q * log_softmax(logits)), axis=-1) / q


def _asymmetric(config: LossConfig, logits: jax.Array, targets: jax.Array) -> jax.Array:
    log_p, log_absent = log_sigmoid(logits), log_sigmoid(-logits)
    log_absent = jnp.minimum(jnp.logaddexp(log_absent, jnp.log(chosen(config.clip))), 0.0)  # of p shifted down by clip
    present = _rest(log_p) ** chosen(config.gamma_positive) * log_p
    absent = _rest(log_absent) ** chosen(config.gamma) * log_absent
    return -jnp.sum(targets * present + (1 - targets) * absent, axis=-1)


def _rest(log_p: jax.Array) -> jax.Array:
    """1 - p, never so small that a power of it has an infinite gradient."""
    return jnp.maximum(-jnp.expm1(log_p), _LEAST)


_LOSSES: dict[str, Callable[[Any, jax.Array, jax.Array], jax.Array]] = {
    "cross_entropy": lambda _, logits, targets: cross_entropy(logits, targets),
    "bce": _bce,
    "focal": _focal,
    "poly1": _poly1,
    "asymmetric": _asymmetric,
    "gce": _gce,
}


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
