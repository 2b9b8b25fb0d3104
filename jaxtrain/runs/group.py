"""Runs of a sweep that share a program, side by side: each with its own directory, metrics, checkpoints, MLflow run."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from jaxtrain.data.base import Dataset
from jaxtrain.errors import RunError
from jaxtrain.runs.fitted import Fitted
from jaxtrain.runs.learning import Learns, Part
from jaxtrain.runs.run import Course, begin, under_way
from jaxtrain.runs.stepwise import Stepwise, train_together
from jaxtrain.training.signals import Interrupted, StopRequest


@dataclass
class _Entered:
    """A run whose contexts are open."""

    stack: ExitStack
    course: Course | None
    done: Fitted | None = None
    """The result of a run that was complete already."""
    error: Exception | None = None

    @property
    def learning(self) -> Stepwise:
        """Its way to learn."""
        assert self.course is not None
        learning = self.course.learning
        if not isinstance(learning, Stepwise):
            raise RunError("only techniques that learn step by step can train side by side")
        return learning

    @property
    def result(self) -> Fitted:
        """Of a run that ended well."""
        if self.done is not None:
            return self.done
        assert self.course is not None
        return self.course.fitted


def run_together(runs: Sequence[tuple[Learns, Part]], dataset: Dataset) -> list[Fitted | Exception]:
    """Train techniques with one program in their run directories; of each its result, or what ended it before.

    Those that go on from the same step train side by side. Raises what concerns all of them, as Interrupted after a
    signal.
    """
    with StopRequest() as stop:
        results = _run_together([_enter(technique, dataset, part, stop) for technique, part in runs])
    if stop.requested is not None:  # perhaps only while MLflow got the last of it
        raise Interrupted(stop.requested, "stopped; the runs are saved")
    return results


def _run_together(entered: Sequence[_Entered]) -> list[Fitted | Exception]:
    try:
        open_runs = [one for one in entered if one.course is not None and one.error is None]
        trackers = [one.course.tracker for one in open_runs if one.course is not None]
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
        if isinstance(job, Fitted):
            return _Entered(stack, None, job)
        return _Entered(stack, stack.enter_context(under_way(job)))
    except Exception as error:
        return _Entered(stack, None, error=_left(_Entered(stack, None), error) or error)


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
    assert one.course is not None
    try:
        if error is None:
            one.course.conclude(one.learning.learned(one.course.tracker))
    except Exception as raised:
        return raised
    return error
