"""The compiled program of a run, and which options enter it as arguments, so that runs can share it.

A run on its own has its options as constants. Runs of a sweep that differ in nothing but `VALUES` give these as
arguments: the program is then traced from a config whose numbers are traced, and compiled once for all of them.
"""

from __future__ import annotations

import copy
import json
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxtrain.config import FREE_ON_RESUME, Config, put
from jaxtrain.runs.resolve import total_steps
from jaxtrain.training.compiled import flops
from jaxtrain.training.drop_rates import RATES, WithDropRates
from jaxtrain.training.inference import Inference
from jaxtrain.training.optimizers import Followed, make_schedule
from jaxtrain.training.parallel import JitStrategy, Strategy
from jaxtrain.training.state import Batch, TrainState
from jaxtrain.training.step import TrainStep
from jaxtrain.training.technique import Metrics, Technique

VALUES = (
    "seed",
    "optimizer.learning_rate",
    "optimizer.weight_decay",
    "train.label_smoothing",
    "train.ema_decay",
    *(f"loss.{option}" for option in ("target_threshold", "gamma", "gamma_positive", "clip", "epsilon", "q")),
    "loss.logit_adjustment",
    "augment.mixup",
    "augment.cutmix",
    "finetune.head_learning_rate",
    *RATES,
)
"""Options whose value changes no shape and no branch of the program (except by being off)."""
_OFF_AT_ZERO = {"augment.mixup", "augment.cutmix", "loss.logit_adjustment", *RATES}
_KEPT_PROGRAMS = 4

Values = Mapping[str, Any]
"""Scalars by option path."""


def values_of(config: Config) -> dict[str, Any]:
    """The scalars of a resolved config that its program can take as arguments; what is off is not among them."""
    found: dict[str, Any] = {}
    for path in VALUES:
        value = config.get(path)
        constant = path in RATES and config.model.remat  # a block that is computed again has its rates fixed
        if value is not None and not constant and not (path in _OFF_AT_ZERO and value == 0):
            found[path] = np.uint32(value) if path == "seed" else np.float32(value)
    return found


def with_values(config: Config, values: Values) -> Config:
    """`config` with these (traced) scalars in place of its own, unchecked; without drop rates, which models keep."""
    top: dict[str, Any] = {}
    for path, value in values.items():
        if path in RATES:
            continue
        section, _, key = path.rpartition(".")
        if section:
            top[section] = top.get(section, getattr(config, section)).model_copy(update={key: value})
        else:
            top[key] = value
    return config.model_copy(update=top)


def program_key(technique: Technique, config: Config) -> str:
    """What resolved configs share whose runs can share a program."""
    tree = config.model_dump(mode="json")
    for path in values_of(config):
        put(tree, path, "given")
    for path in FREE_ON_RESUME:
        if path not in ("parallel", "train.steps_per_call", "train.on_nonfinite"):
            put(tree, path, None)
    return json.dumps([type(technique).__module__, type(technique).__qualname__, tree], sort_keys=True)


class Program:
    """Forward passes, initial state and step of one network on one data set; what is compiled stays compiled."""

    def __init__(self, technique: Technique, images: int, strategy: Strategy) -> None:
        """`technique` is bound to the run; `images` is the number of training images."""
        self._technique, self._images = technique, images
        self.strategy = strategy
        self.inference = Inference(technique, strategy)
        self.compiled: dict[int, Callable[..., Any]] = {}
        """Compiled steps by the number of steps in a call; the loop fills it."""
        self.data: Any = None
        """The training set on the devices, where it fits; the first run puts it there."""
        self.initial_state = jax.jit(self._initial_state)
        """The state before the first step, for some values."""

    def spec(self, values: Values) -> TrainStep:
        """What the step is made of, for these values."""
        config, images = with_values(self._technique.config, values), self._images
        learner = self._technique.bind(config)
        schedule = Followed(
            make_schedule(
                config.schedule,
                peak=0.0 if config.optimizer.learning_rate is None else config.optimizer.learning_rate,
                steps=total_steps(config, images),
                warmup_steps=math.floor((config.schedule.warmup_epochs or 0.0) * images / config.train.batch_size),
            )
        )
        built = self._technique.config
        factors = {path.rpartition(".")[2]: values[path] / built.get(path) for path in RATES if path in values}
        return TrainStep(
            learner=WithDropRates(learner, factors) if factors else learner,
            network=self.inference.network,
            optimizer=learner.make_optimizer(schedule),
            schedule=schedule,
            accumulate=config.train.accumulate,
            ema_decay=config.train.ema_decay,
            skip_nonfinite=config.train.on_nonfinite == "skip",
        )

    def step(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """The pure step; its values are those of the state."""
        return self.spec(state.values)(state, batch)

    def split(self, accumulate: int) -> Program:
        """The same with each batch in this many parts; nothing of it is compiled yet."""
        other, config = copy.copy(self), self._technique.config.replace(**{"train.accumulate": accumulate})
        other._technique, other.compiled = self._technique.bind(config), {}
        return other

    def flops(self, batch: Batch, values: Values) -> float:
        """Of one step, from the shapes of a global batch: see `compiled.flops`."""
        cpu = JitStrategy(jax.local_devices(backend="cpu")[:1])
        alone = Program(self._technique, self._images, cpu).split(1)  # of a batch in parts one part would be counted
        return flops(alone.step, jax.eval_shape(alone.initial_state, values), batch)

    def _initial_state(self, values: Values) -> TrainState:
        technique = self._technique.bind(with_values(self._technique.config, values))
        spec = self.spec(values)
        return spec.start(spec.network.fresh(technique), jax.random.key(technique.config.seed), dict(values))


class Programs:
    """The programs of runs that follow each other in one process."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Program] = OrderedDict()

    def get(self, key: str, make: Callable[[], Program]) -> Program:
        """The program of that key, made where it is missing; a few of the latest are kept."""
        if key not in self._kept:
            self._kept[key] = make()
            if len(self._kept) > _KEPT_PROGRAMS:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]
