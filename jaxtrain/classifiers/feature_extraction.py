"""FEClassifier: a head on the embeddings of a frozen backbone, which sees every image once."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import ArrayLike, NDArray

from jaxtrain.classifiers.base import BaseClassifier, Fitted
from jaxtrain.config import Config, chosen
from jaxtrain.data.base import Dataset, ImageSource
from jaxtrain.errors import UserError
from jaxtrain.models import create_model
from jaxtrain.models.weights import Pretrained, load_pretrained
from jaxtrain.runs.resolve import DEFAULT_WEIGHTS, resolve_features
from jaxtrain.training.state import Tree

if TYPE_CHECKING:
    from jaxtrain.evaluation.costs import ForwardPass
    from jaxtrain.heads import FittedHead
    from jaxtrain.runs.extraction import Extractor
    from jaxtrain.runs.learning import Job, Learning


class FEClassifier(BaseClassifier):
    """Feature extraction: vectors from pre-trained weights, and a head trained on them to convergence.

    The vectors are computed once for each image and kept (`features.store`); other heads and other runs on the same
    images cost seconds. `config.head` says which head; the linear one chooses its setting on validation.
    """

    technique: ClassVar[str] = "fe"
    extractor: Extractor | None = None
    """While a run goes on: embeds splits through the store."""

    @cached_property
    def pretrained(self) -> Pretrained:
        """The backbone's weights: `model.weights`, else those of the package that comes with jaxtrain."""
        given = self.config.model.weights
        return load_pretrained(DEFAULT_WEIGHTS if given is None else given, self.config.model)

    def resolve(self, config: Config, dataset: Dataset) -> Config:
        """As for every technique; and where vectors are kept, and how many are computed at once."""
        return resolve_features(super().resolve(config, dataset))

    def build_model(self, *, num_classes: int, axis_name: str | None) -> nnx.Module:
        """The backbone without its head."""
        del num_classes
        data = self.config.data
        model = create_model(
            self.config.model,
            num_classes=1,
            channels=chosen(data.channels),
            image_size=chosen(data.image_size),
            seed=self.config.seed,
            dtype=jnp.dtype(self.config.model.dtype),
            axis_name=axis_name,
        )
        del model.head
        return model

    def trainable(self, path: tuple[Any, ...], value: Any) -> bool:
        """Nothing of the backbone."""
        return False

    def embedding(self, model: Any, images: jax.Array) -> jax.Array:
        """By `features.pool` and `features.blocks`."""
        features = self.config.features
        return model.embed_blocks(images, pool=features.pool, blocks=features.blocks)

    def learning(self, job: Job) -> Learning:
        """Embeddings first, then heads on them."""
        from jaxtrain.runs.head_learning import HeadLearning

        return HeadLearning(job, self)

    @property
    def head(self) -> FittedHead:
        """The trained head: vectors `float32[images, features]` to logits."""
        from jaxtrain.heads import restore_head

        fitted = self.fitted
        if self._head is None or self._head[0] is not fitted:
            arrays = {name: np.asarray(array) for name, array in fitted.weights["params"].items()}
            self._head = fitted, restore_head(fitted.extra["head"], arrays)
        return self._head[1]

    _head: tuple[Fitted, FittedHead] | None = None

    @property
    def network_weights(self) -> Tree:
        """The backbone's."""
        return {**self.fitted.weights, "params": {}}

    def predict_logits(self, images: ArrayLike | ImageSource) -> NDArray[np.float32]:
        """`float32[images, classes]`; NaN for an image that could not be read."""
        vectors = self.embed(images)
        readable = np.isfinite(vectors).all(axis=1)
        logits = np.full((len(vectors), len(self.class_names)), np.nan, np.float32)
        logits[readable] = self.head.logits(vectors[readable])
        return logits

    def embed(self, images: ArrayLike | ImageSource) -> NDArray[np.float32]:
        """The vector that the head sees: `float32[images, features]`."""
        if self.extractor is not None and isinstance(images, ImageSource):
            return self.extractor(images).load()
        if not self.fitted.weights["frozen"]:
            raise UserError("this head was trained on vectors: it has no backbone, use predict_embeddings()")
        return super().embed(images)

    def forward_pass(self) -> ForwardPass:
        """The backbone, then the head on the host."""
        numbers = sum(array.size for array in self.fitted.weights["params"].values())
        return replace(self._forward_pass("embed"), head=self.head.logits, head_flops=2.0 * numbers)

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
        from jaxtrain.runs.head_learning import fit_vectors

        self.adopt(fit_vectors(self.config, vectors, labels, validation))
        return self

    def predict_embeddings(self, vectors: ArrayLike) -> NDArray[np.int32]:
        """The most probable class of each vector: `int32[images]`, an index into `class_names`."""
        logits = self.head.logits(np.asarray(vectors, np.float32))
        return np.argmax(logits, axis=-1).astype(np.int32)
