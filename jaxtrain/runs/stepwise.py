"""Learning by gradient steps: what a run of PT and of FT does between its directory and its result."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxtrain.config import Config
from jaxtrain.data.base import ArraySource, Dataset, ImageSource
from jaxtrain.data.digest import data_digest
from jaxtrain.data.order import Order
from jaxtrain.data.residence import make_resident
from jaxtrain.errors import RunError, UserError
from jaxtrain.runs.few_shot import few_shot_indices
from jaxtrain.runs.learning import Job, Learned
from jaxtrain.runs.program import Program, Programs, program_key, values_of
from jaxtrain.runs.recovery import diagnosis, fit_memory, too_large
from jaxtrain.runs.report import stepwise_plan, write_curves
from jaxtrain.runs.resolve import mixes_images, timetable
from jaxtrain.screen.console import Plan
from jaxtrain.training import processes
from jaxtrain.training.agreement import Agreement
from jaxtrain.training.checkpoints import Checkpoints, Restored
from jaxtrain.training.feed import Feed, ResidentFeed, open_stream
from jaxtrain.training.group import Member
from jaxtrain.training.hang import HangWatch
from jaxtrain.training.inference import Batches, Inference, host_batches, resident_batches
from jaxtrain.training.loop import EvaluationStoppedError, LoopResult, Progress, Timetable, snapshot, train
from jaxtrain.training.memory import out_of_memory
from jaxtrain.training.nonfinite import Diverged
from jaxtrain.training.parallel import Strategy, check_batch_size, make_strategy
from jaxtrain.training.state import TrainState, Tree, from_arrays, moved_to
from jaxtrain.training.step import StepSpec

if TYPE_CHECKING:
    from jaxtrain.classifiers.base import BaseClassifier
    from jaxtrain.tracking import Tracker

_log = logging.getLogger(__name__)
Evaluate = Callable[[TrainState], dict[str, float]]


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
    spec: StepSpec
    program: Program


class Stepwise:
    """A run of optimizer steps, resumed from its newest sound checkpoint."""

    def __init__(self, job: Job) -> None:
        """Builds everything up to the first step. Raises RunError where the images are not those of the run so far."""
        self._job = job
        self._checkpoints = Checkpoints(job.directory.checkpoints, keep=job.config.checkpoint.keep)
        self.setup = setup = prepare(job.classifier, job.config, job.dataset, job.part.programs if job.part else None)
        self.dataset = setup.dataset
        self._restored = restored = restore_everywhere(self._checkpoints)
        self.history = restored.meta["history"] if restored else []
        self._progress = Progress(**restored.meta["progress"]) if restored else Progress()
        if restored:
            _check_same_data(restored, setup.dataset)
            setup.state = from_arrays(restored.state, like=setup.state)
        else:
            setup.state = job.classifier.start(job, setup)
        # Training gives its arrays away: what is needed to begin again is kept as shapes, and numbers on the host.
        values = jax.device_get(setup.state.values)
        self._like = replace(jax.eval_shape(lambda: setup.state), values=values)
        if job.config.train.microbatch == "auto":
            fit_memory(setup, self._like, self._progress.step, job.directory)

    @property
    def step(self) -> int:
        """Optimizer steps done so far."""
        return self._progress.step

    @property
    def position(self) -> str:
        """Where a resumed run goes on."""
        return f"step {self.step:,}"

    def plan(self, run_dir: Path, look: str | None) -> Plan:
        """What a person is told before training."""
        return stepwise_plan(self.setup, run_dir, look)

    def learn(self, tracker: Tracker) -> Learned:
        """Train to the end; raises Interrupted, with a checkpoint saved, after a signal."""
        return self.conclude(self._train(tracker), tracker)

    def conclude(self, result: LoopResult, tracker: Tracker) -> Learned:
        """What was learned when training has ended; raises Interrupted after a signal."""
        self._checkpoints.wait()
        if result.interrupted:
            raise self._job.interrupted(f"stopped at step {result.progress.step}, which is saved", agreed=True)
        if self._job.part is None:
            write_curves(self._job.directory.path, tracker)
        return self._learned(result)

    @property
    def timetable(self) -> Timetable:
        """When what happens."""
        return timetable(self.setup.config, len(self.setup.dataset.train), streamed=self.setup.streamed)

    def member(self, tracker: Tracker) -> Member:
        """The run as one of a group; UserError where its images are streamed."""
        feed, best = self.setup.feed, self._restored.best if self._restored else None
        if not isinstance(feed, ResidentFeed):
            raise UserError("data.loader: images that are streamed cannot train runs side by side; set together: never")
        return Member(feed, self._watcher(tracker), self._progress, best)

    def _watcher(self, tracker: Tracker, hang: HangWatch | None = None) -> Watcher:
        return Watcher(tracker, self._job, self._checkpoints, data_digest(self.setup.dataset.train), hang)

    def after_test(self, test: ImageSource, tracker: Tracker) -> dict[str, Any]:
        """Nothing more."""
        return {}

    def close(self) -> None:
        """Waits for the last save."""
        self._checkpoints.close()

    def _train(self, tracker: Tracker) -> LoopResult:
        job, setup = self._job, self.setup
        with (
            HangWatch(setup.config.train.hang_minutes, job.directory.stacks, job.stop) as hang,
            job.reporter.progress(self.timetable, self._progress.step, self.history),
        ):
            watcher = self._watcher(tracker, hang)
            try:
                while True:
                    try:
                        return train(
                            setup.strategy.place(setup.state),
                            setup.program.step,
                            setup.feed,
                            setup.strategy,
                            self.timetable,
                            watcher,
                            watcher.patient(evaluator(setup, self._cut_off)),
                            monitor=setup.config.train.monitor,
                            progress=self._progress,
                            best=self._restored.best if self._restored else None,
                            compiled=setup.program.compiled,
                        )
                    except Diverged as error:
                        self._recover(error)
            except jax.errors.JaxRuntimeError as error:
                if not out_of_memory(error):
                    raise
                raise too_large(setup, self._like, self._progress.step) from error
            finally:
                setup.feed.close()

    def _cut_off(self) -> bool:
        """Whether a signal cuts an evaluation off: it may take longer than who sent it waits.

        Several processes stop together, between steps; and the runs of a sweep are validated side by side.
        """
        return self._job.part is None and processes.count() == 1 and self._job.stop.requested is not None

    def _recover(self, error: Diverged) -> None:
        """Goes back to the last good state and past the batches since, where that is asked for; else ends the run."""
        setup, options, rollbacks = self.setup, self.setup.config.train, self._progress.rollbacks + 1
        goes_on = options.on_nonfinite == "rollback" and rollbacks <= options.nonfinite_limit
        if self._job.part is not None and not goes_on:
            raise error  # a sweep has better things to do than to look for the layer
        traceback.clear_frames(error.__traceback__)  # the failed state takes as much memory as the one to come
        restored = restore_everywhere(self._checkpoints)
        if restored:
            progress, state = Progress(**restored.meta["progress"]), from_arrays(restored.state, like=self._like)
        else:
            setup.state = setup.program.initial_state(self._like.values)
            progress, state = Progress(), self._job.classifier.start(self._job, setup)
        if not goes_on:
            raise Diverged(diagnosis(setup, error, state, progress.step), error.step) from error
        _log.warning(
            "%s; back to the state of step %d and past the batches since (%d of at most %d times)",
            *(error, progress.step, rollbacks, options.nonfinite_limit),
        )
        progress.step, progress.rollbacks = error.step, rollbacks
        setup.state = moved_to(state, error.step)
        self._restored, self._progress = restored, progress

    def _learned(self, result: LoopResult) -> Learned:
        """The selected weights, and what the summary says of the way to them."""
        setup, progress = self.setup, result.progress
        last = setup.config.train.select == "last" or result.best is None
        weights: Tree = snapshot(result.state, setup.strategy) if last else result.best
        return Learned(
            weights=weights,
            class_weights=class_weights(setup.config, setup.dataset),
            example=np.asarray(next(host_batches(setup.config, setup.dataset.train, 1)).image),
            steps=progress.step,
            seconds=progress.seconds,
            images=progress.step * setup.config.train.batch_size,
            val_accuracy=(progress.latest if last else progress.best).get("val/accuracy"),
            best_step=progress.step if last else progress.best_step,
            devices=[str(device.device_kind) for device in setup.strategy.devices],
            summary=self._job.classifier.about() | self._troubles(),
        )

    def _troubles(self) -> dict[str, int]:
        """What did not go as the options say."""
        found = {"skipped_steps": self._progress.skipped, "rollbacks": self._progress.rollbacks}
        if self.setup.config.train.microbatch is not None:
            found["accumulate"] = self.setup.spec.accumulate
        return {name: count for name, count in found.items() if count}


def prepare(classifier: BaseClassifier, config: Config, dataset: Dataset, programs: Programs | None = None) -> Setup:
    """Build everything up to the first step: data on the device, model, optimizer, initial state (on the host).

    With `programs` the options in `VALUES` enter the step as arguments, and what an earlier run compiled is used again.
    """
    classifier.config = config
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
    weights = class_weights(config, dataset)
    classifier.prepare_inputs(dataset.num_classes, weights, cropped=streamed)

    def make() -> Program:
        return Program(classifier, config, len(dataset.train), strategy)

    if programs is None:
        program, values = make(), {}
    else:
        key = f"{program_key(classifier, config)} {weights} {dataset.num_classes} {len(dataset.train)} {streamed}"
        program, values = programs.get(key, make), values_of(config)
    feed = make_feed(config, dataset, program, streamed=streamed)
    state, spec = program.initial_state(values), program.spec(values)
    return Setup(config, dataset, program.strategy, program.inference, feed, streamed, state, spec, program)


def make_feed(config: Config, dataset: Dataset, program: Program, *, streamed: bool) -> Feed:
    """Training images from the device, or from a stream."""
    strategy = program.strategy
    order = Order(len(dataset.train), config.train.batch_size, config.seed)
    if streamed:
        return open_stream(dataset.train, order, config, strategy)
    assert isinstance(dataset.train, ArraySource)
    calls = config.train.steps_per_call or 1
    feed = ResidentFeed(dataset.train, order, strategy, steps_per_call=calls, data=program.data)
    program.data = feed.data
    return feed


def evaluator(setup: Setup, cut_off: Callable[[], bool]) -> Evaluate | None:
    """Validation metrics of a state; None where there is no validation set. `cut_off` is asked before each batch."""
    val, inference = setup.dataset.val, setup.inference
    if val is None:
        return None
    fixed = None if setup.streamed else resident_batches(inference, val)

    def batches() -> Batches:
        for batch in inference.batches(val) if fixed is None else fixed:
            if cut_off():
                raise EvaluationStoppedError
            yield batch

    def evaluate(state: TrainState) -> dict[str, float]:
        weights = {"params": state.eval_params, "frozen": state.frozen, "model_state": state.eval_model_state}
        metrics = inference.metrics(weights, batches(), len(val))
        return {f"val/{name}": value for name, value in metrics.items()}

    return evaluate


class Watcher:
    """Passes what the loop says to the journal, the screen and the disk."""

    def __init__(
        self, tracker: Tracker, job: Job, checkpoints: Checkpoints, data: str, hang: HangWatch | None = None
    ) -> None:
        self._tracker, self._job, self._checkpoints, self._data, self._hang = tracker, job, checkpoints, data, hang
        self._agreement = Agreement(job.stop)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """A record for the journal, the screen and the sweep."""
        self._tracker.log(step, metrics)
        self._job.reporter.metrics(step, metrics)
        if self._job.part is not None and "val/loss" in metrics:
            self._job.part.evaluated(step, metrics)

    def save(self, progress: Progress, state: dict[str, Any], best: Any | None) -> None:
        """A checkpoint with the metric history and what identifies the data."""
        if not processes.primary():
            return
        meta = {
            "progress": progress.to_meta(),
            "history": self._tracker.journal.records(),
            "data": self._data,
        }
        pair = None if best is None else (progress.best_step, best)
        self._checkpoints.save(progress.step, state, meta, best=pair)

    def wishes(self, step: int, overdue: bool) -> tuple[bool, bool]:
        """Whether a signal came, and whether to save; the same in all processes."""
        if self._hang is not None:
            self._hang.beat()
        return self._agreement(step, overdue)

    def awaiting_data(self, save: Callable[[], None]) -> AbstractContextManager[None]:
        """The hang watch may save meanwhile, where no other process has to take part in that."""

        def whole() -> None:
            save()
            self._checkpoints.wait()

        return nullcontext() if self._hang is None or processes.count() > 1 else self._hang.awaiting_data(whole)

    def patient(self, evaluate: Evaluate | None) -> Evaluate | None:
        """The same evaluation, for which the hang watch waits longer."""
        hang = self._hang
        if evaluate is None or hang is None:
            return evaluate

        def watched(state: TrainState) -> dict[str, float]:
            with hang.generous():
                return evaluate(state)

        return watched


def restore_everywhere(checkpoints: Checkpoints) -> Restored | None:
    """The newest sound checkpoint as process 0 finds it: the others need not see its disk."""
    found: Restored | None = None

    def find() -> Any:
        nonlocal found
        found = checkpoints.restore()
        return None if found is None else {"step": found.step, "meta": found.meta, "best": found.best is not None}

    told = processes.decided(find)
    if told is None or processes.count() == 1:
        return found
    state = processes.shared(found and found.state)
    best = processes.shared(found and found.best) if told["best"] else None
    return Restored(told["step"], state, best, told["meta"])


def _check_same_data(restored: Restored, dataset: Dataset) -> None:
    if restored.meta["data"] != data_digest(dataset.train):
        raise RunError(
            f"the training images of {dataset.name} are not those that this run began with; start a new run, or bring "
            "the images back"
        )


def class_weights(config: Config, dataset: Dataset) -> tuple[float, ...] | None:
    """Inverse frequencies whose mean over the training images is 1; classes without an image get 0."""
    if config.train.class_weights == "none":
        return None
    counts = dataset.class_counts
    present = np.count_nonzero(counts)
    return tuple(float(len(dataset.train) / (present * n)) if n else 0.0 for n in counts)
