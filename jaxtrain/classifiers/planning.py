"""A run on paper: what its very step takes on accelerators that are not here, as their compiler says."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.backend import compiling_for
from jaxtrain.classifiers.base import BaseClassifier
from jaxtrain.config import Config, chosen
from jaxtrain.data.base import ArraySource, Dataset, ImageSource, weights_of
from jaxtrain.data.decode import read_image
from jaxtrain.data.known import Known, known_source
from jaxtrain.data.order import Order
from jaxtrain.data.sources import load_dataset
from jaxtrain.data.transforms import center_crop_resize
from jaxtrain.errors import RunError, UserError
from jaxtrain.runs.program import Program
from jaxtrain.runs.resolve import mixes_images, total_steps
from jaxtrain.training.chips import Target
from jaxtrain.training.compiled import Compiled, flops
from jaxtrain.training.feed import ResidentFeed, StreamFeed
from jaxtrain.training.inference import Inference
from jaxtrain.training.memory import out_of_memory
from jaxtrain.training.meter import compile_step
from jaxtrain.training.parallel import JitStrategy, check_batch_size
from jaxtrain.training.state import Batch, Tree
from jaxtrain.training.technique import Binding

_SAMPLE = 64


class Size(NamedTuple):
    """What a plan has to know of images that are not here."""

    images: int
    classes: int


@dataclass(frozen=True)
class Way:
    """One strategy on the target."""

    strategy: str
    batch: int
    """Images in a step, over all chips."""
    compiled: Compiled | None
    """None where the step does not fit in the compiler's eyes either."""
    parameters: int
    """Bytes on each chip."""
    optimizer: int
    """Bytes on each chip, with averages and batch statistics."""
    largest: int | None = None
    """The largest batch that fits; None where it was not looked for."""

    @property
    def needs(self) -> float:
        """Bytes of a chip's memory; infinite where the compiler finds no place for them."""
        return math.inf if self.compiled is None else self.compiled.memory


class Embedded(NamedTuple):
    """What a run of feature extraction puts through its backbone."""

    images: int
    """Training images, all views, and validation images where they are here."""
    features: int
    """Numbers of each vector."""

    @property
    def bytes(self) -> int:
        """Of all vectors, in float32."""
        return 4 * self.images * self.features


class Decoding(NamedTuple):
    """What keeps up with the chips, as this machine decodes."""

    cores: int
    hosts: int
    """With as many cores as this one."""


@dataclass(frozen=True)
class Forecast:
    """What `plan` finds."""

    config: Config
    """Resolved."""
    target: Target
    ways: list[Way]
    flops: float
    """Of each image, by the compiler's count before it optimises."""
    steps: int
    """Of the whole run; for feature extraction forward passes."""
    decoded: float | None
    """Training images that one core here decodes in a second; None where they lie on the device."""
    embedded: Embedded | None = None
    """For feature extraction."""

    def fits(self, way: Way) -> bool:
        """Whether a chip holds it."""
        return way.needs <= self.target.chip.usable

    def seconds(self, way: Way) -> tuple[float, str]:
        """Of one step, and where that comes from."""
        assert way.compiled is not None
        chip = self.target.chip
        bounds = {
            "products": self._at_peak(way),
            "memory": way.compiled.touched / (chip.gb_per_second * 1e9),
        }
        if way.compiled.cycles:
            return way.compiled.cycles / (chip.ghz * 1e9), "compiler's cycles"
        name = max(bounds, key=lambda each: bounds[each])
        return bounds[name], f"roofline, bound by {name}"

    def utilisation(self, way: Way) -> float:
        """Share of the peak FLOPs."""
        return self._at_peak(way) / self.seconds(way)[0]

    def rate(self, way: Way) -> float:
        """Images per second on all chips."""
        return way.batch / self.seconds(way)[0]

    def decoding(self, way: Way) -> Decoding | None:
        """None where the images lie on the device, or are not here."""
        if not self.decoded:
            return None
        cores = math.ceil(self.rate(way) / self.decoded)
        return Decoding(cores, math.ceil(cores / (os.cpu_count() or 1)))

    def _at_peak(self, way: Way) -> float:
        return self.flops * way.batch / (self.target.chips * self.target.chip.tflops * 1e12)


