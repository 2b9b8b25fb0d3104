"""BaseClassifier: the protocol of every technique, and what all of them share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from numpy.typing import ArrayLike, NDArray

from jaxtrain.config import Config, DataConfig, chosen
from jaxtrain.data.augment import augment, mix, normalize
from jaxtrain.data.base import Dataset, ImageSource
from jaxtrain.errors import UserError
from jaxtrain.models import create_model
from jaxtrain.runs.resolve import DEFAULT_MODEL, resolve
from jaxtrain.training.losses import cross_entropy, soft_labels
from jaxtrain.training.optimizers import Schedule, make_optimizer
from jaxtrain.training.state import Batch, TrainState, Tree, model_keys
from jaxtrain.training.step import Metrics

if TYPE_CHECKING:
    from jaxtrain.evaluation.costs import ForwardPass
    from jaxtrain.models.weights import Pretrained
    from jaxtrain.runs.learning import Job, Learning
    from jaxtrain.runs.stepwise import Setup


@dataclass(frozen=True)
class Fitted:
    """What a trained classifier knows."""

    config: Config
    """Resolved."""
    class_names: tuple[str, ...]
    weights: Tree
    """Host arrays {"params", "frozen", "model_state"}, with strings as keys."""
    class_weights: tuple[float, ...] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What a technique keeps besides, as JSON."""


