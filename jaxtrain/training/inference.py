"""Compiled forward passes over images: evaluation, prediction, embedding."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jaxtrain.config import Config, chosen
from jaxtrain.data.augment import normalize, prepare_eval
from jaxtrain.data.bad_images import BadImages
from jaxtrain.data.base import ArraySource, ImageSource
from jaxtrain.data.stream import eval_batches
from jaxtrain.data.transforms import keeps_as_it_is
from jaxtrain.models.heat import Method, heat_maps
from jaxtrain.tasks import Task, task_of
from jaxtrain.training.feed import padded_batches
from jaxtrain.training.network import Network
from jaxtrain.training.parallel import Strategy, must_block
from jaxtrain.training.state import Batch, Tree
from jaxtrain.training.technique import Technique

# A placed batch, and which of its rows hold a readable image (the others are padding or could not be decoded).
Batches = Iterable[tuple[Batch, NDArray[np.bool_]]]


class Inference:
    """Forward passes of one model. Weights are {"params", "frozen", "model_state"} placed by the strategy."""

    def __init__(self, technique: Technique, strategy: Strategy) -> None:
        self.config = technique.config
        self._technique = technique
        self.strategy = strategy
        self.task = task_of(technique.config)
        self.network = Network.of(technique, strategy.axis_name)
        self._compiled: dict[str, Callable[..., Any]] = {}

    def logits(self, weights: Tree, source: ImageSource, bad_images: BadImages | None = None) -> NDArray[np.float32]:
        """`float32[images, classes]`; NaN for an image that could not be read."""
        return self._run("logits", weights, self.batches(source, bad_images, few=True), len(source))

    def embed(self, weights: Tree, source: ImageSource, bad_images: BadImages | None = None) -> NDArray[np.float32]:
        """`float32[images, features]`; NaN for an image that could not be read."""
        return self._run("embed", weights, self.batches(source, bad_images, few=True), len(source))

    def stream(
        self, output: str, weights: Tree, source: ImageSource, bad_images: BadImages | None = None
    ) -> Iterator[Any]:
        """The same batch by batch, in order; of the output "both" {"logits", "embedding"}."""
        yield from self.mapped(self.compiled(output), weights, source, bad_images)

    def mapped(
        self,
        function: Callable[[Tree, Batch], Any],
        weights: Tree,
        source: ImageSource,
        bad_images: BadImages | None = None,
    ) -> Iterator[Any]:
        """The same of any function that was compiled by the strategy's `compile_map`."""
        left, batches = len(source), self.batches(source, bad_images, few=True)
        for rows in map_batches(function, weights, batches, ahead=self.ahead):
            size = min(len(jax.tree.leaves(rows)[0]), left)
            left -= size
            yield jax.tree.map(lambda array, size=size: array[:size], rows)

    def metrics(self, weights: Tree, batches: Batches, labels: NDArray[Any]) -> dict[str, float]:
        """Validation metrics (`val/...`) over the images that could be read."""
        return self.validation(self._run("metrics", weights, batches, len(labels)), labels)

    def validation(self, each: dict[str, NDArray[Any]], labels: NDArray[Any]) -> dict[str, float]:
        """Validation metrics from those of each image.

        They are computed on the host in float64, so they are the same for any batch size and number of devices.
        """
        # Of an image that was read the logits and the loss can be NaN, and that has to show.
        read = ~np.isnan(each["read"])
        kept = {name: rows[read] for name, rows in each.items() if name != "read"}
        found = self.task.validation(kept, labels[read])
        own = self._technique.metrics
        return found | {name: float(metric(kept["logits"], labels[read])) for name, metric in own.items()}

    def batches(self, source: ImageSource, bad_images: BadImages | None = None, *, few: bool = False) -> Batches:
        """All images in order, placed on the devices; see `host_batches`.

        `few`: of few images a batch no larger than they need. A part of a split, as the embedding store computes it,
        gets whole ones: how large the part is must not change the bits.
        """
        strategy, size = self.strategy, eval_batch_size(self.config, self.strategy, len(source) if few else None)
        for batch in host_batches(self.config, source, size, strategy.share, bad_images):
            yield strategy.shard(Batch(batch.image, batch.label)), strategy.rows(np.asarray(batch.weight)) > 0

    def _run(self, output: str, weights: Tree, batches: Batches, images: int) -> Any:
        return map_images(self.compiled(output), weights, batches, images, ahead=self.ahead)

    @property
    def ahead(self) -> int:
        """Batches that may be under way."""
        return 0 if must_block(self.strategy) else 2

    def compiled(self, output: str) -> Callable[[Tree, Batch], Any]:
        """The forward pass to "logits", "embed", "both" or "metrics", compiled once."""
        if output not in self._compiled:
            self._compiled[output] = self.strategy.compile_map(self.function(output))
        return self._compiled[output]

    def function(self, output: str) -> Callable[[Tree, Batch], Any]:
        """The same, not compiled."""
        data, technique, flips = self.config.data, self._technique, self.config.augment.test_flips

        def forward(weights: Tree, batch: Batch) -> Any:
            model = self.network.bind(**weights)
            images = normalize(prepare_eval(batch.image), chosen(data.mean), chosen(data.std))
            if output == "embed":
                return technique.embedding(model, images)
            logits = model(images) if flips == "none" else _over_flips(model, images, flips, self.task)
            logits = logits.astype(jnp.float32)
            if output == "logits":
                return logits
            if output == "both":
                return {"logits": logits, "embedding": technique.embedding(model, images)}
            metrics = self.task.image_metrics(logits, batch.label) | ({"logits": logits} if technique.metrics else {})
            return metrics | {"read": jnp.ones(len(logits))}

        return forward

    def explaining(
        self, logits_of: Callable[[Any, jax.Array], jax.Array], *, embedding: bool, method: Method
    ) -> Callable[[Tree, Batch], Any]:
        """Not compiled: "logits", "heat" of the most probable class, "image" from 0 to 255, and the "embedding"."""
        data, technique = self.config.data, self._technique

        def forward(weights: Tree, batch: Batch) -> Any:
            images = normalize(prepare_eval(batch.image), chosen(data.mean), chosen(data.std))

            def build() -> Any:
                return self.network.bind(**weights)

            flips = self.config.augment.test_flips != "none"
            logits = self.function("logits")(weights, batch) if flips else logits_of(build(), images)
            best = jnp.argmax(logits, axis=-1)[:, None]

            def score(model: Any, images: jax.Array) -> jax.Array:
                return jnp.take_along_axis(logits_of(model, images), best, axis=1)[:, 0]

            heat = heat_maps(build, images, score, method)
            rows = {"logits": logits, "heat": heat, "image": 255 * prepare_eval(batch.image)}
            return rows | ({"embedding": technique.embedding(build(), images)} if embedding else {})

        return forward


