"""Everything up to the first step: data on the devices, network, optimizer, initial state, compiled program."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import jax
import numpy as np
from numpy.typing import DTypeLike

from jaxtrain.config import Config, chosen
from jaxtrain.data.base import ArraySource, Dataset, weights_of
from jaxtrain.data.order import Order, sampler
from jaxtrain.data.residence import make_resident
from jaxtrain.runs.few_shot import few_shot_indices
from jaxtrain.runs.imbalance import adjusted_shares, class_weights, pos_weight
from jaxtrain.runs.program import Program, Programs, program_key, values_of
from jaxtrain.runs.resolve import mixes_images
from jaxtrain.training.chips import peak_flops
from jaxtrain.training.feed import Feed, ResidentFeed, open_stream
from jaxtrain.training.inference import Inference
from jaxtrain.training.parallel import Strategy, check_batch_size, make_strategy
from jaxtrain.training.state import Batch, TrainState
from jaxtrain.training.step import TrainStep
from jaxtrain.training.technique import Binding, Technique

T = TypeVar("T", bound=Technique)


@dataclass
class Setup:
    """What training needs, made before the first step."""

    config: Config
    dataset: Dataset
    strategy: Strategy
    inference: Inference
    feed: Feed
    streamed: bool
    state: TrainState
    step: TrainStep
    program: Program

    def seconds_at_peak(self) -> float | None:
        """Of a step on one device that does nothing but bfloat16 products; None where its peak is not known."""
        peak = peak_flops(self.strategy.devices[0].device_kind)
        if peak is None:
            return None
        train, size = self.dataset.train, chosen(self.config.data.image_size)
        shape = (size, size, chosen(self.config.data.channels))
        if not self.streamed and isinstance(train, ArraySource):
            shape = train.images.shape[1:]

        def rows(shape: tuple[int, ...], dtype: DTypeLike) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((self.config.train.batch_size, *shape), dtype)

        arrays = [rows(shape, self.config.data.pixel_type), rows(train.labels.shape[1:], train.labels.dtype)]
        if weights_of(train) is not None:
            arrays.append(rows((), np.float32))
        try:
            return self.program.flops(Batch(*arrays), self.state.values) / peak
        except RuntimeError:  # JAX_PLATFORMS leaves the CPU out
            return None


def prepare(technique: T, dataset: Dataset, programs: Programs | None = None) -> tuple[T, Setup]:
    """Build everything up to the first step: data on the device, model, optimizer, initial state (on the host).

    Takes a technique bound to a resolved config; gives it bound to the data set's classes too.

    With `programs` the options in `VALUES` enter the step as arguments, and what an earlier run compiled is used again.
    """
    config = technique.config
    if config.data.shots is not None:
        places = few_shot_indices(config, dataset.train.labels, dataset.class_names)
        dataset = replace(dataset, train=dataset.train.select(places))
    resident = make_resident(dataset, config)
    streamed = resident is None
    dataset = resident or dataset
    strategy = make_strategy(config.parallel, everywhere=True)
    check_batch_size(
        config.train.batch_size,
        devices=len(strategy.devices),
        accumulate=config.train.accumulate,
        pairs=mixes_images(config),
    )
    each = class_weights(config.train, dataset.class_counts, dataset.class_names)
    weights, shares = None if each is None else tuple(each.tolist()), adjusted_shares(config, dataset)
    positive = pos_weight(config.train, dataset.train.labels, dataset.class_names)
    binding = Binding(dataset.num_classes, weights, shares, positive, streamed, training=True)
    technique = technique.bind(config, binding)

    def make() -> Program:
        return Program(technique, len(dataset.train), strategy)

    if programs is None:
        program, values = make(), {}
    else:
        run = f"{dataset.num_classes} {len(dataset.train)} {streamed}"
        key = f"{program_key(technique, config)} {weights} {shares} {positive} {run}"
        program, values = programs.get(key, make), values_of(config)
    feed = make_feed(config, dataset, program, streamed=streamed)
    state, step = program.initial_state(values), program.spec(values)
    setup = Setup(config, dataset, program.strategy, program.inference, feed, streamed, state, step, program)
    return technique, setup


def make_feed(config: Config, dataset: Dataset, program: Program, *, streamed: bool) -> Feed:
    """Training images from the device, or from a stream."""
    strategy = program.strategy
    drawn = sampler(config.data, dataset.train.labels, dataset.num_classes)
    order = Order(len(dataset.train), config.train.batch_size, config.seed, drawn)
    if streamed:
        return open_stream(dataset.train, order, config, strategy, dataset.bad_images)
    assert isinstance(dataset.train, ArraySource)
    calls = config.train.steps_per_call or 1
    feed = ResidentFeed(dataset.train, order, strategy, steps_per_call=calls, data=program.data)
    program.data = feed.data
    return feed
