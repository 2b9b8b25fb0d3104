"""The face of a trained classifier: predictions, measures, saving; and scikit-learn's contract."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel

from jaxtrain.config import Config, ExplainMethod, chosen
from jaxtrain.data.assemble import with_channels
from jaxtrain.data.bad_images import BadImages
from jaxtrain.data.base import ImageSource, Labels
from jaxtrain.data.objects import Split, open_split, placed_labels
from jaxtrain.errors import RunError, UserError
from jaxtrain.evaluation.costs import ForwardPass
from jaxtrain.evaluation.metrics import classification_metrics
from jaxtrain.label_metrics import label_metrics
from jaxtrain.runs.fitted import Fitted, save_model
from jaxtrain.screen.notebook import model_html
from jaxtrain.tasks import softmax


class Trained:
    """What can be done with the result of `fit` or `load`.

    Images are arrays, or anything else that `fit` takes, such as a list of paths. Of one that cannot be read, which is
    named in a warning, logits, probabilities and embeddings are NaN, and its class is -1; what is measured on
    labelled images has no place for it and raises RunError.
    """

    config: Config
    """As given."""
    _given: dict[str, Any]
    """Arguments of the constructor."""
    _fitted: Fitted | None

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
    def thresholds(self) -> tuple[float, ...] | None:
        """The probability from which on an image is given each label, by `decision`; None: one class per image."""
        return self.fitted.thresholds

    @property
    def summary(self) -> dict[str, Any]:
        """`summary.json` of the run; empty before, and for a model that was loaded."""
        return {} if self._fitted is None else dict(self._fitted.summary)

    @property
    def run_dir(self) -> Path | None:
        """The directory of the run; None before, and for a model that was loaded."""
        return None if self._fitted is None else self._fitted.run_dir

    def _repr_html_(self) -> str:
        return model_html(type(self).__name__, self.summary, self.run_dir)

    def forward_pass(self) -> ForwardPass:
        """How predictions are computed, for who takes the time of it (`jaxtrain.evaluation.costs`)."""
        return self.fitted.predictor.forward_pass()

    def save(self, path: str | Path) -> Path:
        """Write the model to a folder: weights with digests (Orbax), config and class names. No pickle."""
        return save_model(self.fitted, Path(path))

    def predict_logits(self, images: Any) -> NDArray[np.float32]:
        """`float32[images, classes]`."""
        return self.fitted.predictor.predict_logits(self._source(images), BadImages(allowed=None))

    def predict_proba(self, images: Any) -> NDArray[np.float32]:
        """Probabilities: `float32[images, classes]`, columns in the order of `class_names`.

        By a softmax, which sums to 1; of several labels per image by a sigmoid each.
        """
        return self.fitted.task.probabilities(self.predict_logits(images)).astype(np.float32)

    def predict(self, images: Any) -> NDArray[Any]:
        """The most probable class of each image `[images]`: as labels were given to `fit` (strings, integers).

        Of a data set by name: `int32[images]`, an index into `class_names`. An image that cannot be read is -1; among
        strings there is no such label, and RunError names it. Several labels per image are `int8[images, classes]`: 1
        for each label whose probability reaches its threshold, -1 of an image that cannot be read.
        """
        if self.thresholds is not None:
            return self._decided(self.predict_logits(images))
        strings = self.classes_.dtype.kind == "U"
        logits = self._logits_of_all(images) if strings else self.predict_logits(images)
        labels = self.classes_[np.argmax(logits, axis=-1)]
        return labels if strings else np.where(np.isnan(logits).all(axis=-1), -1, labels)

    def embed(self, images: Any) -> NDArray[np.float32]:
        """The vector before the head: `float32[images, features]`."""
        return self.fitted.predictor.embed(self._source(images), BadImages(allowed=None))

    def explain(self, images: Any, method: ExplainMethod = "auto") -> NDArray[np.float32]:
        """Where in each image what speaks for its most probable class is: `float32[images, rows, columns]`.

        "gradcam": Grad-CAM on the network's last feature map; "rollout": attention rollout, whatever the class, for
        vision transformers with plain attention, for which "auto" chooses it. Not negative (`jaxtrain.models.heat`).
        UserError for a head of a library, which has no gradients, and for a rollout of another network.
        """
        predictor, source = self.fitted.predictor, self._source(images)
        parts = predictor.explain(source, BadImages(allowed=None), embedding=False, method=method)
        return np.concatenate([part["heat"] for part in parts])

    def evaluate(self, images: Any, labels: ArrayLike | None = None) -> dict[str, float]:
        """Accuracy, loss and more (`jaxtrain.evaluation.metrics`, `jaxtrain.label_metrics`) on labelled images.

        Labels may be left out where the images hold theirs.
        """
        places, logits = self._labelled(images, labels)
        if self.thresholds is not None:
            return label_metrics(places, logits, self.thresholds)
        return classification_metrics(places, softmax(logits), logits)

    def score(self, images: Any, labels: ArrayLike | None = None, sample_weight: ArrayLike | None = None) -> float:
        """Accuracy on labelled images, each counted by its weight; of several labels, all of them have to be right."""
        places, logits = self._labelled(images, labels)
        weights = None if sample_weight is None else np.asarray(sample_weight, np.float64)
        several = self.thresholds is not None
        right = (self._decided(logits) == places).all(axis=1) if several else logits.argmax(1) == places
        return float(np.average(right, weights=weights))

    # What scikit-learn's tools ask of an estimator (`clone`, `cross_val_score`, `GridSearchCV`, ...).

    @property
    def classes_(self) -> NDArray[Any]:
        """What `predict` gives, in the order of the logits: `[classes]` strings or integers.

        Of several labels per image the names of the columns that it gives.
        """
        classes = self.class_names if self.fitted.task.name == "multilabel" else self.fitted.classes
        return np.arange(len(self.class_names), dtype=np.int32) if classes is None else np.asarray(classes)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """What the classifier was made with; `deep`: and every option, as `train__epochs`."""
        options = self.config.model_dump() if deep else {}
        flat = {
            f"{name}__{key}": v for name, part in options.items() if isinstance(part, dict) for key, v in part.items()
        }
        return {**flat, **({"seed": self.config.seed} if deep else {}), **self._given}

    def set_params(self, **params: Any) -> Self:
        """The same with other parts or options, as `train__epochs=5`; not fitted any more. Raises UserError."""
        given = dict(self._given)
        for name, value in params.items():
            section, _, key = name.partition("__")
            part = given.get(section, {})
            tree = part.model_dump(exclude_unset=True) if isinstance(part, BaseModel) else part
            given[section] = {**tree, key: value} if key else value
        vars(self).update(vars(type(self)(**given)))
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return self._fitted is not None

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        images = InputTags(two_d_array=False, three_d_array=True)
        target = TargetTags(required=False)
        return Tags("classifier", target, classifier_tags=ClassifierTags(multi_label=True), input_tags=images)

    def _labelled(self, images: Any, labels: ArrayLike | None) -> tuple[Labels, NDArray[np.float32]]:
        """Places of the labels among the classes, and logits."""
        split = self._opened(images, labels, labelled=True)
        several = self.thresholds is not None
        places = placed_labels(split, self.class_names, self.fitted.classes, multilabel=several)
        return places, self._logits_of_all(split.images)

    def _decided(self, logits: NDArray[np.float32]) -> NDArray[np.int8]:
        """`int8[images, classes]`: 1 from each label's threshold on, -1 where there are no logits."""
        decided = self.fitted.task.probabilities(logits) >= np.asarray(self.thresholds)
        return np.where(np.isnan(logits).all(axis=-1, keepdims=True), -1, decided).astype(np.int8)

    def _logits_of_all(self, images: Any) -> NDArray[np.float32]:
        """`predict_logits`; RunError where an image cannot be read."""
        bad_images = BadImages(allowed=None, named=False)
        logits = self.fitted.predictor.predict_logits(self._source(images), bad_images)
        if listed := bad_images.listed():
            raise RunError(f"{len(listed)} of {len(logits)} images cannot be read: {'; '.join(listed[:20])}")
        return logits

    def _source(self, images: Any) -> ImageSource:
        return images if isinstance(images, ImageSource) else self._opened(images).images

    def _opened(self, images: Any, labels: ArrayLike | None = None, *, labelled: bool = False) -> Split:
        data = self.fitted.config.data
        split = open_split(images, labels, where="the", config=data, labelled=labelled)
        return replace(split, images=with_channels(split.images, chosen(data.channels), data))