def _over_flips(model: Callable[[jax.Array], jax.Array], images: jax.Array, flips: str, task: Task) -> jax.Array:
    """Logits of the class probabilities, averaged over an image and its flips: `float32[batch, classes]`.

    Test-time augmentation, as Krizhevsky et al. 2012 average the probabilities of ten patches of an image.
    """
    views = [images, images[:, :, ::-1]]
    if flips == "hv":
        views += [view[:, ::-1] for view in views]
    stacked = jnp.stack(views, axis=1)  # of one image side by side, so that each device keeps its own images
    logits = model(stacked.reshape(-1, *images.shape[1:])).astype(jnp.float32)
    return task.averaged(logits.reshape(len(images), len(views), -1))


def eval_batch_size(config: Config, strategy: Strategy, images: int | None = None) -> int:
    """Images per forward pass: as for the features or in training, rounded up to the devices.

    Of few `images` the next power of two: one picture does not wait for a full batch, and little is compiled.
    """
    devices, size = len(strategy.devices), config.features.batch_size or config.train.batch_size
    if images is not None:
        size = min(size, 1 << max(images - 1, 0).bit_length())
    return -(-size // devices) * devices


def host_batches(
    config: Config,
    source: ImageSource,
    batch_size: int,
    share: tuple[int, int] = (0, 1),
    bad_images: BadImages | None = None,
) -> Iterator[Batch]:
    """Evaluation batches of numpy arrays at the model's size, the last one padded with weight 0.

    share: (index, count) of the processes, of which each gets its rows of every batch. bad_images: where images that
    cannot be read are entered; without, `data.max_bad_images` of them are passed over in silence.
    """
    data = config.data
    size, crop_pct = chosen(data.image_size), chosen(data.crop_pct)
    if (
        isinstance(source, ArraySource)
        and source.images.shape[-1] == data.channels
        and (source.prepared or keeps_as_it_is(source.images.shape, size, crop_pct))
    ):
        yield from padded_batches(source, batch_size, share)
        return
    with eval_batches(
        source,
        batch_size=batch_size,
        image_size=size,
        channels=chosen(data.channels),
        crop_pct=crop_pct,
        interpolation=chosen(data.interpolation),
        workers=0 if isinstance(source, ArraySource) else data.workers,
        prefetch=data.prefetch,
        bad_images=bad_images or BadImages(data.max_bad_images, named=False),
        max_pixels=data.max_pixels,
        pixel_type=data.pixel_type,
        process_index=share[0],
        process_count=share[1],
    ) as batches:
        for batch in batches:
            yield Batch(batch.images, batch.labels, batch.weights)


def map_images(
    function: Callable[[Tree, Batch], Tree], weights: Tree, batches: Batches, images: int, *, ahead: int
) -> Tree:
    """Run a compiled `compile_map` function over batches and join the rows on the host: tree of `[images, ...]`."""
    parts = list(map_batches(function, weights, batches, ahead=ahead))
    return jax.tree.map(lambda *xs: np.concatenate(xs)[:images], *parts)


def map_batches(
    function: Callable[[Tree, Batch], Tree], weights: Tree, batches: Batches, *, ahead: int
) -> Iterator[Tree]:
    """The rows of each batch on the host, NaN where there was no image; `ahead` batches are in flight."""
    waiting: deque[tuple[Tree, NDArray[np.bool_]]] = deque()

    def fetch() -> Tree:
        rows, valid = waiting.popleft()
        host = jax.tree.map(np.array, rows)
        if not valid.all():
            for array in jax.tree.leaves(host):
                array[~valid] = np.nan
        return host

    for batch, valid in batches:
        waiting.append((function(weights, batch), valid))
        if len(waiting) > ahead:
            yield fetch()
    while waiting:
        yield fetch()


def resident_batches(inference: Inference, source: ImageSource) -> list[tuple[Batch, NDArray[np.bool_]]]:
    """All batches of a split on the devices, for one that is evaluated many times."""
    return list(inference.batches(source))
