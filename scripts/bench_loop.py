"""One model under our whole loop, and under the barest loop over the same step."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain import Config, PTClassifier
from jaxtrain.data.arrays import from_arrays
from jaxtrain.data.base import ArraySource
from jaxtrain.runs.callbacks import Recording, Saving
from jaxtrain.runs.report import Reporter
from jaxtrain.runs.resolve import resolve, timetable
from jaxtrain.runs.setup import prepare
from jaxtrain.runs.stepwise import evaluator
from jaxtrain.tracking import Tracker
from jaxtrain.training.agreement import Agreement
from jaxtrain.training.checkpoints import Checkpoints
from jaxtrain.training.hang import HangWatch
from jaxtrain.training.lanes import Alone
from jaxtrain.training.loop import Loop, Member
from jaxtrain.training.meter import compile_step
from jaxtrain.training.parallel import Strategy, must_block
from jaxtrain.training.progress import Progress
from jaxtrain.training.signals import StopRequest
from jaxtrain.training.state import Batch

SHAPES = {"cnn_small": (28, 28, 1), "linear": (16, 16, 3)}
BATCH = 128


class Bench:
    """Rounds of this many steps, an epoch each; both variants train the same step, each its own state."""

    def __init__(self, model: str, steps: int) -> None:
        generator = np.random.default_rng(0)
        count = round(steps * BATCH / 0.95)
        images = generator.integers(0, 256, (count, *SHAPES[model]), np.uint8)
        dataset = from_arrays(images, np.arange(count) % 10)
        options = {"model.name": model, "augment.policy": "none", "train.epochs": 100.0, "data.val_fraction": 0.05}
        self._config = resolve(Config().replace(**options, quiet=True), dataset)
        _, setup = prepare(PTClassifier(self._config).bind(self._config), dataset)
        self._setup = setup
        self._steps, self._step = steps, setup.step
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        tracking = self._config.tracking.model_copy(update={"uri": f"sqlite:///{folder}/mlflow.db"})
        self._tracker = Tracker.start(tracking, run_dir=folder, experiment="PT", run_name="bench", params={}, tags={})
        self._tracker.wait_run_id(60.0)
        self._checkpoints = Checkpoints(folder / "checkpoints", keep=2)
        self._stop = StopRequest()
        job: Any = SimpleNamespace(reporter=Reporter(self._config, folder))
        saving = Saving(self._tracker, self._checkpoints, dataset.bad_images)
        self._hang = HangWatch(10.0, folder / "stacks.txt")
        self._callbacks = (Recording(self._tracker, job), saving)
        self._progress = Progress()
        self._state, self._compiled = setup.strategy.place(setup.state), dict[int, Any]()
        self._table = timetable(self._config, len(dataset.train), streamed=False)
        self._evaluate = evaluator(setup, lambda: False)
        self._validation_seconds = 0.0
        self._bare_state: Any = setup.strategy.place(jax.tree.map(jnp.copy, setup.state))
        self._bare = compile_step(self._step, setup.feed, setup.strategy, 1)
        self._host_feed = HostFeed(setup.dataset.train, setup.strategy)
        self._host_step = compile_step(self._step, self._host_feed, setup.strategy, 1)
        self.round()

    def round(self) -> dict[str, float]:
        """Milliseconds per step of each variant."""
        times = {"bare": self._time(self._run_bare)}
        self._validation_seconds = 0.0
        times["jaxtrain"] = self._time(self._run_ours)
        times["jaxtrain - validation"] = times["jaxtrain"] - self._validation_seconds / self._steps * 1e3
        self._checkpoints.wait()
        if jax.default_backend() != "cpu":
            times["host-fed"] = self._time(self._run_host_fed)
        return times

    def close(self) -> None:
        """End the tracking."""
        self._tracker.finish("FINISHED")
        self._checkpoints.close()
        self._folder.cleanup()

    def _time(self, run: Any) -> float:
        start = time.perf_counter()
        run()
        return (time.perf_counter() - start) / self._steps * 1e3

    def _run_bare(self) -> None:
        arguments = self._setup.feed.args(0)
        for _ in range(self._steps):
            self._bare_state, metrics = self._bare(self._bare_state, *arguments)
            if must_block(self._setup.strategy):
                jax.block_until_ready(metrics)
        jax.block_until_ready((self._bare_state, metrics))

    def _run_ours(self) -> None:
        table = replace(self._table, total_steps=self._progress.step + self._steps)
        setup = self._setup
        lane = Alone(self._step, setup.feed, setup.strategy, self._timed_evaluate, self._compiled)
        member = Member(self._config, Path(self._folder.name), (), self._callbacks, self._progress)
        Loop(lane, [self._state], [member], table, Agreement(self._stop), self._hang).run()
        if member.ended is not None:
            raise member.ended
        self._state = member.state

    def _timed_evaluate(self, state: Any) -> list[dict[str, float]]:
        jax.block_until_ready(state)  # what is still to be done of the steps is not validation
        start = time.perf_counter()
        metrics = self._evaluate(state.eval_weights)
        self._validation_seconds += time.perf_counter() - start
        return [metrics]

    def _run_host_fed(self) -> None:
        for step in range(self._steps):
            self._bare_state, metrics = self._host_step(self._bare_state, *self._host_feed.args(step))
        jax.block_until_ready((self._bare_state, metrics))


class HostFeed:
    """One call a step, its batch sent from the host: how most loops do it."""

    def __init__(self, source: ArraySource, strategy: Strategy) -> None:
        self._source, self._strategy = source, strategy

    def args(self, step: int) -> tuple[Batch]:
        """The batch of a step, on the device."""
        index = np.arange(step * BATCH, (step + 1) * BATCH) % len(self._source)
        return (self._strategy.shard(Batch(self._source.images[index], self._source.labels[index])),)

    def batch(self, step: jax.Array, batch: Batch) -> Batch:
        """It is one already."""
        return batch

    def close(self) -> None:
        """Nothing to stop."""
