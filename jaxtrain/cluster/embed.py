"""Images embedded on the nodes of a cluster, to the same vectors as on one machine.

The driver alone reads and writes the embedding store: it cuts what is missing into blocks, and the vectors of a block
come back to it. So nodes need no locks on the file system, and what is kept follows from the store as on one machine.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from jaxtrain.classifiers.embedding import Embedding
from jaxtrain.classifiers.feature_extraction import FEClassifier
from jaxtrain.cluster.node import enter, memory_of, versions
from jaxtrain.cluster.pool import Pool, cut
from jaxtrain.cluster.session import Session
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


@dataclass(frozen=True)
class Part:
    """Some images of a split."""

    source: ImageSource
    view: int


class _Parts(Sequence[Part]):
    """A source in blocks, each taken from it when it is asked for: a worker gets no more of it than its block."""

    def __init__(self, source: ImageSource, view: int, batch_size: int) -> None:
        self._source, self._view = source, view
        self._places = cut(range(len(source)), batch_size)

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Part: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Part]: ...
    def __getitem__(self, index: int | slice) -> Part | Sequence[Part]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        return Part(self._source.select(np.asarray(self._places[index], np.int64)), self._view)


class Embedder:
    """On a node: a backbone that stays loaded."""

    def __init__(
        self, folder: str, config: Config, classes: int, digest: str, wanted: tuple[str, str], gpu: float
    ) -> None:
        """`config` is resolved; `digest` is that of the backbone's arrays, `wanted` are the driver's versions."""
        os.environ.update({**memory_of(gpu), **os.environ})  # before JAX looks for devices
        self._folder, self._config, self._classes = folder, config, classes
        self._digest, self._wanted = digest, wanted
        self._bad_images = BadImages(allowed=None, named=False)

    def ready(self) -> None:
        """Load the backbone. Raises UserError where this node differs from the driver."""
        enter(self._folder, self._wanted)
        set_cpu_devices(self._config.parallel)
        use_compilation_cache(self._config)
        technique = FEClassifier(self._config)
        self._backbone = Backbone(technique.bind(self._config), self._classes, self._bad_images)
        if self._backbone.digest != self._digest:
            raise UserError(f"model.weights {self._config.model.weights}: they are others on this node")

    def block(self, part: Part) -> tuple[NDArray[np.float32], dict[str, str]]:
        """The vectors of a part, `float32[images, features]`, NaN for an image that cannot be read; and why."""
        known = len(self._bad_images.reasons)
        rows = np.concatenate([*self._backbone.extractor.rows(part.source, part.view)])
        return rows, dict([*self._bad_images.reasons.items()][known:])


def embedded(session: Session, need: Mapping[str, float], embedding: Embedding, *, most: int | None) -> RowsOf:
    """Embeds what `Embedding.splits` asks for, on at most `most` workers. Raises RunError where a node cannot."""
    config = embedding.config
    arguments: tuple[Any, ...] = (os.getcwd(), config, embedding.dataset.num_classes)
    arguments += (embedding.backbone.digest, versions(), need.get("gpu", 0.0))
    pool = Pool(session, need, Embedder, arguments, most)

    def rows(source: ImageSource, view: int) -> Iterable[NDArray[np.float32]]:
        for block, reasons in pool.in_order(_Parts(source, view, chosen(config.features.batch_size))):
            embedding.dataset.bad_images.add(reasons.items())
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
