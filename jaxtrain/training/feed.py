"""How batches reach the step: from a data set that lives on the device, or from a stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import numpy as np

from jaxtrain.config import Config, chosen
from jaxtrain.data.bad_images import BadImages
from jaxtrain.data.base import ArraySource, ImageSource
from jaxtrain.data.order import Order
from jaxtrain.data.stream import HostBatch, prefetch_to_device, train_batches
from jaxtrain.training.parallel import Strategy
from jaxtrain.training.state import Batch

# Indices that go to the device at once; large enough that it happens rarely, small enough not to be felt.
_WINDOW_ELEMENTS = 1 << 18


class Feed(Protocol):
    """Gives the compiled step its arguments, and tells it how to make a batch of them."""

    def args(self, step: int) -> tuple[Any, ...]:
        """Device arrays for the call that starts at `step`."""

    def batch(self, step: jax.Array, *args: Any) -> Batch:
        """Inside the compiled function: the (local part of the) batch of `step`."""

    def close(self) -> None:
        """Stop workers, free buffers."""


class ResidentFeed:
    """The whole set on the device, gathered by index inside the step.

    The order of images is computed on the host and sent ahead in windows of many steps, so that a step needs
    nothing from the host.
    """

    def __init__(
        self, source: ArraySource, order: Order, strategy: Strategy, *, steps_per_call: int, data: Any = None
    ) -> None:
        """`data`: images and labels of `source` that are on the devices already, as another feed's `data`."""
        calls = max(_WINDOW_ELEMENTS // (order.batch_size * steps_per_call), 1)
        self.window = calls * steps_per_call
        """Steps whose order is on the devices at a time."""
        self._order, self._strategy = order, strategy
        self.data = strategy.replicate(arrays_of(source)) if data is None else data
        """Images, labels and, where the source has them, weights on the devices."""
        self._plan: Any = None
        self._plan_number = -1

    def args(self, step: int) -> tuple[Any, ...]:
        """(images, labels, [weights,] plan)."""
        return (*self.data, self.plan(step))

    def plan(self, step: int) -> Any:
        """Which images are in which step: `int32[window, batch]`, windows aligned to multiples of their length."""
        number = step // self.window
        if number != self._plan_number:
            first = number * self.window
            self._plan = self._strategy.replicate(self._order.steps(first, first + self.window))
            self._plan_number = number
        return self._plan

    def batch(self, step: jax.Array, *args: Any) -> Batch:
        """Gather by index."""
        *arrays, plan = args
        index = self._strategy.local(plan[step % self.window])
        return Batch(*(array[index] for array in arrays))

    def close(self) -> None:
        """Nothing to stop."""


def arrays_of(source: ArraySource) -> tuple[Any, ...]:
    """Images, labels and, where there are any, weights: in the order of `Batch`."""
    return tuple(array for array in (source.images, source.labels, source.weights) if array is not None)


class StreamFeed:
    """Batches from worker processes, placed on the devices ahead of the step."""

    def __init__(self, open_stream: Callable[[int], Iterator[Batch]]) -> None:
        self._open = open_stream
        self._stream: Iterator[Batch] | None = None
        self._next = -1

    def args(self, step: int) -> tuple[Any, ...]:
        """(batch,)."""
        if self._stream is None or step != self._next:
            self.close()
            self._stream = self._open(step)
        self._next = step + 1
        return (next(self._stream),)

    def batch(self, step: jax.Array, batch: Batch) -> Batch:
        """It is one already."""
        del step
        return batch

    def close(self) -> None:
        """Stop the workers."""
        if self._stream is not None:
            close = getattr(self._stream, "close", None)
            if close is not None:
                close()
            self._stream = None


def open_stream(
    source: ImageSource, order: Order, config: Config, strategy: Strategy, bad_images: BadImages
) -> StreamFeed:
    """A feed whose images are decoded and cropped by worker processes and placed on the devices ahead of the step."""
    data, augment = config.data, config.augment

    def put(batch: HostBatch) -> Batch:
        return strategy.shard(Batch(batch.images, batch.labels, batch.weights))

    def start(step: int) -> Iterator[Batch]:
        with train_batches(
            source,
            order,
            image_size=chosen(data.image_size),
            channels=chosen(data.channels),
            crop="random_resized" if augment.crop == "random_resized" else "center",
            crop_pct=chosen(data.crop_pct),
            interpolation=chosen(data.interpolation),
            scale=chosen(augment.scale),
            ratio=chosen(augment.ratio),
            seed=config.seed,
            workers=data.workers,
            prefetch=data.prefetch,
            bad_images=bad_images,
            max_pixels=data.max_pixels,
            pixel_type=data.pixel_type,
            start_step=step,
            process_index=strategy.share[0],
            process_count=strategy.share[1],
        ) as batches:
            yield from prefetch_to_device(batches, put, depth=data.prefetch)

    return StreamFeed(start)


def padded_batches(source: ArraySource, batch_size: int, share: tuple[int, int] = (0, 1)) -> Iterator[Batch]:
    """Every image once, in order; the last batch is filled up with zeros of weight 0.

    share: (index, count) of the processes, of which each gets its rows of every batch.
    """
    index, count = share
    rows = batch_size // count
    for first in range(0, len(source), batch_size):
        start = first + index * rows
        images = np.asarray(source.images[start : start + rows])
        labels = source.labels[start : start + rows]
        missing = rows - len(labels)
        weight = np.ones(rows, np.float32)
        if missing:
            weight[-missing:] = 0.0
            images = np.concatenate([images, np.zeros((missing, *images.shape[1:]), images.dtype)])
            labels = np.concatenate([labels, np.zeros((missing, *labels.shape[1:]), labels.dtype)])
        yield Batch(images, labels, weight)
