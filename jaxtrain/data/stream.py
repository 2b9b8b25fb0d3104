"""Streaming input for sets that do not fit on the device: Grain decodes and crops on the host, ahead of it.

What is in step i follows from (seed, i) alone. Place `k` of the endless sequence of images holds image
`order.positions(k, k + 1)`, cropped with the random numbers of (seed, k); step i is places `i * batch` to
`(i + 1) * batch`, of which each of P processes takes its contiguous share. Workers decide only who decodes.
"""

from __future__ import annotations

import gc
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing import parent_process
from typing import Any, Literal, Self, SupportsIndex, TypeVar

import numpy as np
from numpy.typing import NDArray

from jaxtrain.data.bad_images import BadImages
from jaxtrain.data.base import Images, ImageSource, Labels, weights_of
from jaxtrain.data.decode import BadImageError, naming_memory_errors, pixels_of, read_encoded, size_to_shrink
from jaxtrain.data.order import Order
from jaxtrain.data.transforms import (
    Interpolation,
    center_crop_resize,
    crop_generator,
    random_crop_box,
    random_resized_crop,
    resize,
)
from jaxtrain.data.worker_watch import WorkerWatch, refuse_in_worker
from jaxtrain.errors import RunError, UserError
from jaxtrain.lifeline import follow

T = TypeVar("T")

# Images that one thread decodes as one unit: small enough to share a batch out, large enough to hide costs.
_CHUNK = 32
# Decoding holds Python's lock for about a tenth of the time, so one process keeps about this many cores busy.
_THREADS_A_PROCESS = 8
_ENDLESS = 2**40


@dataclass(frozen=True)
class HostBatch:
    """This process's share of one global batch, in host memory."""

    images: Images
    """`uint8[local_batch, size, size, channels]`; zeros where the weight is 0."""
    labels: Labels
    """`int32[local_batch]`; 0 where padded."""
    weights: NDArray[np.float32]
    """`float32[local_batch]`: 0 for padding and unreadable images, otherwise the source's for training, or 1."""
    indices: NDArray[np.int64]
    """`int64[local_batch]`: positions in the source; -1 where padded."""


