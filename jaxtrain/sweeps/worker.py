"""A worker of a sweep: claims slots, trains their runs, and goes on until nothing is left to do."""

from __future__ import annotations

import itertools
import logging
import math
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxtrain.config import Config
from jaxtrain.errors import JaxtrainError, UserError
from jaxtrain.runs.group import run_together
from jaxtrain.runs.learning import Part, Pruned
from jaxtrain.runs.program import Programs
from jaxtrain.runs.run import run as carry_out
from jaxtrain.screen.program import command
from jaxtrain.sweeps.parent import Parent
from jaxtrain.sweeps.plan import Plan, Run, together
from jaxtrain.sweeps.settings import setting
from jaxtrain.sweeps.study import BASELINE, GRACE_SECONDS, Claimed, Trials
from jaxtrain.tracking import Journal
from jaxtrain.training.nonfinite import Diverged
from jaxtrain.training.signals import Interrupted, StopRequest

_POLL_SECONDS = 1.0
_PARENT_SECONDS = 30.0
_log = logging.getLogger(__name__)


@dataclass
class Worker:
    """One process at work on a sweep."""

    plan: Plan
    trials: Trials
    parent: Parent
    say: Callable[[str], None]
    stop: StopRequest
    helper: bool = False
    """Never takes the lead, as others do where it is free, and does not wait for what others train."""
    programs: Programs = field(default_factory=Programs)
    _held: list[tuple[Claimed, list[Run]]] = field(default_factory=list, init=False)
    """Claimed, but of another program than those that train now."""

    def work(self) -> bool:
        """Train until every slot has ended, here or elsewhere (True), or the budget of time is spent (False)."""
        try:
            return self._work()
        finally:
            self.trials.close()

    def _work(self) -> bool:
        started, waiting = time.monotonic(), False
        seconds = self.plan.sweep.budget.seconds
        while True:
            self.stop.check(to_continue(self.plan))
            if not self.helper:
                self.parent.lead()
            if seconds is not None and time.monotonic() - started >= seconds:
                return self.trials.unfinished() == 0
            if claimed := self._claim():
                self._train(claimed)
            elif (others := self.trials.fill()) == 0 or self.helper:
                return others == 0
            else:
                if not waiting:
                    self.say(f"other workers have {others} left; one that died is replaced after {GRACE_SECONDS} s")
                waiting = True
                time.sleep(_POLL_SECONDS)

    def _claim(self) -> list[tuple[Claimed, list[Run]]]:
        """The next slot with its runs, and those after it that can train beside it; empty where none waits."""
        found, self._held = self._held, []
        while len(found) < self._most(found) and (more := self._next()) is not None:
            if found and _shared(more[1][0]) != _shared(found[0][1][0]):
                self._held = [more]
                break
            found.append(more)
        return found

    def _most(self, found: Sequence[tuple[Claimed, list[Run]]]) -> int:
        alone = not found or self.plan.sweep.combine == "tpe" or not self._side_by_side(found[0][1][0])
        return 1 if alone else self.plan.sweep.group

    def _next(self) -> tuple[Claimed, list[Run]] | None:
        while (slot := self.trials.claim()) is not None:
            try:
                return slot, self._runs(slot)
            except UserError as error:  # a proposal that its config refuses
                slot.end(error)
                _log.warning("%s", error)
        return None

    def _runs(self, claimed: Claimed) -> list[Run]:
        plan = self.plan
        if claimed.options is not None:
            one = setting(plan.sweep, claimed.options)
            return [plan.workshop.run(one, repeat) for repeat in plan.sweep.repeats]
        return [run for run in plan.runs if claimed.slot in (BASELINE, run.digest)]

    def _train(self, claimed: Sequence[tuple[Claimed, list[Run]]]) -> None:
        """Train what the slots stand for and is not done yet, and note how each ended."""
        outcomes: dict[str, float | Exception] = {}
        left = []
        for slot, run in ((slot, run) for slot, runs in claimed for run in runs):
            if (summary := self.plan.summary(run)) is not None:
                outcomes[run.digest] = self._told(run, self._value(run, summary), time.monotonic())
            else:
                left.append((slot, run))
        left.sort(key=lambda pair: pair[1].repeat.fold or 0)
        trained: list[float | Exception] = []
        try:
            for _, same in itertools.groupby(left, lambda pair: _shared(pair[1])):
                pairs = list(same)
                if len(pairs) > 1 and self._side_by_side(pairs[0][1]):
                    trained += self._together(pairs)
                else:
                    trained += [self._alone(slot, run) for slot, run in pairs]
        except Interrupted as stopped:
            raise Interrupted(stopped.signum, to_continue(self.plan)) from None
        outcomes |= {run.digest: outcome for (_, run), outcome in zip(left, trained, strict=True)}
        for slot, runs in claimed:
            values = [outcomes[run.digest] for run in runs]
            wrong = next((one for one in values if isinstance(one, Exception)), None)
            slot.end(sum(map(float, values)) / len(values) if wrong is None else wrong)  # type: ignore[arg-type]
            if not isinstance(wrong, Pruned | Diverged | None):
                _log.warning("%s", wrong)

    def _alone(self, slot: Claimed, one: Run) -> float | Exception:
        """Train one run, or find it trained: its objective, or why there is none."""
        started = time.monotonic()
        classifier = self.plan.workshop.classifier(run_config(self.plan, one))
        try:
            fitted = carry_out(classifier, self.plan.workshop.images(classifier)[0], self._part(slot, one))
        except Interrupted:
            raise
        except (JaxtrainError, Pruned) as error:
            return self._told(one, error, started)
        return self._told(one, self._value(one, fitted.summary), started)

    def _together(self, pairs: Sequence[tuple[Claimed, Run]]) -> list[float | Exception]:
        """The same for runs that share a program, side by side."""
        started = time.monotonic()
        configs = [run_config(self.plan, run).replace(**{"parallel.devices": 1}) for _, run in pairs]
        classifiers = [self.plan.workshop.classifier(config) for config in configs]
        parts = [self._part(slot, run) for slot, run in pairs]
        dataset = self.plan.workshop.images(classifiers[0])[0]
        results = run_together(list(zip(classifiers, parts, strict=True)), dataset)
        if stopped := next((result for result in results if isinstance(result, Interrupted)), None):
            raise stopped
        outcomes = []
        for (_, run), result in zip(pairs, results, strict=True):
            outcome = result if isinstance(result, Exception) else self._value(run, result.summary)
            outcomes.append(self._told(run, outcome, started))
        return outcomes

    def _part(self, slot: Claimed, one: Run) -> Part:
        sweep, reports = self.plan.sweep, one.repeat == self.plan.sweep.repeats[0] or self.plan.sweep.combine != "tpe"

        def evaluated(step: int, metrics: Mapping[str, float]) -> None:
            if not math.isfinite(loss := metrics["val/loss"]):
                raise Diverged(f"the validation loss became {loss} at step {step}", step)
            if reports and sweep.pruning != "none" and slot.report(metrics[sweep.objective], step):
                raise Pruned(f"pruned at step {step}")

        return Part(self.programs, lambda final: self.parent.tags(_PARENT_SECONDS if final else 0.0), evaluated)

    def _value(self, one: Run, summary: Mapping[str, Any]) -> float | Exception:
        value = objective(self.plan.sweep.objective, summary, self.plan.sweep.folder / one.name)
        return value if math.isfinite(value) else Pruned(f"{self.plan.sweep.objective} is {value}")

    def _told(self, one: Run, outcome: float | Exception, started: float) -> float | Exception:
        text = str(outcome) if isinstance(outcome, Exception) else f"{self.plan.sweep.objective} {outcome:.4f}"
        self.say(f"{one.setting.label}, {one.repeat}: {text} ({time.monotonic() - started:.1f} s)")
        return outcome

    def _side_by_side(self, one: Run) -> bool:
        """Whether runs like this one train side by side: where it pays, and their images live on the device."""
        config = run_config(self.plan, one)
        workshop = self.plan.workshop
        return together(self.plan.sweep, config.technique) and workshop.images(workshop.classifier(config))[1]


