"""Learning by gradient steps: what a run of PT and of FT does between its directory and its result."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxtrain.data.base import ImageSource
from jaxtrain.errors import RunError, UserError
from jaxtrain.runs.callbacks import Profiling, Recording, Saving, Telling
from jaxtrain.runs.fitted import Fitted, Predictor
from jaxtrain.runs.learning import Job, Learned
from jaxtrain.runs.recovery import diagnosis, fit_memory, too_large
from jaxtrain.runs.report import stepwise_plan, write_curves
from jaxtrain.runs.resolve import timetable
from jaxtrain.runs.setup import Setup, prepare
from jaxtrain.screen.console import Plan, print_line
from jaxtrain.tasks import task_of
from jaxtrain.tracking import Tracker
from jaxtrain.training import processes
from jaxtrain.training.agreement import Agreement
from jaxtrain.training.checkpoints import Checkpoints, Restored
from jaxtrain.training.feed import ResidentFeed
from jaxtrain.training.hang import HangWatch
from jaxtrain.training.inference import Batches, host_batches, resident_batches
from jaxtrain.training.lanes import Alone, EvaluationStoppedError, Lane, SideBySide, Validate
from jaxtrain.training.loop import Loop, Member, Wishes
from jaxtrain.training.memory import out_of_memory
from jaxtrain.training.nonfinite import Diverged
from jaxtrain.training.progress import Progress, Timetable
from jaxtrain.training.state import Tree, from_arrays, moved_to

_log = logging.getLogger(__name__)
Evaluate = Callable[[Tree], dict[str, float]]
"""Validation metrics of {"params", "frozen", "model_state"}, placed on the devices."""


class Stepwise:
    """A run of optimizer steps, resumed from its newest sound checkpoint."""

    def __init__(self, job: Job) -> None:
        """Builds everything up to the first step."""
        self._job = job
        self._checkpoints = Checkpoints(job.directory.checkpoints, keep=job.config.checkpoint.keep)
        self._technique, self.setup = prepare(job.technique, job.dataset, job.part.programs if job.part else None)
        self._checkpoints.pinned = self.timetable.pinned
        setup = self.setup
        self.dataset = setup.dataset
        self._restored = restored = restore_everywhere(self._checkpoints)
        self.history = restored.meta["history"] if restored else []
        self._progress = Progress(**restored.meta["progress"]) if restored else Progress()
        self.member: Member | None = None
        """The run in the loop, once it trains."""
        if restored:
            self.dataset.bad_images.add(restored.meta.get("bad_images", {}).items())
            setup.state = from_arrays(restored.state, like=setup.state)
        else:
            setup.state = job.technique.start(job, setup.state, setup.step.optimizer)
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
        (error,) = train_together([self], [tracker])
        if error is not None:
            raise error
        return self.learned(tracker)

    def learned(self, tracker: Tracker) -> Learned:
        """What was learned, when training has ended; raises Interrupted after a signal."""
        assert self.member is not None
        self._checkpoints.wait()
        if self.member.interrupted:
            raise self._job.interrupted(f"stopped at step {self.step}, which is saved", agreed=True)
        learned = self._learned(self.member, tracker)
        if self._job.part is None:
            write_curves(self._job.directory.path, tracker, learned.best_step)
        return learned

    @property
    def timetable(self) -> Timetable:
        """When what happens."""
        return timetable(self.setup.config, len(self.setup.dataset.train), streamed=self.setup.streamed)

    @property
    def stands_at(self) -> tuple[int, bool]:
        """Its step, and whether the evaluation of that is still to come: runs side by side have the same."""
        return self.step, self._progress.evaluation_due

    def begin(self, tracker: Tracker) -> Member:
        """The run as it goes into the loop."""
        job = self._job
        telling = () if job.part is None else (Telling(job.part),)
        saving = Saving(tracker, self._checkpoints, job.dataset.bad_images)
        callbacks = (Recording(tracker, job), *telling, saving, *job.technique.callbacks)
        best = self._restored.best if self._restored else None
        names = job.dataset.class_names
        self.member = Member(self.setup.config, job.run_dir, names, callbacks, self._progress, best)
        return self.member

    def profiling(self, tracker: Tracker) -> Profiling | None:
        """The trace of some steps, where one is asked for and still to come: JAX makes one at a time."""
        steps = self.setup.config.train.profiled
        if steps is None or self.step >= steps[1] or not processes.primary():
            return None
        first, last = steps
        folder = self._job.directory.path / "profile" / f"{first}-{last}"
        if folder.exists():
            return None  # of an earlier start
        return Profiling(steps, self.step, self.timetable.steps_per_call, folder, tracker)

    def around(self) -> ExitStack:
        """What is open while the run trains, apart from the loop."""
        stack = ExitStack()
        stack.callback(self.setup.feed.close)
        stack.enter_context(self._job.reporter.progress(self.timetable, self.step, self.history))
        return stack

    def hang_watch(self) -> HangWatch:
        """Watches this run."""
        minutes, job, alone = self.setup.config.train.hang_minutes, self._job, processes.count() == 1
        return HangWatch(minutes, job.directory.stacks, job.stop, saves=alone, saved=self._checkpoints.wait)

    def predictor(self, fitted: Fitted) -> Predictor:
        """Each process computes its share of every batch."""
        return fitted.technique.predictor(fitted, everywhere=True)

    def after_test(self, test: ImageSource, predictor: Predictor, tracker: Tracker) -> dict[str, Any]:
        """Nothing more."""
        return {}

    def close(self) -> None:
        """Waits for the last save."""
        self._checkpoints.close()

    def lane(self) -> Lane:
        """Where the run lies when it trains alone."""
        setup, evaluate = self.setup, evaluator(self.setup, self.cut_off)
        validate: Validate | None = None if evaluate is None else lambda state: [evaluate(state.eval_weights)]
        at_peak = setup.seconds_at_peak()
        return Alone(setup.program.step, setup.feed, setup.strategy, validate, setup.program.compiled, at_peak)

    def cut_off(self) -> bool:
        """Whether a signal cuts an evaluation off: it may take longer than who sent it waits.

        Several processes stop together, between steps.
        """
        return processes.count() == 1 and self._job.stop.requested is not None

    def wishes(self) -> Wishes:
        """When a signal, or time, has the run stop or save."""
        return Agreement(self._job.stop)

    def too_large(self) -> RunError:
        """What is said when memory ran out."""
        return too_large(self.setup, self._like, self.step)

    def recover(self, error: Diverged) -> None:
        """Goes back to the last good state and past the batches since, where that is asked for; else ends the run."""
        setup, options, rollbacks = self.setup, self.setup.config.train, self._progress.rollbacks + 1
        goes_on = options.on_nonfinite == "rollback" and rollbacks <= options.nonfinite_limit
        if self._job.part is not None and not goes_on:
            raise error  # a sweep has better things to do than to look for the layer
        self.member = None
        traceback.clear_frames(error.__traceback__)  # the failed state takes as much memory as the one to come
        restored = restore_everywhere(self._checkpoints)
        if restored:
            progress, state = Progress(**restored.meta["progress"]), from_arrays(restored.state, like=self._like)
        else:
            setup.state = setup.program.initial_state(self._like.values)
            progress, state = Progress(), self._job.technique.start(self._job, setup.state, setup.step.optimizer)
        if not goes_on:
            raise Diverged(diagnosis(setup, error, state, progress.step), error.step) from error
        _log.warning(
            "%s; back to the state of step %d and past the batches since (%d of at most %d times)",
            *(error, progress.step, rollbacks, options.nonfinite_limit),
        )
        progress.step, progress.rollbacks = error.step, rollbacks
        setup.state = moved_to(state, error.step)
        self._restored, self._progress = restored, progress

    def _learned(self, member: Member, tracker: Tracker) -> Learned:
        """The selected weights, and what the summary says of the way to them."""
        setup, progress = self.setup, member.progress
        last = setup.config.train.select == "last" or member.best is None
        assert member.state is not None
        kept, figure = progress.latest if last else progress.best, task_of(setup.config).figure
        weights: Tree = member.best
        if last:
            weights = jax.tree.map(np.array, jax.device_get(member.state.eval_weights))
        between, interpolation = self._technique.interpolated(self._job, weights), {}
        if between is not None:
            weights, kept, interpolation = between, *self._interpolated(between, kept, figure, tracker)
        several = {} if figure == "accuracy" else {f"val_{figure}": kept.get(f"val/{figure}")}
        return Learned(
            weights=weights,
            technique=self._technique,
            example=np.asarray(next(host_batches(setup.config, setup.dataset.train, 1)).image),
            steps=progress.step,
            seconds=progress.seconds,
            images=progress.step * setup.config.train.batch_size,
            val_accuracy=kept.get("val/accuracy"),
            best_step=progress.step if last else progress.best_step,
            devices=[str(device.device_kind) for device in setup.strategy.devices],
            summary=several | self._technique.about(self._job) | interpolation | self._troubles(),
        )

    def _interpolated(
        self, weights: Tree, trained: dict[str, float], figure: str, tracker: Tracker
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """Validation metrics of interpolated weights, and what the summary says of them; `trained`: those before."""
        evaluate, share = evaluator(self.setup, lambda: False), self._job.config.finetune.wise_ft
        found = {} if evaluate is None else evaluate(self.setup.strategy.place(weights))
        before, after = (metrics.get(f"val/{figure}") for metrics in (trained, found))
        tracker.log(self._progress.step, {f"wise_ft/{name}": value for name, value in found.items()})
        if before is not None and after is not None and not self._job.config.quiet:
            print_line(f"WiSE-FT {share}: val/{figure} {after:.4f}, with the fine-tuned weights alone {before:.4f}")
        return found, {"wise_ft": share, f"fine_tuned_val_{figure}": before}

    def _troubles(self) -> dict[str, int]:
        """What did not go as the options say."""
        found = {"skipped_steps": self._progress.skipped, "rollbacks": self._progress.rollbacks}
        if self.setup.config.train.microbatch is not None:
            found["accumulate"] = self.setup.step.accumulate
        return {name: count for name, count in found.items() if count}


def evaluator(setup: Setup, cut_off: Callable[[], bool]) -> Evaluate | None:
    """Validation metrics; None where there is no validation set. `cut_off` is asked before each batch."""
    val, inference, bad_images = setup.dataset.val, setup.inference, setup.dataset.bad_images
    if val is None:
        return None
    fixed = None if setup.streamed else resident_batches(inference, val)

    def batches() -> Batches:
        for batch in inference.batches(val, bad_images) if fixed is None else fixed:
            if cut_off():
                raise EvaluationStoppedError
            yield batch

    def evaluate(weights: Tree) -> dict[str, float]:
        return inference.metrics(weights, batches(), val.labels)

    return evaluate


def train_together(runs: Sequence[Stepwise], trackers: Sequence[Tracker]) -> list[Exception | None]:
    """Train runs to their end, those that stand at the same step side by side; what ended each before, None for none.

    A run that goes back after it has diverged leaves the others, and goes on from where it is.
    """
    ended: list[Exception | None] = [None] * len(runs)
    waiting = list(range(len(runs)))
    with ExitStack() as stack:
        for run in runs:
            stack.enter_context(run.around())
        while waiting:
            first = min(runs[number].stands_at for number in waiting)
            now = [number for number in waiting if runs[number].stands_at == first]
            members = _train([runs[number] for number in now], [trackers[number] for number in now])
            for number, member in zip(now, members, strict=True):
                try:
                    if member.ended is not None:
                        raise member.ended
                except Diverged as error:
                    member.ended = None  # its traceback holds the state
                    try:
                        runs[number].recover(error)
                        continue
                    except Exception as final:
                        ended[number] = final
                except Exception as error:
                    ended[number] = error
                waiting.remove(number)
    return ended


def _train(runs: Sequence[Stepwise], trackers: Sequence[Tracker]) -> list[Member]:
    """Train runs that stand at the same step until each is through, or out."""
    first, members = runs[0], [run.begin(tracker) for run, tracker in zip(runs, trackers, strict=True)]
    profiling = first.profiling(trackers[0])
    if profiling is not None:
        members[0].callbacks = (profiling, *members[0].callbacks)
    lane = first.lane() if len(runs) == 1 else _side_by_side(runs)
    try:
        with first.hang_watch() as hang, profiling or nullcontext():
            Loop(lane, [run.setup.state for run in runs], members, first.timetable, first.wishes(), hang).run()
    except jax.errors.JaxRuntimeError as error:
        if not out_of_memory(error) or len(runs) > 1:
            raise
        raise first.too_large() from error
    return members


def _side_by_side(runs: Sequence[Stepwise]) -> Lane:
    feeds = [run.setup.feed for run in runs if isinstance(run.setup.feed, ResidentFeed)]
    if len(feeds) < len(runs):
        raise UserError("data.loader: images that are streamed cannot train runs side by side; set together: never")
    setup = runs[0].setup
    val, at_peak = setup.dataset.val, setup.seconds_at_peak()
    return SideBySide(setup.program.step, feeds, setup.inference, val, runs[0].cut_off, at_peak)


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