class BaseClassifier:
    """A trainable image classifier.

    `fit` trains and tracks a run; `evaluate`, `predict`, `predict_proba`, `embed`, `save` and `load` use the result.
    Images are `uint8[images, height, width, channels]` (or `[images, height, width]` when grey), labels integers or
    strings `[images]`.

    Research code overrides what is learned and keeps the rest: `build_model`, `inputs`, `loss`, `trainable`,
    `make_optimizer`. All are pure functions of their arguments; inside them `self.config` is the resolved config.

    Options are given as a `Config`, as sections, or both:
    `PTClassifier(model={"name": "resnet18"}, train={"epochs": 5}, seed=1)`.
    """

    technique: ClassVar[str]

    def __init__(self, config: Config | None = None, **options: Any) -> None:
        base = config.model_dump(exclude_unset=True) if config is not None else {}
        self.config = _validated({**base, **options, "technique": self.technique})
        self.summary: dict[str, Any] = {}
        """`summary.json` of the run, once fitted."""
        self.run_dir: Path | None = None
        self._fitted: Fitted | None = None
        self._inference: tuple[Any, Tree] | None = None
        self._everywhere = False
        self._num_classes = 0
        self._class_weights: tuple[float, ...] | None = None
        self._augment = self.config.augment

    # What is learned: override these.

    def build_model(self, *, num_classes: int, axis_name: str | None) -> nnx.Module:
        """The network, called with a seed from the config inside `jax.jit`.

        `axis_name` is the mapped axis under pmap: batch norm and dropout need it.
        """
        data = self.config.data
        return create_model(
            self.config.model,
            num_classes=num_classes,
            channels=chosen(data.channels),
            image_size=chosen(data.image_size),
            seed=self.config.seed,
            dtype=jnp.dtype(self.config.model.dtype),
            axis_name=axis_name,
        )

    def inputs(self, batch: Batch, keys: jax.Array) -> Batch:
        """Training inputs from raw images: augmented, normalised, with smoothed and mixed labels.

        Takes `uint8[batch, height, width, channels]` with `int32[batch]` labels and one key an image; gives
        `float32[batch, size, size, channels]` with `float32[batch, classes]`.
        """
        data = self.config.data
        image = augment(self._augment, keys, batch.image, image_size=chosen(data.image_size))
        label = soft_labels(batch.label, self._num_classes, self.config.train.label_smoothing)
        weight = batch.weight
        if self._class_weights is not None:
            each = jnp.asarray(self._class_weights, jnp.float32)[batch.label]
            weight = each if weight is None else weight * each
        image, label = mix(self.config.augment, keys, image, label)
        return Batch(normalize(image, chosen(data.mean), chosen(data.std)), label, weight)

    def loss(self, model: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """Mean cross-entropy of a batch from `inputs`, and scalars to log (`train/NAME`)."""
        logits = model(batch.image, train=True, key=key)
        each = cross_entropy(logits, batch.label)
        if batch.weight is not None:
            each = each * batch.weight
        hits = jnp.argmax(logits, axis=-1) == jnp.argmax(batch.label, axis=-1)
        return jnp.mean(each), {"accuracy": jnp.mean(hits.astype(jnp.float32))}

    def embedding(self, model: Any, images: jax.Array) -> jax.Array:
        """The vector that stands for each image: `float32[batch, features]`, of normalised images."""
        return model.embed(images)

    def trainable(self, path: tuple[Any, ...], value: Any) -> bool:
        """Whether a parameter, named by its path in the model, gets gradients."""
        del path, value
        return True

    def make_optimizer(self, schedule: Schedule) -> optax.GradientTransformation:
        """The optimizer over the trainable parameters."""
        return make_optimizer(self.config.optimizer, schedule)

    @cached_property
    def pretrained(self) -> Pretrained | None:
        """The weights that training starts from; None: from the seed. Raises UserError where they can't be read."""
        return None

    def resolve(self, config: Config, dataset: Dataset) -> Config:
        """`config` with everything chosen that it leaves open. Raises UserError where options contradict."""
        return resolve(config, dataset, self.pretrained)

    def start(self, job: Job, setup: Setup) -> TrainState:
        """The state before the first step, from the freshly initialised one of `setup`; not called on resuming."""
        del job
        return setup.state

    def about(self) -> dict[str, Any]:
        """What the technique adds to `summary.json`."""
        return {}

    def learning(self, job: Job) -> Learning:
        """How it is learned: by gradient steps."""
        from jaxtrain.runs.stepwise import Stepwise

        return Stepwise(job)

    # The protocol.

    def fit(
        self,
        images: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        *,
        validation: tuple[ArrayLike, ArrayLike] | None = None,
        test: tuple[ArrayLike, ArrayLike] | None = None,
        class_names: tuple[str, ...] | None = None,
    ) -> Self:
        """Train on arrays, or on `config.data.name` when none are given; continues where the run directory ends.

        Without `validation` a stratified part of the training images is held out (`data.val_fraction`). `test` is
        opened once, at the end. Raises UserError for wrong input and RunError when the run can't go on.
        """
        from jaxtrain.data.arrays import from_arrays
        from jaxtrain.data.sources import load_dataset
        from jaxtrain.runs.run import run
        from jaxtrain.training import processes
        from jaxtrain.training.parallel import set_cpu_devices

        set_cpu_devices(self.config.parallel)
        processes.start(self.config.parallel)
        with processes.together():
            data = self.data_config
            if images is None:
                dataset = load_dataset(data)
            elif labels is None:
                raise UserError("fit: images were given without labels")
            else:
                dataset = from_arrays(
                    images,
                    labels,
                    validation=validation,
                    test=test,
                    class_names=class_names,
                    config=data,
                )
            run(self, dataset)
        return self

    def predict_logits(self, images: ArrayLike | ImageSource) -> NDArray[np.float32]:
        """`float32[images, classes]`."""
        return self._forward("logits", images)

    def predict_proba(self, images: ArrayLike | ImageSource) -> NDArray[np.float32]:
        """Softmax probabilities: `float32[images, classes]`, columns in the order of `class_names`."""
        from jaxtrain.evaluation.metrics import softmax

        return softmax(self.predict_logits(images)).astype(np.float32)

    def predict(self, images: ArrayLike | ImageSource) -> NDArray[np.int32]:
        """The most probable class of each image: `int32[images]`, an index into `class_names`."""
        return np.argmax(self.predict_logits(images), axis=-1).astype(np.int32)

    def embed(self, images: ArrayLike | ImageSource) -> NDArray[np.float32]:
        """The vector before the head: `float32[images, features]`."""
        return self._forward("embed", images)

    def evaluate(self, images: ArrayLike, labels: ArrayLike) -> dict[str, float]:
        """Accuracy, loss and more (`jaxtrain.evaluation.metrics`) on labelled images."""
        from jaxtrain.data.arrays import encode_labels
        from jaxtrain.evaluation.metrics import classification_metrics, softmax

        logits = self.predict_logits(images)
        return classification_metrics(encode_labels(labels, self.class_names, len(logits)), softmax(logits), logits)

    @property
    def data_config(self) -> DataConfig:
        """Options by which the data set is loaded: images have the channels that pre-trained weights take."""
        data = self.config.data
        if data.channels is None and self.pretrained is not None:
            return data.model_copy(update={"channels": self.pretrained.channels})
        return data

    @property
    def model_name(self) -> str:
        """Name of the network in the registry, also where the config leaves it open."""
        if self.config.model.name is not None:
            return self.config.model.name
        return chosen(self.pretrained.model.name) if self.pretrained else DEFAULT_MODEL

    @property
    def num_classes(self) -> int:
        """Number of classes of the data set that is or was trained on."""
        return self._num_classes

    def trainable_filter(self, path: tuple[Any, ...], value: Any) -> bool:
        """`trainable` as a filter for `nnx.split`: parameters only."""
        return isinstance(value, nnx.Param) and self.trainable(path, value)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the logits."""
        return self.fitted.class_names

    @property
    def fitted(self) -> Fitted:
        """The result of `fit` or `load`; UserError before."""
        if self._fitted is None:
            raise UserError(f"{type(self).__name__} is not trained yet: call fit() or load()")
        return self._fitted

    @property
    def network_weights(self) -> Tree:
        """{"params", "frozen", "model_state"} of the network alone."""
        return self.fitted.weights

    def forward_pass(self) -> ForwardPass:
        """How predictions are computed, for who takes the time of it (`jaxtrain.evaluation.costs`)."""
        return self._forward_pass("logits")

    def _forward_pass(self, output: str) -> ForwardPass:
        from jaxtrain.evaluation.costs import ForwardPass
        from jaxtrain.training.inference import Inference
        from jaxtrain.training.parallel import make_strategy

        data = self.config.data
        size = chosen(data.image_size)
        network = Inference(self, len(self.class_names), make_strategy(self.config.parallel)).function(output)
        return ForwardPass(
            network=lambda weights, images: network(weights, Batch(images, None)),
            weights=model_keys(self.network_weights),
            image_shape=(size, size, chosen(data.channels)),
        )

    def save(self, path: str | Path) -> Path:
        """Write the model to a folder: weights with digests (Orbax), config and class names. No pickle."""
        from jaxtrain.classifiers.files import save_model

        return save_model(self, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a model written by `save`, or the one of a run directory. Raises UserError if there is none."""
        from jaxtrain.classifiers.files import load_model

        return load_model(cls, Path(path))

    def adopt(self, fitted: Fitted) -> None:
        """Take over a trained state (used by `fit` and `load`)."""
        self.config = fitted.config
        self._fitted = fitted
        self._inference = None
        self.prepare_inputs(len(fitted.class_names), fitted.class_weights, cropped=False)

    def prepare_inputs(self, num_classes: int, class_weights: tuple[float, ...] | None, *, cropped: bool) -> None:
        """Tell `inputs` about the classes, and whether images arrive with their random crop done (streams)."""
        self._num_classes, self._class_weights = num_classes, class_weights
        self._augment = self.config.augment
        if cropped and self._augment.crop == "random_resized":
            self._augment = self._augment.model_copy(update={"crop": "none"})

    @contextmanager
    def everywhere(self) -> Iterator[None]:
        """While all processes of a run predict on the same images, each computes its share of every batch."""
        self._inference, self._everywhere = None, True
        try:
            yield
        finally:
            self._inference, self._everywhere = None, False

    def _forward(self, output: str, images: ArrayLike | ImageSource) -> NDArray[np.float32]:
        from jaxtrain.data.arrays import as_source
        from jaxtrain.training.inference import Inference
        from jaxtrain.training.parallel import make_strategy

        fitted = self.fitted
        if self._inference is None:
            strategy = make_strategy(self.config.parallel, everywhere=self._everywhere)
            inference = Inference(self, len(fitted.class_names), strategy)
            self._inference = inference, strategy.place(model_keys(self.network_weights))
        inference, weights = self._inference
        source = (
            images if isinstance(images, ImageSource) else as_source(images, channels=chosen(self.config.data.channels))
        )
        return getattr(inference, output)(weights, source)


def _validated(options: Mapping[str, Any]) -> Config:
    from pydantic import BaseModel, ValidationError

    from jaxtrain.config_io import explain

    plain = {k: v.model_dump(exclude_unset=True) if isinstance(v, BaseModel) else v for k, v in options.items()}
    try:
        return Config.model_validate(plain)
    except ValidationError as error:
        raise UserError(explain(error, "options")) from None
