"""Image files labelled on the nodes of a cluster, to the same rows as on one machine."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxtrain.classifiers.base import BaseClassifier
from jaxtrain.classifiers.files import load
from jaxtrain.classifiers.labelling import Labelling, weights_digests
from jaxtrain.cluster.node import differs, memory_of, versions
from jaxtrain.cluster.pool import in_order
from jaxtrain.cluster.session import Session
from jaxtrain.errors import UserError

_BLOCK_IMAGES = 1024


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
        self._classifier: BaseClassifier | None = None

    def block(self, files: Sequence[str]) -> list[dict[str, Any]]:
        """The rows of these files. Raises UserError where this node differs from the driver."""
        if self._classifier is None:
            self._classifier = self._loaded()
        return [row for rows in self._labelling.rows(self._classifier, files) for row in rows]

    def _loaded(self) -> BaseClassifier:
        if problem := differs(self._wanted):
            raise UserError(problem)
        try:
            os.chdir(self._folder)
        except OSError as error:
            raise UserError(f"{self._folder}: {error.strerror}; all nodes need one file system in common") from error
        classifier = load(self._labelling.run_dir, trust_imports=self._trust_imports)
        if weights_digests(classifier) != self._digests:
            raise UserError(f"{self._labelling.run_dir} holds another model on this node")
        return classifier


def predicted(
    session: Session,
    need: Mapping[str, float],
    labelling: Labelling,
    classifier: BaseClassifier,
    files: Sequence[str],
    *,
    trust_imports: bool,
) -> Iterator[list[dict[str, Any]]]:
    """The rows of all files, block by block in their order. Raises RunError where a node cannot do its part."""
    config = classifier.config
    arguments = (os.getcwd(), labelling, weights_digests(classifier), versions(), trust_imports, need.get("gpu", 0.0))
    blocks = cut(files, config.features.batch_size or config.train.batch_size)
    return in_order(session, need, Labeller, arguments, blocks)


def cut(files: Sequence[str], batch_size: int) -> list[Sequence[str]]:
    """Blocks of whole batches, so that each image has the place in its batch that it has on one machine.

    What is left over belongs to the last block: a block of less than a batch would be computed in a smaller one.
    """
    size = -(-_BLOCK_IMAGES // batch_size) * batch_size
    starts = [*range(0, max(len(files) - size, 0) + 1, size)]
    return [files[start:stop] for start, stop in zip(starts, [*starts[1:], len(files)], strict=True)]
