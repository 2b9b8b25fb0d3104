"""What training needs to know of a technique: a few pure functions, bound to one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

import jax
import numpy as np
import optax
from flax import nnx
from numpy.typing import NDArray

from jaxtrain.config import Config
from jaxtrain.training.optimizers import Schedule
from jaxtrain.training.state import Batch


@dataclass(frozen=True)
class Binding:
    """What a technique knows of its run besides the resolved config."""

    num_classes: int = 0
    class_weights: tuple[float, ...] | None = None
    log_shares: tuple[float, ...] | None = None
    """Of each class in the training images, for `loss.logit_adjustment`; None: that is off."""
    pos_weight: tuple[float, ...] | None = None
    """Of each of several labels per image."""
    cropped: bool = False
    """Whether training images arrive with their random crop done (streams)."""
    training: bool = False
    """Whether the network is the one that trains: under LoRA it has matrices that are merged afterwards."""


Metrics = dict[str, jax.Array]


class Learner(Protocol):
    """What training needs to know of a technique."""

    def inputs(self, batch: Batch, keys: jax.Array) -> Batch:
        """Raw images to what the loss sees: augmented, normalised, with soft labels. `keys`: one an image."""

    def loss(self, model: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """The mean loss over the batch, and scalars to log. `model` is an NNX module in training mode."""


class Technique(Learner, Protocol):
    """A bound technique. All methods are pure functions of their arguments, `config` and `binding`."""

    config: Config
    """Resolved."""
    binding: Binding

    @property
    def metrics(self) -> Mapping[str, Callable[[NDArray[np.float32], NDArray[np.int32]], float]]:
        """Validation metrics besides loss and accuracy, by name (`val/...`): functions of logits and labels."""

    def bind(self, config: Config, binding: Binding | None = None) -> Self:
        """A copy with another config, and another binding where one is given."""

    def build_model(self, *, num_classes: int, axis_name: str | None) -> nnx.Module:
        """The network with fresh parameters, inside `jax.jit`; `axis_name` is the mapped axis under pmap."""

    def embedding(self, model: Any, images: jax.Array) -> jax.Array:
        """The vector that stands for each image: `float32[batch, features]`, of normalised images."""

    def trainable(self, path: tuple[Any, ...], value: Any) -> bool:
        """Whether a parameter, named by its path in the model, gets gradients."""

    def make_optimizer(self, schedule: Schedule) -> optax.GradientTransformation:
        """The optimizer over the trainable parameters."""
