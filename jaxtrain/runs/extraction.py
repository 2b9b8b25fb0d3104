"""Embeddings of whole splits by a frozen backbone, each computed once and kept in the embedding store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from jaxtrain.config import chosen
from jaxtrain.data.augment import augment, normalize
from jaxtrain.data.bad_images import BadImages
from jaxtrain.data.base import ImageSource, relabelled
from jaxtrain.data.digest import images_fingerprint
from jaxtrain.embeddings.key import EmbeddingKey
from jaxtrain.embeddings.store import Embeddings, EmbeddingStore, Progress
from jaxtrain.training.inference import Inference, map_batches
from jaxtrain.training.state import Batch, Tree
from jaxtrain.training.technique import Technique

RowsOf = Callable[[ImageSource, int], Iterable[NDArray[np.float32]]]
"""Embeds one view of the images of a source: blocks `float32[any number, features]` in their order."""
_OF_THE_NETWORK = ("patch_size", "pool", "registers", "stem")


class Extractor:
    """The frozen backbone on the devices, and the store that its embeddings go to."""

    def __init__(
        self,
        technique: Technique,
        inference: Inference,
        weights: Tree,
        digest: str,
        bad_images: BadImages | None = None,
    ) -> None:
        """`weights` are placed; `digest` is that of the backbone's arrays; `bad_images`: see `host_batches`."""
        self._bad_images = bad_images
        self._technique, self._inference, self._weights, self._digest = technique, inference, weights, digest
        self._store = EmbeddingStore(chosen(inference.config.features.store))
        self._views: dict[int, Callable[[Tree, Batch], Any]] = {}

    def __call__(
        self, source: ImageSource, view: int = 0, progress: Progress | None = None, rows: RowsOf | None = None
    ) -> Embeddings:
        """The embeddings of a split, from the store or computed now; rows of unreadable images are NaN.

        view: 0 for the images as evaluation sees them, n for the n-th augmented view of each.
        rows: who computes those that are missing; None: `rows` of this object.
        """
        rows = rows or self.rows
        return self._store.get(
            self.key(source, view),
            _with_places(source),
            lambda part: rows(part, view),
            progress=progress,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def key(self, source: ImageSource, view: int) -> EmbeddingKey:
        """What the embeddings depend on."""
        config = self._inference.config
        data, features = config.data, config.features
        options = config.model.model_dump(include=set(_OF_THE_NETWORK), exclude_none=True)
        augmentation = {"seed": config.seed, **config.augment.model_dump(mode="json")} if view else None
        return EmbeddingKey(
            images=images_fingerprint(source),
            weights=self._digest,
            model=config.model.label,
            model_options=options,
            image_size=chosen(data.image_size),
            channels=chosen(data.channels),
            mean=chosen(data.mean),
            std=chosen(data.std),
            crop_pct=chosen(data.crop_pct),
            interpolation=chosen(data.interpolation),
            max_pixels=data.max_pixels,
            pool=features.pool,
            blocks=features.blocks,
            dtype=config.model.dtype,
            view=view,
            augmentation=augmentation,
        )

    def rows(self, source: ImageSource, view: int) -> Iterator[NDArray[np.float32]]:
        """The embeddings of a part of a split as `__call__` gives it, batch by batch: `float32[images, features]`."""
        function = self._inference.compiled("embed") if view == 0 else self._augmented(view)
        left = len(source)
        batches = self._inference.batches(source, self._bad_images)
        for rows in map_batches(function, self._weights, batches, ahead=self._inference.ahead):
            yield rows[:left]
            left -= len(rows)

    def _augmented(self, view: int) -> Callable[[Tree, Batch], Any]:
        """Embeds the `view`-th random change of each image; labels are the images' places in their split."""
        if view not in self._views:
            config, inference, technique = self._inference.config, self._inference, self._technique
            data = config.data

            def forward(weights: Tree, batch: Batch) -> Any:
                key = jax.random.fold_in(jax.random.key(config.seed), view)
                keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch.label)
                image = augment(config.augment, keys, batch.image, image_size=chosen(data.image_size))
                image = normalize(image, chosen(data.mean), chosen(data.std))
                return technique.embedding(inference.network.bind(**weights), image)

            self._views[view] = inference.strategy.compile_map(forward)
        return self._views[view]


def _with_places(source: ImageSource) -> ImageSource:
    """The same images, each labelled with its place: what an augmented view of it is seeded by."""
    return relabelled(source, np.arange(len(source), dtype=np.int32))
