"""Predictions of finished runs computed on the nodes of a cluster, to the bits of one machine.

Nodes compute what the networks give. The head of a run of feature extraction, whose sums depend on how many vectors it
has at once, is applied by the driver to all of them, as on one machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jaxtrain.archives import open_npz
from jaxtrain.classifiers.base import BaseClassifier
from jaxtrain.classifiers.labelling import weights_digests
from jaxtrain.cluster.model import load_same
from jaxtrain.cluster.node import Place
from jaxtrain.cluster.pool import BLOCK_IMAGES, Parts, Pool, Workers, check_seen
from jaxtrain.data.bad_images import BadImages
from jaxtrain.data.base import ImageSource
from jaxtrain.data.digest import images_fingerprint
from jaxtrain.errors import DamagedError, JaxtrainError, RunError
from jaxtrain.evaluation.evaluate import Predictor
from jaxtrain.files import reason, replacing

_FOLDER = Path("benchmark") / "blocks"
"""In a run directory: what its network gave for each block, until the predictions of all images are there."""
_log = logging.getLogger(__name__)

Rows = tuple[NDArray[np.float32], dict[str, str]]
"""What a network gives for some images, `float32[images, numbers]`, NaN where one cannot be read; and why not."""


class Tester:
    """On a node: the model of the last block, which stays loaded."""

    def __init__(self, place: Place, trust_imports: bool) -> None:
        self._place, self._trust_imports = place, trust_imports
        self._classifier: BaseClassifier | None = None
        self._loaded: tuple[Path, Sequence[str]] | None = None

    def ready(self) -> None:
        """Nothing is loaded yet. Raises UserError where this node differs from the driver."""
        self._place.enter()

    def block(self, part: ImageSource, run_dir: Path, digests: Sequence[str]) -> Rows:
        """What the network of a run gives. Raises UserError where this node has another model there."""
        if self._loaded != (run_dir, digests):
            self._classifier = self._loaded = None  # two need not fit
            self._classifier = load_same(run_dir, digests, trust_imports=self._trust_imports)
            self._loaded = run_dir, digests
        assert self._classifier is not None
        bad_images = BadImages(allowed=None, named=False)
        rows = self._classifier.fitted.predictor.network_rows(part, bad_images)
        return rows, dict(bad_images.reasons)


@contextlib.contextmanager
def predicting(
    workers: Workers, load: Callable[[Path], BaseClassifier], *, trust_imports: bool
) -> Iterator[Callable[[Path], Predictor]]:
    """What `gather` takes: the model of a run directory, whose predictions workers compute.

    What blocks gave is kept in the run directory, and deleted when this is left without an error.
    """
    pool, folders = workers.pool(Tester, trust_imports), list[Path]()

    def predictor(run_dir: Path) -> Predictor:
        folders.append(run_dir / _FOLDER)
        return _OnWorkers(load(run_dir), run_dir, pool)

    yield predictor
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class _OnWorkers:
    classifier: BaseClassifier
    run_dir: Path
    pool: Pool

    @property
    def class_names(self) -> Sequence[str]:
        return self.classifier.class_names

    @property
    def thresholds(self) -> Sequence[float] | None:
        return self.classifier.thresholds

    def predict_logits(self, source: ImageSource) -> NDArray[np.float32]:
        """`float32[images, classes]`; NaN for an image that cannot be read, which a warning names.

        Raises JaxtrainError where the workers cannot: not RunError, for which a comparison goes on without this run.
        """
        found, bad_images = [], BadImages(allowed=None)
        try:
            for rows, reasons in self._blocks(source):
                bad_images.add(reasons.items())
                found.append(rows)
        except RunError as error:
            raise JaxtrainError(f"predictions of {self.run_dir}: {error}") from error
        return self.classifier.fitted.predictor.from_network(np.concatenate(found))

    def _blocks(self, source: ImageSource) -> Iterator[Rows]:
        """All blocks in order, those first that an earlier start kept."""
        config, digests = self.classifier.config, weights_digests(self.classifier)
        size = config.features.batch_size or config.train.batch_size
        kept = _Kept(self.run_dir / _FOLDER, [*digests, images_fingerprint(source), size, BLOCK_IMAGES])
        done = 0
        while (block := kept.read(done)) is not None:
            yield block
            done += 1
        parts = Parts(source, size, done)
        for part, block in zip(parts, self.pool.in_order(parts, self.run_dir, digests), strict=True):
            check_seen(part, block[1], self.classifier.fitted.config.data)
            kept.write(done, block)
            yield block
            done += 1


class _Kept:
    """Blocks as files of a folder."""

    def __init__(self, root: Path, key: Sequence[str | int]) -> None:
        self._folder = root / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
        self._writes = True

    def read(self, number: int) -> Rows | None:
        """A block; None where it is not there, or not sound."""
        try:
            with open_npz(self._path(number), "block of predictions", "it is computed again") as arrays:
                return arrays["rows"], dict(arrays["unreadable"].reshape(-1, 2).tolist())
        except (OSError, DamagedError):
            return None

    def write(self, number: int, block: Rows) -> None:
        """Keep a block; with a warning, and once, not where the folder cannot be written."""
        if not self._writes:
            return
        rows, reasons = block
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with replacing(self._path(number)) as part, part.open("wb") as file:
                np.savez(file, rows=rows, unreadable=np.array([*reasons.items()], str))
        except OSError as error:
            self._writes = False
            _log.warning("%s: %s; a second start computes these predictions again", self._folder, reason(error))

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:05}.npz"