def _shared(one: Run) -> tuple[str, int | None]:
    """What runs have in common that train side by side: program and images."""
    return one.program, one.repeat.fold


def to_continue(plan: Plan, *options: str) -> str:
    """What is said of a sweep that a signal ends; `options` follow its file on the command line."""
    return f"the runs so far are saved; continue with: {shlex.join(command('sweep', plan.source, *options))}"


def run_config(plan: Plan, one: Run) -> Config:
    """The config of one run: quiet, and with no model and no system metrics in MLflow unless the base asks for them."""
    sweep = plan.sweep
    asked = sweep.base.tracking.model_fields_set
    lean = {f"tracking.{key}": False for key in ("log_model", "system_metrics") if key not in asked}
    changes: dict[str, Any] = {
        "seed": one.repeat.seed,
        "run_dir": sweep.folder / one.name,
        "name": None,
        "quiet": True,
        **lean,
    }
    if one.repeat.fold is not None:
        changes["data.fold"] = one.repeat.fold
    return one.setting.config.replace(**changes)


def objective(name: str, summary: Mapping[str, Any], folder: Path) -> float:
    """What decides, of the weights that a finished run keeps; NaN where it has none."""
    if name != "val/loss":
        value = summary.get(name.replace("/", "_"))
        return math.nan if value is None else float(value)
    for record in reversed(Journal(folder / "metrics.jsonl").records()):
        if record["step"] == summary["best_step"] and name in record:
            return float(record[name])
    return math.nan
