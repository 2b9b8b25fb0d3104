"""Image files labelled on the nodes of a cluster, to the same rows as on one machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxtrain.classifiers.base import BaseClassifier
from jaxtrain.classifiers.labelling import Labelling, weights_digests
from jaxtrain.cluster.model import load_same
from jaxtrain.cluster.node import Place
from jaxtrain.cluster.pool import Workers, check_seen, cut
from jaxtrain.data.base import FileSource


class Labeller:
    """On a node: a model that stays loaded."""

    def __init__(self, place: Place, labelling: Labelling, digests: list[str], trust_imports: bool) -> None:
        self._place, self._labelling, self._digests = place, labelling, digests
        self._trust_imports = trust_imports

    def ready(self) -> None:
        """Load the model. Raises UserError where this node differs from the driver."""
        self._place.enter()
        self._classifier = load_same(self._labelling.run_dir, self._digests, trust_imports=self._trust_imports)

    def block(self, files: Sequence[str]) -> list[dict[str, Any]]:
        """The rows of these files."""
        return [row for rows in self._labelling.rows(self._classifier, files) for row in rows]


def predicted(
    workers: Workers, labelling: Labelling, classifier: BaseClassifier, files: Sequence[str], *, trust_imports: bool
) -> Iterator[list[dict[str, Any]]]:
    """The rows of all files, block by block in their order. Raises RunError where a node cannot do its part."""
    config = classifier.config
    pool = workers.pool(Labeller, labelling, weights_digests(classifier), trust_imports)
    blocks = cut(files, config.features.batch_size or config.train.batch_size)
    for block, rows in zip(blocks, pool.in_order(blocks), strict=True):
        reasons = {row["file"]: row["reason"] for row in rows if "reason" in row}
        check_seen(FileSource(block, np.zeros(len(block), np.int32)), reasons, classifier.fitted.config.data)
        yield rows
