"""A frozen backbone and the splits that it embeds: what feature extraction and the audit of a data set begin with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jaxtrain.data.bad_images import BadImages
from jaxtrain.data.base import ImageSource, weights_of
from jaxtrain.data.scan import why_unreadable
from jaxtrain.embeddings.store import Embeddings
from jaxtrain.heads import Vectors
from jaxtrain.models.weights import adapt
from jaxtrain.runs.extraction import Extractor, RowsOf
from jaxtrain.runs.learning import Learns
from jaxtrain.screen.progress import Progress
from jaxtrain.training import processes
from jaxtrain.training.inference import Inference
from jaxtrain.training.parallel import make_strategy
from jaxtrain.training.state import Tree
from jaxtrain.training.technique import Binding
from jaxtrain.trees import tree_digest


@dataclass
class Embedded:
    """A split as vectors."""

    vectors: Vectors
    places: NDArray[np.int64]
    """`int64[readable images]`: the place of each image of the first view in its source."""
    computed: int
    """Images that went through the backbone."""
    seconds: float


class Backbone:
    """A technique's pre-trained weights without their head, on the devices."""

    def __init__(self, technique: Learns, classes: int, bad_images: BadImages) -> None:
        """`technique` is bound to its resolved config; `bad_images`: where images that cannot be read are entered."""
        config = technique.config
        self._config, self._bad_images = config, bad_images
        self.technique = technique.bind(config, Binding(classes))
        strategy = make_strategy(config.parallel)
        self.inference = Inference(self.technique, strategy)
        pretrained = technique.pretrained
        assert pretrained is not None
        shapes = {
            "params": self.inference.network.shapes["frozen"],
            "model_state": self.inference.network.shapes["model_state"],
        }
        backbone, state, adapted = adapt(pretrained, shapes, head=technique.head_name)
        if not adapted.head and config.model.network is not None:
            backbone = {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in shapes["params"].items()} | backbone
        self.notes = [f"{pretrained.source}: {note}" for note in adapted.notes]
        """What of the weights does not fit the network or the images."""
        self.weights: Tree = {"params": {}, "frozen": backbone, "model_state": state}
        self.digest = tree_digest({"backbone": backbone, "statistics": state})
        """Of the arrays."""
        self.extractor = Extractor(
            self.technique, self.inference, strategy.place(self.weights), self.digest, bad_images
        )

    def embedded(
        self,
        source: ImageSource,
        name: str,
        *,
        views: int = 1,
        check: Callable[[], None] = lambda: None,
        rows: RowsOf | None = None,
    ) -> Embedded:
        """The readable images of a split as vectors, all views one after the other.

        `check` may raise meanwhile; `rows` computes what the store lacks (None: this process does).
        """
        parts: list[Vectors] = []
        computed, seconds = 0, 0.0
        for found in self.kept(source, name, views=views, check=check, rows=rows):
            x = found.load()
            places = self._readable(x, source)
            parts.append(Vectors(x, source.labels, weights_of(source)).select(places))
            computed, seconds = computed + found.computed, seconds + found.seconds
        joined = parts[0].joined(*parts[1:])
        return Embedded(joined, places, computed, seconds)

    def kept(
        self,
        source: ImageSource,
        name: str,
        *,
        views: int = 1,
        check: Callable[[], None] = lambda: None,
        rows: RowsOf | None = None,
    ) -> Iterator[Embeddings]:
        """Each view of a split in the store; `rows` computes what is missing (None: this process does)."""
        for view in range(views):
            title = f"embedding {name}" + (f", view {view + 1}/{views}" if views > 1 else "")
            with Progress(title=title, quiet=self._config.quiet) as bar:

                def progress(done: int, total: int, bar: Progress = bar) -> None:
                    bar.count(done, total)
                    processes.check()
                    check()

                found = self.extractor(source, view, progress, rows)
            yield found

    def _readable(self, x: NDArray[np.float32], source: ImageSource) -> NDArray[np.int64]:
        """Places of the images that have an embedding; why others have none, in the store maybe, is looked up."""
        bad = np.flatnonzero(~np.isfinite(x).all(axis=1)).tolist()
        met, max_pixels = self._bad_images, self._config.data.max_pixels
        unknown = [index for index in bad if source.describe(index) not in met.reasons]
        met.add(
            (source.describe(i), why_unreadable(source, i, max_pixels) or "its embedding is not finite")
            for i in unknown
        )
        return np.delete(np.arange(len(x)), bad)
