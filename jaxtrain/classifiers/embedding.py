"""The embeddings of a data set, computed before a run of feature extraction asks for them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jaxtrain.classifiers.feature_extraction import FEClassifier
from jaxtrain.config import Config, chosen
from jaxtrain.data.base import Dataset
from jaxtrain.embeddings.store import Embeddings
from jaxtrain.runs.backbone import Backbone
from jaxtrain.runs.extraction import RowsOf
from jaxtrain.runs.run import use_compilation_cache
from jaxtrain.screen.loading import load_with_bar
from jaxtrain.training.parallel import check_devices, set_cpu_devices

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Embedding:
    """A data set, and the frozen backbone that its images go through."""

    config: Config
    """Resolved."""
    dataset: Dataset
    backbone: Backbone

    @property
    def store(self) -> Path:
        """Folder of the embedding store."""
        return chosen(self.config.features.store).expanduser().absolute()

    def splits(self, rows: RowsOf | None = None) -> Iterator[tuple[str, Embeddings]]:
        """What a run of technique fe learns from, by name: the training images, all views, and the validation images.

        `rows` computes what the store lacks (None: this process does). The test images are not read: the run embeds
        them at its end. Raises RunError for more unreadable images than `data.max_bad_images`.
        """
        learned = [("train", self.dataset.train, self.config.features.views)]
        if self.dataset.val is not None:
            learned.append(("val", self.dataset.val, 1))
        for name, source, views in learned:
            for view, kept in enumerate(self.backbone.kept(source, name, views=views, rows=rows)):
                yield name if view == 0 else f"{name} view {view}", kept


def open_embedding(config: Config) -> Embedding:
    """The images and the backbone that a run of technique fe with these options has. Raises UserError."""
    set_cpu_devices(config.parallel)
    check_devices()
    technique = FEClassifier(config)
    dataset = load_with_bar(technique.data_config, quiet=config.quiet)
    dataset.bad_images.allowed = technique.config.data.max_bad_images
    return embedding_of(technique, dataset)


def embedding_of(technique: FEClassifier, dataset: Dataset) -> Embedding:
    """The same for images that are loaded."""
    config = technique.resolve(technique.config, dataset)
    use_compilation_cache(config)
    backbone = Backbone(technique.bind(config), dataset.num_classes, dataset.bad_images)
    for note in backbone.notes:
        _log.warning("%s", note)
    return Embedding(config, dataset, backbone)


__all__ = ["Embedding", "embedding_of", "open_embedding"]
