"""BaseClassifier: the protocol of every technique, and what all of them share."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from numpy.typing import ArrayLike
from pydantic import BaseModel, ValidationError

from jaxtrain.classifiers.parts import Metric, Parts, find
from jaxtrain.classifiers.starting_point import record, recorded, replaced
from jaxtrain.classifiers.trained import Trained
from jaxtrain.config import Config, DataConfig, chosen
from jaxtrain.config_io import explain
from jaxtrain.data.augment import augment, normalize
from jaxtrain.data.base import Dataset
from jaxtrain.data.holdout import GROUPS
from jaxtrain.data.objects import objects_dataset
from jaxtrain.data.sources import ARRAYS
from jaxtrain.data.worker_watch import refuse_in_worker
from jaxtrain.errors import UserError, nearest
from jaxtrain.losses import checked
from jaxtrain.models import create_model
from jaxtrain.models.own import build_own, calling, synchronised
from jaxtrain.models.weights import Pretrained, adapt, load_pretrained
from jaxtrain.readers import reading
from jaxtrain.runs.fitted import Fitted, Predictor, read_model, restored
from jaxtrain.runs.learning import Job, Learning
from jaxtrain.runs.resolve import DEFAULT_MODEL, resolve
from jaxtrain.runs.run import run
from jaxtrain.runs.stepwise import Stepwise
from jaxtrain.saved_model import OTHER, SavedModel
from jaxtrain.screen.loading import load_with_bar
from jaxtrain.tasks import TASKS, Task, task_of
from jaxtrain.training import processes
from jaxtrain.training.optimizers import Schedule, make_optimizer
from jaxtrain.training.parallel import check_devices, set_cpu_devices
from jaxtrain.training.state import Batch, TrainState, Tree
from jaxtrain.training.technique import Binding, Metrics
from jaxtrain.trees import leaf_name


class BaseClassifier(Trained):
    """A trainable image classifier.

    `fit` trains and tracks a run; `evaluate`, `predict`, `predict_proba`, `embed`, `save` and `load` use the result.
    Images are `uint8[images, height, width, channels]` (or `[images, height, width]` when grey), labels integers or
    strings `[images]`; several labels per image are a matrix `[images, classes]` of 0, 1 and -1 (unknown), or lists of
    names.

    Research code overrides what is learned and keeps the rest: `build_model`, `inputs`, `loss`, `trainable`,
    `make_optimizer`. All are pure functions of their arguments; a run calls them on a copy of the classifier, whose
    `config` is the resolved one and whose `binding` has the classes. The classifier itself stays as it was given: all
    that `fit` and `load` leave on it is `fitted`.

    Options are given as a `Config`, as sections, or both:
    `PTClassifier(model={"name": "resnet18"}, train={"epochs": 5}, seed=1)`.
    """

    technique: ClassVar[str]

    def __init__(
        self,
        config: Config | None = None,
        *,
        network: Any = None,
        loss: Any = None,
        optimizer: Any = None,
        metrics: Mapping[str, Metric] | None = None,
        callbacks: Sequence[Any] = (),
        **options: Any,
    ) -> None:
        """Options as a `Config`, as sections, or both; and parts of one's own.

        Args:
            config: options; those in `options` come first.
            network: an `nnx.Module` class or a function `(num_classes, rngs) -> nnx.Module`, or a Linen module (class).
            loss: a function `(logits, targets)` of `float32[batch, classes]` each, to a scalar or `float32[batch]`; a
                dict is the section of options.
            optimizer: an optax transform, or a function `(schedule) -> transform`; a dict is the section of options.
            metrics: functions `(logits, labels) -> float` of the validation set by name, as `{"val/macro_f1": f}`.
            callbacks: objects with any of the methods of `jaxtrain.Callback`.
            **options: `seed=1`, or sections: `model={"name": "resnet18"}`.
        """
        given = {"config": config, "network": network, "loss": loss, "optimizer": optimizer, "metrics": metrics}
        given |= {"callbacks": callbacks or None, **options}
        self._given = {name: value for name, value in given.items() if value is not None}
        if isinstance(optimizer, Mapping | BaseModel):
            options, optimizer = {**options, "optimizer": optimizer}, None
        if isinstance(loss, Mapping | BaseModel | str):
            options, loss = {**options, "loss": loss}, None
        self.parts = Parts(network, loss, optimizer, dict(metrics or {}), tuple(callbacks))
        base = config.model_dump(exclude_unset=True) if config is not None else {}
        tree = self.parts.recorded({**base, **_plain(options)}, type(self))
        self.config = _validated({**tree, "technique": self.technique})
        """As given; `fitted.config` is the resolved one."""
        own = self.config.own
        self._trusted = frozenset({self.config.model.network, own.loss, own.optimizer})
        """Paths that may be imported: a person gave them, not a file."""
        self.binding = Binding()
        self._fitted: Fitted | None = None

    # What is learned: override these.

    def build_model(self, *, num_classes: int, axis_name: str | None) -> nnx.Module:
        """The network, called with a seed from the config inside `jax.jit`.

        `axis_name` is the mapped axis under pmap: batch norm and dropout need it.
        """
        data, network = self.config.data, self.network
        if network is not None:
            side = chosen(data.image_size)
            shape = (side, side, chosen(data.channels))
            model = build_own(network, num_classes=num_classes, image_shape=shape, seed=self.config.seed)
            return synchronised(model, axis_name)
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

        Takes `uint8[batch, height, width, channels]` with `int32[batch]` labels, or `int8[batch, classes]`, and one key
        an image; gives `float32[batch, size, size, channels]` with `float32[batch, classes]` (-1: unknown).
        """
        data = self.config.data
        options, binding = self.config.augment, self.binding
        if binding.cropped and options.crop == "random_resized":
            options = options.model_copy(update={"crop": "none"})
        image = augment(options, keys, batch.image, image_size=chosen(data.image_size))
        label = self.task.targets(batch.label, binding.num_classes, self.config.train.label_smoothing)
        weight = batch.weight
        if binding.class_weights is not None:
            each = jnp.asarray(binding.class_weights, jnp.float32)[batch.label]
            weight = each if weight is None else weight * each
        image, label, weight = self.task.mixed(self.config.augment, keys, image, label, weight)
        return Batch(normalize(image, chosen(data.mean), chosen(data.std)), label, weight)

    def loss(self, model: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """The mean loss of a batch from `inputs`, by `config.loss` or one's own, and scalars to log (`train/NAME`)."""
        logits = model(batch.image, train=True, key=key)
        own, judged = self.own("loss"), logits
        if self.binding.log_shares is not None:
            judged = logits + self.config.loss.logit_adjustment * jnp.asarray(self.binding.log_shares, jnp.float32)
        each = checked((own or self.task.loss(self.config.loss))(judged, batch.label), len(logits))
        if each.ndim == 0 and self.binding.class_weights is not None:
            raise UserError(
                "train.class_weights: the loss of your own gives one number for the batch, not one per image"
            )
        if each.ndim and batch.weight is not None:
            each = each * batch.weight
        return jnp.mean(each), self.task.train_metrics(logits, batch.label)

    def embedding(self, model: Any, images: jax.Array) -> jax.Array:
        """The vector that stands for each image: `float32[batch, features]`, of normalised images."""
        return model.embed(images)

    def trainable(self, path: tuple[Any, ...], value: Any) -> bool:
        """Whether a parameter, named by its path in the model, gets gradients."""
        del path, value
        return True

    def make_optimizer(self, schedule: Schedule) -> optax.GradientTransformation:
        """The optimizer over the trainable parameters."""
        own = self.own("optimizer")
        if own is None:
            return make_optimizer(self.config.optimizer, schedule)
        transform: optax.GradientTransformation = own if hasattr(own, "update") else own(schedule)
        return transform

    @property
    def task(self) -> Task:
        """One class per image, or several labels; of a resolved config."""
        return task_of(self.config)

    @property
    def callbacks(self) -> Sequence[Any]:
        """Of one's own."""
        return self.parts.callbacks

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """Validation metrics of one's own."""
        return self.parts.metrics

    @property
    def network(self) -> Any:
        """The network of one's own that was given, or that the config names; None: one of jaxtrain's."""
        if self.parts.network is not None or self.config.model.network is None:
            return self.parts.network
        return self._find(self.config.model.network, "model.network", "network")

    def own(self, part: str) -> Any:
        """The loss or optimizer of one's own that was given, or that the config names; None: as the options say."""
        given, path = getattr(self.parts, part), getattr(self.config.own, part)
        if given is not None or path is None:
            return given
        return self._find(path, f"own.{part}", part)

    def _find(self, path: str, option: str, argument: str) -> Any:
        """What the config names; imported where the person who made this classifier named it, not a file."""
        advice = f"give it: {type(self).__name__}({argument}=...), or --{option} {path}"
        return find(path, option, advice, trusted=path in self._trusted)

    @cached_property
    def head_name(self) -> str:
        """Where the linear layer is that gives the logits. Raises UserError for a network of one's own without one."""
        if self.network is None:
            return "head"
        side, channels = chosen(self.config.data.image_size), chosen(self.config.data.channels)
        paths: list[tuple[Any, ...]] = []

        def trace(images: jax.Array) -> jax.Array:
            model = calling(BaseClassifier.build_model(self, num_classes=2, axis_name=None))
            last = model.last_linear(images)
            paths.append(last.path)
            return last.seen

        jax.eval_shape(trace, jax.ShapeDtypeStruct((2, side, side, channels), jnp.float32))
        return leaf_name(paths[0])

    @cached_property
    def pretrained(self) -> Pretrained | None:
        """The weights that training starts from; None: from the seed. Raises UserError where they can't be read."""
        weights = self.config.model.weights
        return None if weights is None else load_pretrained(weights, self.config.model)

    def resolve(self, config: Config, dataset: Dataset, run_dir: Path | None = None) -> Config:
        """`config` with everything chosen that it leaves open. Raises UserError where options contradict.

        `run_dir`: of a run that may have begun already.
        """
        self.check_parts(config, run_dir)
        self.check_monitor(config, dataset)
        begun = recorded(run_dir) is not None  # nothing is open any more, and the weights may have gone
        return resolve(config, dataset, None if begun else self.pretrained)

    def check_parts(self, config: Config, run_dir: Path | None) -> None:
        """Raises UserError where a part of one's own is missing, or the run in `run_dir` is another class's."""
        mine, theirs = self.config.own.classifier, config.own.classifier
        if mine != theirs:
            raise UserError(
                f"own.classifier: {run_dir} was begun by {theirs}, not by {mine or type(self).__name__}; continue it "
                "with the script that defines that class, or start another run"
            )
        bound = self.bind(config)
        _ = bound.network, bound.own("loss"), bound.own("optimizer")

    def check_monitor(self, config: Config, dataset: Dataset) -> None:
        """Raises UserError where the validation metric that decides is none of those that are measured."""
        known = (*TASKS["multilabel" if dataset.multilabel else "multiclass"].measured, *self.parts.metrics)
        if (name := config.train.monitor) is not None and name not in known:
            raise UserError(f"train.monitor: {name} is not measured; {nearest(name, known)}")

    def start(self, job: Job, fresh: TrainState, optimizer: optax.GradientTransformation) -> TrainState:
        """The state before the first step, from the freshly initialised one; not called on resuming.

        Raises UserError where the weights aren't those that the run began with.
        """
        if self.pretrained is None:
            return fresh
        shapes, names = {"params": fresh.params, "model_state": fresh.model_state}, job.dataset.class_names
        weights, statistics, adapted = adapt(self.pretrained, shapes, class_names=names, head=self.head_name)
        record(job.directory.path, self.pretrained, adapted)
        return replaced(fresh, weights, statistics, optimizer)

    def interpolated(self, job: Job, weights: Tree) -> Tree | None:
        """None: the trained weights are the result."""
        return None

    def merged(self, weights: Tree) -> Tree:
        """Trained weights {"params", "frozen", "model_state"} as the network has them that predicts."""
        return weights

    def about(self, job: Job) -> dict[str, Any]:
        """What the technique adds to `summary.json`: which weights training started from."""
        start = recorded(job.run_dir)
        return {} if start is None else {"weights": start["source"], "weights_sha256": start["sha256"]}

    def learning(self, job: Job) -> Learning:
        """How it is learned: by gradient steps."""
        return Stepwise(job)

    def predictor(self, fitted: Fitted, *, everywhere: bool = False) -> Predictor:
        """How `fitted` predicts; `everywhere`: each process of the run computes its share of every batch."""
        return Predictor(fitted, everywhere=everywhere)

    def bind(self, config: Config, binding: Binding | None = None, *, pretrained: Pretrained | None = None) -> Self:
        """A copy for a run, with its config and classes; `pretrained`: the weights, where they are read already."""
        bound = copy.copy(self)
        changes = {"config": config, "binding": binding or self.binding, "_fitted": None}
        vars(bound).update(changes if pretrained is None else {**changes, "pretrained": pretrained})
        return bound

    # The protocol.

    def fit(
        self,
        images: Any = None,
        labels: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        *,
        validation: Any = None,
        test: Any = None,
        class_names: tuple[str, ...] | None = None,
        groups: ArrayLike | None = None,
    ) -> Self:
        """Train on images, or on `config.data.name` when none are given; continues where the run directory ends.

        Images are an array, or an object that `jaxtrain.data.objects.open_split` knows: an `ImageSource`, a data set of
        Hugging Face, torch, Grain or tfds (their labels are in it), a list of paths or Pillow images. `validation` and
        `test` are such objects, or pairs (images, labels). Without `validation` a stratified part of the training
        images is held out (`data.val_fraction`). `test` is opened once, at the end. `sample_weight` is
        `float[images]`: how much each image counts in training. `groups` is `[images]`, numbers or names of what
        belongs together, such as a patient: held-out splits and folds never cut one, as with `data.group`. Raises
        UserError for wrong input and RunError when the run can't go on.
        """
        refuse_in_worker()
        set_cpu_devices(self.config.parallel)
        processes.start(self.config.parallel)
        check_devices()
        with processes.together():
            given = images is not None
            if groups is not None and not given:
                raise UserError("groups: given with images only; data.group names a column of a table")
            changes = {"data.name": ARRAYS} if given else {}
            if groups is not None:
                changes["data.group"] = self.config.data.group or GROUPS
            technique = self.bind(self.config.replace(**changes))
            data = technique.data_config
            if not given:
                dataset = load_with_bar(data, quiet=self.config.quiet)
            else:
                dataset = objects_dataset(
                    images,
                    labels,
                    validation=validation,
                    test=test,
                    class_names=class_names,
                    config=data,
                    sample_weight=sample_weight,
                    groups=groups,
                )
            self._fitted = run(technique, dataset)
        return self

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
        config = self.config if self._fitted is None else self._fitted.config
        if config.model.name is not None or config.model.network is not None:
            return config.model.label
        return self.pretrained.model.label if self.pretrained else DEFAULT_MODEL

    @classmethod
    def load(cls, path: str | Path, *, network: Any = None, trust_imports: bool = False) -> Self:
        """Read a model written by `save`, or the one of a run directory.

        `network` and `trust_imports` as of `jaxtrain.load`. Raises UserError if there is no model, or its network or
        class cannot be found.
        """
        saved = read_model(Path(path))
        if saved.about.technique != cls.technique:
            kind = f"technique {saved.about.technique}, not {cls.technique}"
            raise UserError(f"{path}: holds a model of {kind}; use jaxtrain.load")
        return cls.of_saved(saved, network=network, trust_imports=trust_imports)

    @classmethod
    def of_saved(cls, saved: SavedModel, *, network: Any = None, trust_imports: bool = False) -> Self:
        """A trained classifier from what `jaxtrain.runs.fitted.read_model` gives; UserError as of `load`."""
        config = saved.about.config
        kind, own = cls, config.own.classifier
        trust = "" if trust_imports else ", or add trust_imports=True (--trust-imports)"
        with reading(saved.path, "saved model", OTHER):
            if own is not None and cls.__module__.startswith("jaxtrain."):
                advice = f"load it with {own.rpartition(':')[2]}.load(...) where that class is defined{trust}"
                kind = find(own, "own.classifier", advice, trusted=trust_imports)
                if not (isinstance(kind, type) and issubclass(kind, cls)):
                    raise UserError(f"own.classifier: {own} is not a subclass of {cls.__name__}")
            if network is None and config.model.network is not None:
                advice = f"give it: {cls.__name__}.load(..., network={config.model.label}){trust}"
                network = find(config.model.network, "model.network", advice, trusted=trust_imports)
            classifier = kind(config) if network is None else kind(config, network=network)
            if not trust_imports:
                classifier._trusted = frozenset()
            classifier._fitted = restored(classifier, saved, run_dir=None, summary={})
        return classifier


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v.model_dump(exclude_unset=True) if isinstance(v, BaseModel) else v for k, v in options.items()}


def _validated(options: Mapping[str, Any]) -> Config:
    try:
        return Config.model_validate(options)
    except ValidationError as error:
        raise UserError(explain(error, "options")) from None
