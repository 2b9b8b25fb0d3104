"""FEClassifier: a head on the embeddings of a frozen backbone, which sees every image once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import jax
import numpy as np
from flax import nnx
from numpy.typing import ArrayLike, NDArray

from jaxtrain.classifiers.base import BaseClassifier
from jaxtrain.config import Config, chosen
from jaxtrain.data.base import Dataset, ImageSource
from jaxtrain.errors import UserError
from jaxtrain.heads import FittedHead, check_head, class_kernel
from jaxtrain.models.weights import Pretrained, load_pretrained
from jaxtrain.runs.fitted import Fitted, HeadPredictor
from jaxtrain.runs.head_learning import HeadLearning, fit_vectors
from jaxtrain.runs.learning import Job, Learning
from jaxtrain.runs.resolve import DEFAULT_WEIGHTS, resolve_features


class FEClassifier(BaseClassifier):
    """Feature extraction: vectors from pre-trained weights, and a head trained on them to convergence.

    The vectors are computed once for each image and kept (`features.store`); other heads and other runs on the same
    images cost seconds. `config.head` says which head; the linear one chooses its setting on validation.
    """

    technique: ClassVar[str] = "fe"

    @cached_property
    def pretrained(self) -> Pretrained:
        """The backbone's weights: `model.weights`, else those of the package that comes with jaxtrain."""
        given = self.config.model.weights
        return load_pretrained(DEFAULT_WEIGHTS if given is None else given, self.config.model)

    def resolve(self, config: Config, dataset: Dataset, run_dir: Path | None = None) -> Config:
        """As for every technique; and where vectors are kept, and how many are computed at once."""
        check_head(config.head)
        if dataset.channels not in (1, 3):
            raise UserError(
                f"technique fe: frozen weights see {self.pretrained.channels} channels, the images have "
                f"{dataset.channels}: fine-tune (ft), or train from scratch (pt)"
            )
        resolved = resolve_features(super().resolve(config, dataset, run_dir))
        features = resolved.features
        if resolved.model.network is not None and (features.pool != "auto" or features.blocks > 1):
            option = "pool" if features.pool != "auto" else "blocks"
            raise UserError(f"features.{option}: is for jaxtrain's networks; {resolved.model.label} has one embedding")
        self.bind(resolved).start_of_head(dataset.class_names)  # refused before the run directory is begun with it
        return resolved

    def start_of_head(self, class_names: Sequence[str]) -> NDArray[np.float32] | None:
        """What the head starts from, by `head.init` of a resolved config. Raises UserError for a file that won't do."""
        path, features, data = self.config.head.init, self.config.features, self.config.data
        if path is None:
            return None
        shape = (1, chosen(data.image_size), chosen(data.image_size), chosen(data.channels))
        images = jax.ShapeDtypeStruct(shape, np.float32)
        model = self.build_model
        width = jax.eval_shape(lambda x: self.embedding(model(num_classes=1, axis_name=None), x), images).shape[1]
        head = self.pretrained.params.get(f"{self.head_name}/kernel")
        shared = head is not None and len(head) == width and features.pool == "auto" and features.blocks == 1
        return class_kernel(path, class_names, width, head if shared else None)

    def build_model(self, *, num_classes: int, axis_name: str | None) -> nnx.Module:
        """The backbone without its head; a network of one's own with one that nobody looks at."""
        model = super().build_model(num_classes=1, axis_name=axis_name)
        if self.network is None:
            del model.head
        return model

    def trainable(self, path: tuple[Any, ...], value: Any) -> bool:
        """Nothing of the backbone."""
        return False

    def embedding(self, model: Any, images: jax.Array) -> jax.Array:
        """By `features.pool` and `features.blocks`."""
        features = self.config.features
        if self.network is not None:
            return model.embed(images)
        return model.embed_blocks(images, pool=features.pool, blocks=features.blocks)

    def learning(self, job: Job) -> Learning:
        """Embeddings first, then heads on them."""
        return HeadLearning(job, self.start_of_head(job.dataset.class_names))

    def predictor(self, fitted: Fitted, *, everywhere: bool = False) -> HeadPredictor:
        """The head on the backbone's embeddings."""
        return HeadPredictor(fitted, everywhere=everywhere)

    @property
    def head(self) -> FittedHead:
        """The trained head: vectors `float32[images, features]` to logits."""
        predictor = self.fitted.predictor
        assert isinstance(predictor, HeadPredictor)
        return predictor.head

    def fit_embeddings(
        self,
        vectors: ArrayLike,
        labels: ArrayLike,
        *,
        validation: tuple[ArrayLike, ArrayLike] | None = None,
    ) -> Self:
        """Train the head alone, on vectors of one's own `float32[images, features]`; nothing is written or tracked.

        Without `validation` a stratified part is held out (`data.val_fraction`). Then `predict_embeddings` and `save`
        work; images need a backbone. Raises UserError for wrong input.
        """
        self._fitted = fit_vectors(self.bind(self.config), vectors, labels, validation)
        return self

    def predict_embeddings(self, vectors: ArrayLike) -> NDArray[np.signedinteger[Any]]:
        """The most probable class of each vector: `int32[images]`, an index into `class_names`.

        Several labels per image are `int8[images, classes]`.
        """
        logits = self.head.logits(np.asarray(vectors, np.float32))
        if self.thresholds is not None:
            return self._decided(logits)
        return np.argmax(logits, axis=-1).astype(np.int32)

    def _source(self, images: ArrayLike | ImageSource) -> ImageSource:
        if not self.fitted.weights["frozen"]:
            raise UserError("this head was trained on vectors: it has no backbone, use predict_embeddings()")
        return super()._source(images)
