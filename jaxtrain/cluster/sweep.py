"""A sweep on a cluster: the driver keeps workers at work on the nodes, and trains nothing itself.

A worker is the helper process that a sweep on one machine starts too: it claims trials in the study, so that which
trial runs where is decided in one place. Ray gives it a node that has what a trial needs. What a lost node trained is
claimed again once its heartbeat has been away for a minute, and goes on from its last checkpoint.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtrain.cluster.node import Ended, carry_out, job
from jaxtrain.cluster.session import Lost, Session
from jaxtrain.errors import RunError
from jaxtrain.sweeps.plan import Plan
from jaxtrain.sweeps.study import Trials
from jaxtrain.sweeps.worker import objective
from jaxtrain.training.signals import StopRequest

_POLL_SECONDS = 1.0
_MOST_FAILURES, _MOST_LOSSES = 3, 20
"""In a row, with no trial ended in between."""
_log = logging.getLogger(__name__)


@dataclass
class Driver:
    """The one that starts workers and says how the trials end."""

    session: Session
    plan: Plan
    trials: Trials
    need: Mapping[str, float]
    """What a worker gets of its node."""
    say: Callable[[str], None]
    stop: StopRequest
    words: str
    """Said where a signal ends it."""
    _tasks: list[Any] = field(default_factory=list, init=False)
    _failures: int = field(default=0, init=False)
    _losses: int = field(default=0, init=False)

    def work(self) -> None:
        """Until every trial has ended or the budget of time is spent. Raises RunError where workers keep failing."""
        self._job = job(
            ("sweep", str(self.plan.source.absolute()), "--helper", "--quiet"),
            self.plan.sweep.folder,
            self.need.get("gpu", 0.0),
        )
        self._told = set(self.trials.ended())
        self.stop.unsaved(True)  # the workers save when they are cancelled
        try:
            self._work()
        finally:
            self.session.cancel(self._tasks)
            self.stop.unsaved(False)

    def _work(self) -> None:
        seconds, started = self.plan.sweep.budget.seconds, time.monotonic()
        while left := self.trials.fill():
            self.stop.check(self.words)
            if seconds is not None and time.monotonic() - started >= seconds:
                self.trials.open_for_claims(False)
                if not self._tasks:
                    return
            elif self.trials.waiting():
                # One more than there is room for, so that a cluster which grows on demand does.
                for _ in range(min(self.session.room(self.need) + 1, left) - len(self._tasks)):
                    self._tasks.append(self.session.submit(carry_out, self._job, need=self.need))
            for task in self.session.ended(self._tasks, _POLL_SECONDS):
                self._tasks.remove(task)
                self._look(task)
            if not self._tasks:
                time.sleep(_POLL_SECONDS)
            self._tell()
        self._tell()

    def _look(self, task: Any) -> None:
        """At how a worker ended."""
        try:
            ended: Ended = self.session.result(task)
            lost = f"killed by signal {-ended.code} on {ended.host}" if ended.code < 0 else None
        except Lost as error:
            lost = str(error)
        if lost is not None:
            self._losses += 1
            _log.warning("a worker was lost (%s); what it trained goes on elsewhere in a minute", lost)
            if self._losses >= _MOST_LOSSES:
                raise RunError(f"{self._losses} workers were lost in a row, the last one: {lost}")
        elif ended.code in (1, 2):
            self._failures += 1
            if self._failures >= _MOST_FAILURES:
                raise RunError(f"workers fail on the cluster, the last one on {ended.host}: {ended.words}")

    def _tell(self) -> None:
        """Of trials that have ended since."""
        ended = self.trials.ended()
        if not (new := ended.keys() - self._told):
            return
        self._told |= new
        self._failures = self._losses = 0
        name = self.plan.sweep.objective
        for slot, run in self.trials.runs():
            if slot in new:
                summary = self.plan.summary(run)
                value = summary and objective(name, summary, self.plan.sweep.folder / run.name)
                text = ended[slot] if value is None else f"{name} {value:.4f}"
                self.say(f"{run.setting.label}, {run.repeat}: {text} ({len(self._told)} of {self.trials.count} ended)")