@dataclass(frozen=True)
class _Places:
    """The images of each step, and how each one is read; sent to the workers, who read it in any order."""

    source: ImageSource
    order: Order | None
    """None: each image once, in the source's order."""
    batch_size: int
    process_index: int
    process_count: int
    start_step: int
    stop_step: int
    image_size: int
    channels: int
    max_pixels: int
    pixel_type: str
    crop_pct: float
    interpolation: Interpolation
    random_crop: tuple[int, tuple[float, float], tuple[float, float]] | None
    """(seed, scale, ratio) of the random crops; None: central ones."""

    @property
    def local_batch(self) -> int:
        return self.batch_size // self.process_count

    @property
    def chunks_a_step(self) -> int:
        return -(-self.local_batch // _CHUNK)

    def __len__(self) -> int:
        return (self.stop_step - self.start_step) * self.chunks_a_step

    def step_start(self, step: int) -> int:
        """The first place of this process in a step."""
        return step * self.batch_size + self.process_index * self.local_batch

    def indices(self, start: int, stop: int) -> NDArray[np.int64]:
        """Positions in the source of places start..stop; -1 past the end of an evaluation."""
        if self.order is not None:
            return self.order.positions(start, stop).astype(np.int64)
        places = np.arange(start, stop)
        return np.where(places < len(self.source), places, -1)

    def __getitem__(self, item: SupportsIndex) -> dict[str, Any]:
        """One chunk: images `uint8[at most _CHUNK, size, size, channels]`, and (slot, reason) of bad."""
        step, part = divmod(int(item), self.chunks_a_step)
        first = self.step_start(self.start_step + step)
        start, stop = first + part * _CHUNK, first + min((part + 1) * _CHUNK, self.local_batch)
        images = np.zeros((stop - start, self.image_size, self.image_size, self.channels), self.pixel_type)
        bad = []
        for slot, index in enumerate(self.indices(start, stop).tolist()):
            if index >= 0:
                try:
                    with naming_memory_errors(self.source, index):
                        images[slot] = self._read(index, start + slot)
                except BadImageError as error:
                    bad.append((slot, str(error)))
        return {"images": images, "bad": bad}

    def _read(self, index: int, place: int) -> Images:
        encoded = read_encoded(self.source, index)
        limits: Any = {"channels": self.channels, "max_pixels": self.max_pixels}
        if self.random_crop is None:
            pixels = pixels_of(encoded, **limits)
            return center_crop_resize(pixels, self.image_size, self.crop_pct, self.interpolation)
        seed, scale, ratio = self.random_crop
        rng = crop_generator(seed, place)
        size = size_to_shrink(encoded) if isinstance(encoded, bytes) else None
        if size is None:
            return random_resized_crop(pixels_of(encoded, **limits), self.image_size, rng, scale, ratio)
        # A large JPEG is decoded no larger than its crop needs.
        box = random_crop_box(*size, rng, scale, ratio)
        shrink = max(s for s in (1, 2, 4, 8) if s * self.image_size <= min(box.height, box.width) or s == 1)
        image = pixels_of(encoded, **limits, shrink=shrink)
        box = box.scale(image.shape[0] / size[0], image.shape[1] / size[1])
        return resize(box.cut(image), self.image_size, self.image_size)


class BatchStream(Iterator[HostBatch]):
    """Batches in order, decoded ahead. Close it (or use it in `with`): no worker process outlives that.

    Unreadable images get weight 0 where they come, and are entered in `bad_images`. Raises `RunError` once there are
    more than that allows, or when a worker process died or hangs.
    """

    def __init__(self, places: _Places, workers: int | None, prefetch: int, bad_images: BadImages | None) -> None:
        refuse_in_worker()
        self._places = places
        self._bad_images = bad_images or BadImages()
        self._step = places.start_step
        workers = _processes(workers)
        self._watch = WorkerWatch() if workers else None
        self._chunks = _start(places, workers, prefetch)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop decoding and end the worker processes; harmless when repeated."""
        self._step = self._places.stop_step
        if self._chunks is not None:
            with nullcontext() if self._watch is None else self._watch.closing():
                self._chunks.close()
            self._chunks = None
            if self._watch is not None:
                # Grain's finished iterators are reference cycles that hold on to shared memory.
                gc.collect()

    def __next__(self) -> HostBatch:
        places = self._places
        if self._step >= places.stop_step:
            self.close()
            raise StopIteration
        start = places.step_start(self._step)
        indices = places.indices(start, start + places.local_batch)
        images = np.empty(
            (places.local_batch, places.image_size, places.image_size, places.channels), places.pixel_type
        )
        weights = (indices >= 0).astype(np.float32)
        if places.order is not None and (given := weights_of(places.source)) is not None:
            weights *= given[indices]
        for first in range(0, places.local_batch, _CHUNK):
            chunk = self._next_chunk()
            # A copy, because a worker's array is in shared memory that goes with it.
            images[first : first + _CHUNK] = chunk["images"]
            for slot, reason in chunk["bad"]:
                weights[first + slot] = 0.0
                self._enter(int(indices[first + slot]), reason)
        self._step += 1
        labels = places.source.labels[indices]
        labels[indices < 0] = 0
        return HostBatch(images, labels, weights, indices)

    def _next_chunk(self) -> dict[str, Any]:
        if self._watch is None:
            return next(self._chunks)
        try:
            with self._watch.waiting(), self._watch.starting():
                return next(self._chunks)
        except RuntimeError as error:
            if "terminated unexpectedly" not in str(error):
                raise
            self.close()
            raise RunError(self._watch.notice()) from None

    def _enter(self, index: int, reason: str) -> None:
        try:
            self._bad_images.add([(self._places.source.describe(index), reason)])
        except RunError:
            self.close()
            raise


def train_batches(
    source: ImageSource,
    order: Order,
    *,
    image_size: int,
    channels: int,
    crop: Literal["random_resized", "center"],
    crop_pct: float = 1.0,
    interpolation: Interpolation = "bilinear",
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    seed: int,
    workers: int | None = None,
    prefetch: int = 4,
    bad_images: BadImages | None = None,
    max_pixels: int = 50_000_000,
    pixel_type: str = "uint8",
    start_step: int = 0,
    stop_step: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> BatchStream:
    """The training batches of steps start..stop (None: for ever), the same for any start and workers.

    `workers` processes decode; 0: threads of this process; None: threads on up to 8 cores, else one process
    for every 8. About `prefetch` batches are decoded ahead. Without `bad_images` the first unreadable image is an
    error. Flips, colour and normalisation are the device's.

    Raises `UserError` where the batch does not divide by the processes; for the rest see `BatchStream`.
    """
    places = _Places(
        source=source,
        order=order,
        batch_size=_divisible(order.batch_size, process_count),
        process_index=process_index,
        process_count=process_count,
        start_step=start_step,
        stop_step=_ENDLESS if stop_step is None else stop_step,
        image_size=image_size,
        channels=channels,
        max_pixels=max_pixels,
        pixel_type=pixel_type,
        crop_pct=crop_pct,
        interpolation=interpolation,
        random_crop=(seed, scale, ratio) if crop == "random_resized" else None,
    )
    return BatchStream(places, workers, prefetch, bad_images)


def eval_batches(
    source: ImageSource,
    *,
    batch_size: int,
    image_size: int,
    channels: int,
    crop_pct: float = 1.0,
    interpolation: Interpolation = "bilinear",
    workers: int | None = None,
    prefetch: int = 4,
    bad_images: BadImages | None = None,
    max_pixels: int = 50_000_000,
    pixel_type: str = "uint8",
    process_index: int = 0,
    process_count: int = 1,
) -> BatchStream:
    """Every image exactly once, in the source's order, cropped centrally; the last batch padded, weight 0.

    All processes get the same number of batches. Options and errors as for `train_batches`.
    """
    places = _Places(
        source=source,
        order=None,
        batch_size=_divisible(batch_size, process_count),
        process_index=process_index,
        process_count=process_count,
        start_step=0,
        stop_step=-(-len(source) // batch_size),
        image_size=image_size,
        channels=channels,
        max_pixels=max_pixels,
        pixel_type=pixel_type,
        crop_pct=crop_pct,
        interpolation=interpolation,
        random_crop=None,
    )
    return BatchStream(places, workers, prefetch, bad_images)


def prefetch_to_device(
    batches: Iterator[HostBatch], put: Callable[[HostBatch], T], depth: int
) -> Generator[T, None, None]:
    """`put(batch)` for each batch, called in a background thread up to `depth` + 1 ahead of the consumer.

    What goes wrong in the thread is raised here. Closing the generator stops the thread, not `batches`.
    """
    items = (put(batch) for batch in batches)
    pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch-to-device")
    try:
        ready = deque(pool.submit(next, items) for _ in range(depth + 1))
        while True:
            try:
                item = ready.popleft().result()
            except StopIteration:
                return
            ready.append(pool.submit(next, items))
            yield item
    finally:
        pool.shutdown(cancel_futures=True)


def _divisible(batch_size: int, process_count: int) -> int:
    if batch_size % process_count:
        near = max(1, round(batch_size / process_count)) * process_count
        raise UserError(f"batch_size {batch_size} does not divide by {process_count} processes; try {near}")
    return batch_size


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processes(workers: int | None) -> int:
    """How many processes decode where that is left open."""
    if workers is not None:
        return workers
    return 0 if _cores() <= _THREADS_A_PROCESS else -(-_cores() // _THREADS_A_PROCESS)


def _start(places: _Places, workers: int, prefetch: int) -> Any:
    """Grain's iterator over the chunks, in order."""
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():  # Grain reads its own flags, also where nobody else uses absl's
        flags.FLAGS.mark_as_parsed()
    threads = -(-_cores() // max(workers, 1))
    ahead = prefetch * places.chunks_a_step
    if workers == 0:
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, ahead))
        return iter(grain.MapDataset.source(places).to_iter_dataset(options))
    # A worker holds what its threads work on, besides what waits for the parent.
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    dataset = grain.MapDataset.source(places).to_iter_dataset(options)
    return iter(
        dataset.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=-(-ahead // workers)),
            worker_init_fn=_prepare_worker,
        )
    )


def _prepare_worker(index: int, count: int) -> None:
    """First thing in a worker process: one thread per image, no GPU, and no life of its own."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    import cv2

    cv2.setNumThreads(0)
    parent = parent_process()
    if parent is not None:
        follow(parent.sentinel, lambda: os._exit(1))
