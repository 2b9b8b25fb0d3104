"""Image files labelled on the nodes of a cluster, to the same rows as on one machine."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxtrain.classifiers.base import BaseClassifier
from jaxtrain.classifiers.files import load
from jaxtrain.classifiers.labelling import Labelling, weights_digests
from jaxtrain.cluster.node import enter, memory_of, versions
from jaxtrain.cluster.pool import Pool, cut
from jaxtrain.cluster.session import Session
from jaxtrain.errors import UserError


class Labeller:
    """On a node: a model that stays loaded."""

    def __init__(
        self,
        folder: str,
        labelling: Labelling,
        digests: list[str],
        wanted: tuple[str, str],
        trust_imports: bool,
        gpu: float,
    ) -> None:
        os.environ.update({**memory_of(gpu), **os.environ})  # before JAX looks for devices
        self._folder, self._labelling, self._digests = folder, labelling, digests
        self._wanted, self._trust_imports = wanted, trust_imports

    def ready(self) -> None:
        """Load the model. Raises UserError where this node differs from the driver."""
        enter(self._folder, self._wanted)
        self._classifier = load(self._labelling.run_dir, trust_imports=self._trust_imports)
        if weights_digests(self._classifier) != self._digests:
            raise UserError(f"{self._labelling.run_dir} holds another model on this node")

    def block(self, files: Sequence[str]) -> list[dict[str, Any]]:
        """The rows of these files."""
        return [row for rows in self._labelling.rows(self._classifier, files) for row in rows]


def predicted(
    session: Session,
    need: Mapping[str, float],
    labelling: Labelling,
    classifier: BaseClassifier,
    files: Sequence[str],
    *,
    most: int | None,
    trust_imports: bool,
) -> Iterator[list[dict[str, Any]]]:
    """The rows of all files, block by block in their order. Raises RunError where a node cannot do its part."""
    config = classifier.config
    arguments = (os.getcwd(), labelling, weights_digests(classifier), versions(), trust_imports, need.get("gpu", 0.0))
    blocks = cut(files, config.features.batch_size or config.train.batch_size)
    return Pool(session, need, Labeller, arguments, most).in_order(blocks)