def plan(
    classifier: BaseClassifier,
    target: Target,
    size: Size | None = None,
    *,
    strategies: Sequence[str] = ("jit", "fsdp"),
    largest: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> Forecast:
    """Compile the step of a run (of FE: its forward pass) for a target, replicated (jit) and sharded (fsdp).

    `size`: of a data set that is not here. `largest`: look for the largest batch that fits, too, which compiles a few
    times more. Raises UserError for options that cannot be, and where the compiler is not installed.
    """
    devices = target.devices()
    with compiling_for(target.platform):
        dataset, here = _dataset(classifier, size, say)
        config = classifier.resolve(classifier.config, dataset)
        technique = classifier.bind(config)
        ways, each = [], 0.0
        for name in strategies if config.technique != "fe" else ("jit",):
            draft = _Draft(technique, dataset, JitStrategy(devices, fsdp=name == "fsdp"), target)
            say(f"compiling for {target.kind}:{target.shape}, {name}")
            each = each or draft.flops() / draft.batch
            way = draft.way(draft.batch)
            if largest and config.technique != "fe":
                way = replace(way, largest=_largest(draft, way, target, say))
            ways.append(way)
        embedded = _embedded(draft, dataset, here) if config.technique == "fe" else None
    steps = total_steps(config, len(dataset.train)) if embedded is None else math.ceil(embedded.images / ways[0].batch)
    resident = config.technique != "fe" and config.data.loader == "device"
    decoded = _decoded(dataset.train, config) if here and not resident else None
    return Forecast(config, target, ways, each, steps, decoded, embedded)


class _Draft:
    """The program of a run on devices that are not here."""

    def __init__(self, technique: BaseClassifier, dataset: Dataset, strategy: JitStrategy, target: Target) -> None:
        config = technique.config
        self._options = target.compiler_options
        self.config, self.strategy, self.dataset = config, strategy, dataset
        self.name = "fsdp" if strategy.sharded else "jit"
        self.batch = config.train.batch_size if config.technique != "fe" else chosen(config.features.batch_size)
        streamed = config.data.loader == "stream"
        size = chosen(config.data.image_size)
        native = not streamed and config.augment.crop == "random_resized" and dataset.uniform_size
        self.shape = (*(native or (size, size)), chosen(config.data.channels))
        self.technique = technique.bind(config, Binding(dataset.num_classes, None, cropped=streamed, training=True))
        if config.technique != "fe":
            self.check(self.batch)

    def check(self, batch: int) -> None:
        """UserError where a batch cannot be split."""
        check_batch_size(batch, devices=len(self.strategy.devices), accumulate=self.config.train.accumulate,
                         pairs=mixes_images(self.config))  # fmt: skip

    @property
    def unit(self) -> int:
        """Batches are multiples of it."""
        pairs = 2 if mixes_images(self.config) else 1
        return len(self.strategy.devices) * self.config.train.accumulate * pairs

    def way(self, batch: int) -> Way:
        """Compiled with this batch."""
        function, weights, *arguments = self._forward(batch) if self.config.technique == "fe" else self._step(batch)
        parameters = _held(_parameters(weights))
        try:
            compiled = Compiled.of(function.lower(weights, *arguments).compile(self._options))
        except jax.errors.JaxRuntimeError as error:
            if not out_of_memory(error):
                raise
            compiled = None
        return Way(self.name, batch, compiled, parameters, _held(weights) - parameters)

    def flops(self) -> float:
        """Of one step, or forward pass, over all chips."""
        given = Batch(
            *(
                jax.ShapeDtypeStruct(each.shape, each.dtype)
                for each in self._arrays(self.strategy.shaped_rows, self.batch)
            )
        )
        if self.config.technique != "fe":
            return Program(self.technique, len(self.dataset.train), self.strategy).flops(given, {})
        inference = Inference(self.technique, self.strategy)
        return flops(inference.function("embed"), inference.network.shapes, given)

    def features(self) -> int:
        """Numbers of the vector that the forward pass gives for an image."""
        function, weights, given = self._forward(self.batch)
        return int(jax.eval_shape(function, weights, given).shape[-1])

    def _forward(self, batch: int) -> tuple[Any, ...]:
        """The forward pass that embeds, and shapes of what it is given."""
        inference = Inference(self.technique, self.strategy)
        given = Batch(*self._arrays(self.strategy.shaped_rows, batch))
        return inference.compiled("embed"), self.strategy.shaped(inference.network.shapes), given

    def _step(self, batch: int) -> tuple[Any, ...]:
        """The step as it runs, with its feed, and shapes of what it is given."""
        config, strategy, images = self.config, self.strategy, len(self.dataset.train)
        program = Program(self.technique, images, strategy)
        state = strategy.shaped(jax.eval_shape(program.initial_state, {}))
        if config.data.loader == "stream":
            step = compile_step(program.step, StreamFeed(lambda _: iter(())), strategy, 1)
            return step, state, Batch(*self._arrays(strategy.shaped_rows, batch))
        data, source = self._arrays(strategy.shaped_whole, images), cast(ArraySource, self.dataset.train)
        calls, order = chosen(config.train.steps_per_call), Order(images, batch, config.seed)
        feed = ResidentFeed(source, order, strategy, steps_per_call=calls, data=data)
        plan = strategy.shaped_whole((feed.window, batch), jnp.int32)
        return compile_step(program.step, feed, strategy, 1), state, *data, plan

    def _arrays(self, shaped: Callable[..., Any], count: int) -> tuple[Any, ...]:
        """Images and labels, and weights where the data set has some."""
        labels, pixels = self.dataset.train.labels, np.dtype(self.config.data.pixel_type)
        arrays = [shaped((count, *self.shape), pixels), shaped((count, *labels.shape[1:]), labels.dtype)]
        if weights_of(self.dataset.train) is not None:
            arrays.append(shaped((count,), jnp.float32))
        return tuple(arrays)


def _embedded(draft: _Draft, dataset: Dataset, here: bool) -> Embedded:
    val = len(dataset.val) if here and dataset.val is not None else 0
    return Embedded(len(dataset.train) * draft.config.features.views + val, draft.features())


def _largest(draft: _Draft, first: Way, target: Target, say: Callable[[str], None]) -> int:
    """The largest batch that fits, at most the training set; 0: none does.

    Memory grows in proportion to the batch: two that fit say where the end should be, which is then compiled too.
    """
    room = int(target.chip.usable)
    most = max(len(draft.dataset.train) // draft.unit * draft.unit, draft.unit)
    known = {first.batch: first.needs}

    def fits(batch: int) -> bool:
        if batch not in known:
            known[batch] = draft.way(batch).needs
            shown = "too large" if known[batch] > room else f"{known[batch] / 2**30:.2f} GiB"
            say(f"  {batch:,} images: {shown}")
        return known[batch] <= room

    def whole(batch: float) -> int:
        return min(max(int(batch) // draft.unit, 1) * draft.unit, most)

    low = first.batch
    while not fits(low):
        if low == draft.unit:
            return 0
        low = whole(low / 2)
    other = whole(low * 2) if fits(whole(low * 2)) else whole(low / 2)
    if other == low:
        return low
    fits(other)
    slope = (known[other] - known[low]) / (other - low)
    guess = whole(low + (room - known[low]) / slope) if slope > 0 else most
    low = max(low, other) if fits(max(low, other)) else low
    while guess > low and not fits(guess):
        guess = whole(guess * 0.94)
    return max(guess, low)


def _dataset(classifier: BaseClassifier, size: Size | None, say: Callable[[str], None]) -> tuple[Dataset, bool]:
    """The data set, and whether it is here: else one of that size, or its known one, whose images nobody looks at."""
    data, known = classifier.data_config, Known()
    if size is None:
        try:
            return load_dataset(data), True
        except (UserError, RunError) as problem:
            known = known_source(data.name)
            if known.size is None:
                raise UserError(f"{problem}; --images and --classes plan without it") from None
            size = Size(*known.size)
            say(f"{problem}; planning for its {size.images:,} images of {size.classes:,} classes")
    images, classes = size
    own = classifier.pretrained.image_size if classifier.pretrained else 32
    shape = known.shape or (data.image_size or own, 3)
    side, channels = shape[0], data.channels or shape[1]

    class Sized(ArraySource):
        def __len__(self) -> int:
            return images

    few = np.arange(min(images, 128))
    source = Sized(np.zeros((len(few), side, side, channels), data.pixel_type), (few % classes).astype(np.int32))
    names = tuple(f"class {number}" for number in range(classes))
    alike = known.shape and (side, side)
    dataset = Dataset(data.name, names, source, source, lambda: source, channels, alike, flips=True,
                      mean=(0.5,) * channels, std=(0.25,) * channels, bits=data.bits or 8)  # fmt: skip
    return dataset, False


def _parameters(weights: Any) -> Tree:
    """Of a train state, or of the weights of a forward pass."""
    if isinstance(weights, dict):
        return weights["params"], weights["frozen"]
    return weights.params, weights.frozen


def _held(tree: Tree) -> int:
    """Bytes that a chip has of the arrays."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * _width(leaf.dtype) for leaf in jax.tree.leaves(tree))


def _width(dtype: Any) -> int:
    return 8 if jnp.issubdtype(dtype, jax.dtypes.prng_key) else np.dtype(dtype).itemsize


def _decoded(source: ImageSource, config: Config) -> float:
    """Images that one core reads, decodes and resizes in a second."""
    places = np.linspace(0, len(source) - 1, min(_SAMPLE, len(source))).astype(int)
    data, start = config.data, time.perf_counter()
    for place in places:
        image = read_image(source, int(place), channels=chosen(data.channels), max_pixels=data.max_pixels)
        center_crop_resize(image, chosen(data.image_size), chosen(data.crop_pct), chosen(data.interpolation))
    return len(places) / (time.perf_counter() - start)
