"""The workers that `--cluster...` asks for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from jaxtrain.config import WorkersConfig, resources

if TYPE_CHECKING:
    from jaxtrain.classifiers.base import BaseClassifier
    from jaxtrain.classifiers.embedding import Embedding
    from jaxtrain.cluster.pool import Workers
    from jaxtrain.evaluation.runs import Predicting
    from jaxtrain.runs.extraction import RowsOf


@contextlib.contextmanager
def workers_of(asked: WorkersConfig) -> Iterator[Workers | None]:
    """While entered, a cluster is connected; None without an address.

    Entered before JAX has threads, as Ray forks. Raises UserError where no node has what a worker needs.
    """
    if asked.address is None:
        yield None
        return
    from jaxtrain.cluster.pool import Workers
    from jaxtrain.cluster.session import connected

    need = resources(asked.resources)
    with connected(asked.address) as session:
        session.require(need, "--cluster.resources")
        yield Workers(session, need, asked.workers)


@contextlib.contextmanager
def embedding_rows(workers: Workers | None, embedding: Embedding) -> Iterator[RowsOf | None]:
    """What computes the embeddings that the store lacks: workers, or None for this process."""
    if workers is None:
        yield None
        return
    from jaxtrain.cluster.embed import on_workers

    with on_workers(workers, embedding) as rows:
        yield rows


@contextlib.contextmanager
def predicting_on(
    workers: Workers | None, load: Callable[[Path], BaseClassifier], *, trust_imports: bool
) -> Iterator[Predicting | None]:
    """What computes the predictions of runs that are not kept: workers, or None for this process."""
    if workers is None:
        yield None
        return
    from jaxtrain.cluster.benchmark import predicting

    with predicting(workers, load, trust_imports=trust_imports) as found:
        yield found
