"""Runs of a sweep that share a program, side by side: each with its own directory, metrics, checkpoints, MLflow run."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from jaxtrain.data.base import Dataset
from jaxtrain.errors import RunError
from jaxtrain.runs.fitted import Fitted
from jaxtrain.runs.learning import Job, Learns, Part
from jaxtrain.runs.run import begin, conclude, under_way
from jaxtrain.runs.stepwise import Stepwise, train_together
from jaxtrain.training.signals import StopRequest


@dataclass
class _Entered:
    """A run whose contexts are open."""

    stack: ExitStack
    job: Job | Fitted | None
    """The result of a run that was complete already; None where it could not be entered."""
    error: Exception | None = None

    @property
    def learning(self) -> Stepwise:
        """Its way to learn."""
        assert isinstance(self.job, Job)
        if not isinstance(self.job.learning, Stepwise):
            raise RunError("only techniques that learn step by step can train side by side")
        return self.job.learning

    @property
    def result(self) -> Fitted:
        """Of a run that ended well."""
        assert self.job is not None
        return self.job if isinstance(self.job, Fitted) else self.job.result


def run_together(runs: Sequence[tuple[Learns, Part]], dataset: Dataset) -> list[Fitted | Exception]:
    """Train techniques with one program in their run directories; of each its result, or what ended it before.

    Those that go on from the same step train side by side. Raises what concerns all of them, as Interrupted after a
    signal.
    """
    with StopRequest() as stop:
        results = _run_together([_enter(technique, dataset, part, stop) for technique, part in runs])
    stop.check("stopped; the runs are saved")  # perhaps only while MLflow got the last of it
    return results


def _run_together(entered: Sequence[_Entered]) -> list[Fitted | Exception]:
    try:
        open_runs = [one for one in entered if isinstance(one.job, Job) and one.error is None]
        trackers = [one.job.tracker for one in open_runs if isinstance(one.job, Job)]
        errors = train_together([one.learning for one in open_runs], trackers) if open_runs else []
        for one, error in zip(open_runs, errors, strict=True):
            one.error = _concluded(one, error)
    except BaseException as error:
        for one in entered:
            one.error = one.error or _left(one, error)
        raise
    for one in entered:
        one.error = _left(one, one.error)
    return [one.error or one.result for one in entered]


def _enter(technique: Learns, dataset: Dataset, part: Part, stop: StopRequest) -> _Entered:
    stack = ExitStack()
    try:
        job = stack.enter_context(begin(technique, dataset, part, stop))
        if isinstance(job, Job):
            stack.enter_context(under_way(job))
        return _Entered(stack, job)
    except Exception as error:
        return _Entered(stack, None, _left(_Entered(stack, None), error) or error)


def _left(one: _Entered, error: BaseException | None) -> Exception | None:
    """Close the contexts of a run, in which `error` happened; what comes out of them."""
    try:
        with one.stack:
            if error is not None:
                raise error
    except Exception as raised:
        return raised
    return None


def _concluded(one: _Entered, error: Exception | None) -> Exception | None:
    assert isinstance(one.job, Job)
    try:
        if error is None:
            conclude(one.job, one.learning.learned(one.job.tracker))
    except Exception as raised:
        return raised
    return error
