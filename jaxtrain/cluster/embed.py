"""Images embedded on the nodes of a cluster, to the same vectors as on one machine.

The driver alone reads and writes the embedding store: it cuts what is missing into blocks, and the vectors of a block
come back to it. So nodes need no locks on the file system, and what is kept follows from the store as on one machine.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jaxtrain.classifiers.embedding import Embedding
from jaxtrain.classifiers.feature_extraction import FEClassifier
from jaxtrain.cluster.node import Place
from jaxtrain.cluster.pool import Parts, Workers, check_seen
from jaxtrain.config import Config, chosen
from jaxtrain.data.bad_images import BadImages
from jaxtrain.data.base import ImageSource
from jaxtrain.errors import UserError
from jaxtrain.files import reason, try_lock
from jaxtrain.runs.backbone import Backbone
from jaxtrain.runs.extraction import RowsOf
from jaxtrain.runs.run import use_compilation_cache
from jaxtrain.training.parallel import set_cpu_devices

_LOCK = ".cluster.lock"


class Embedder:
    """On a node: a backbone that stays loaded."""

    def __init__(self, place: Place, config: Config, classes: int, digest: str) -> None:
        """`config` is resolved; `digest` is that of the backbone's arrays."""
        self._place, self._config, self._classes, self._digest = place, config, classes, digest
        self._bad_images = BadImages(allowed=None, named=False)

    def ready(self) -> None:
        """Load the backbone. Raises UserError where this node differs from the driver."""
        self._place.enter()
        set_cpu_devices(self._config.parallel)
        use_compilation_cache(self._config)
        technique = FEClassifier(self._config)
        self._backbone = Backbone(technique.bind(self._config), self._classes, self._bad_images)
        if self._backbone.digest != self._digest:
            raise UserError(f"model.weights {self._config.model.weights}: they are others on this node")

    def block(self, part: ImageSource, view: int) -> tuple[NDArray[np.float32], dict[str, str]]:
        """The vectors of a part, `float32[images, features]`, NaN for an image that cannot be read; and why."""
        known = len(self._bad_images.reasons)
        rows = np.concatenate([*self._backbone.extractor.rows(part, view)])
        return rows, dict([*self._bad_images.reasons.items()][known:])


@contextlib.contextmanager
def on_workers(workers: Workers, embedding: Embedding) -> Iterator[RowsOf]:
    """Has workers embed what the store lacks. Raises UserError where another command fills it from a cluster."""
    with alone(embedding.store):
        yield embedded(workers, embedding)


def embedded(workers: Workers, embedding: Embedding) -> RowsOf:
    """Embeds images on workers. Raises RunError where a node cannot."""
    config, dataset = embedding.config, embedding.dataset
    pool = workers.pool(Embedder, config, dataset.num_classes, embedding.backbone.digest)

    def rows(source: ImageSource, view: int) -> Iterable[NDArray[np.float32]]:
        parts = Parts(source, chosen(config.features.batch_size))
        for part, (block, reasons) in zip(parts, pool.in_order(parts, view), strict=True):
            check_seen(part, reasons, config.data)
            dataset.bad_images.add(reasons.items())
            yield block

    return rows


@contextlib.contextmanager
def alone(store: Path) -> Iterator[None]:
    """While entered, no other command fills this embedding store from a cluster. Raises UserError where one does."""
    try:
        store.mkdir(parents=True, exist_ok=True)
        held = try_lock(store / _LOCK)
    except OSError as error:
        raise UserError(
            f"embedding store cannot be used: {store}: {reason(error)}; choose another with --features.store"
        ) from error
    if held is None:
        raise UserError(f"another process fills the embedding store {store} from a cluster: wait for it, or stop it")
    try:
        yield
    finally:
        os.close(held)
