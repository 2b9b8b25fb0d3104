"""A worker of a sweep: claims slots, trains their runs, and goes on until nothing is left to do."""

from __future__ import annotations

import json
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
from jaxtrain.sweeps.study import BASELINE, Claimed, Slot, Trials
from jaxtrain.training.nonfinite import Diverged
from jaxtrain.training.signals import Interrupted

_POLL_SECONDS = 0.5
_PARENT_SECONDS = 30.0
_log = logging.getLogger(__name__)


@dataclass
class Worker:
    """One process at work on a sweep."""

    plan: Plan
    trials: Trials
    parent: Parent
    say: Callable[[str], None]
    wanted: Callable[[], bool] | None = None
    """Of a helper: whether to go on, asked before each run; others take the lead where it is free."""
    programs: Programs = field(default_factory=Programs)

    def work(self, slots: Sequence[Slot]) -> bool:
        """Train until every slot has ended, here or elsewhere (True), or the budget of time is spent (False)."""
        started = time.monotonic()
        seconds = self.plan.sweep.budget.seconds
        while True:
            if self.trials.take_over():
                self.trials.fill(slots)
            if self.wanted is None:
                self.parent.lead()
            elif not self.wanted():
                return False
            if seconds is not None and time.monotonic() - started >= seconds:
                return self.trials.unfinished() == 0
            claimed = self._claim()
            if claimed:
                with self.trials.beating([one for one, _ in claimed]):
                    self._train(claimed)
            elif self.trials.unfinished() == 0:
                return True
            else:
                time.sleep(_POLL_SECONDS)  # others are at work: one of them may die

    def _claim(self) -> list[tuple[Claimed, list[Run]]]:
        """The next slot with its runs, and as many more as can train beside it; empty where none waits."""
        found: list[tuple[Claimed, list[Run]]] = []
        while not found:
            first = self.trials.claim()
            if first is None:
                return []
            try:
                found = [(first, self._runs(first))]
            except UserError as error:  # a proposal that its config refuses
                self.trials.failed(first, str(error))
                _log.warning("%s", error)
        plan, run = self.plan, found[0][1][0]
        if plan.sweep.combine == "tpe" or not self._side_by_side(run):
            return found
        alike = {other.digest: other for other in plan.runs if other.program == run.program}
        while len(found) < plan.sweep.group and (more := self.trials.claim(list(alike))) is not None:
            found.append((more, [alike[more.slot]]))
        return found

    def _runs(self, claimed: Claimed) -> list[Run]:
        plan = self.plan
        if plan.sweep.combine != "tpe":
            return [run for run in plan.runs if run.digest == claimed.slot]
        if claimed.slot == BASELINE:
            return list(plan.runs)
        one = setting(plan.sweep, claimed.propose(plan.axes))
        self.trials.note(claimed, one.options)
        return [plan.workshop.run(one, seed) for seed in plan.sweep.seeds]

    def _train(self, claimed: Sequence[tuple[Claimed, list[Run]]]) -> None:
        """Train what the slots stand for, and note how each ended."""
        pairs = [(slot, run) for slot, runs in claimed for run in runs]
        try:
            if len(pairs) > 1 and self._side_by_side(pairs[0][1]):
                outcomes = self._together(pairs)
            else:
                outcomes = [self._alone(slot, run) for slot, run in pairs]
        except Interrupted as stopped:
            for slot, _ in claimed:
                self.trials.release(slot)
            again = shlex.join(command("sweep", self.plan.source))
            raise Interrupted(stopped.signum, f"the runs so far are saved; continue with: {again}") from None
        for slot, _ in claimed:
            self._end(slot, [outcome for (other, _), outcome in zip(pairs, outcomes, strict=True) if other is slot])

    def _end(self, slot: Claimed, outcomes: Sequence[float | Exception]) -> None:
        wrong = next((one for one in outcomes if isinstance(one, Exception)), None)
        match wrong:
            case None:
                self.trials.done(slot, sum(map(float, outcomes)) / len(outcomes))  # type: ignore[arg-type]
            case Pruned():
                self.trials.pruned(slot, str(wrong))
            case Diverged():
                self.trials.pruned(slot, f"diverged: {wrong}")
            case _:
                self.trials.failed(slot, str(wrong))
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
        sweep, reports = self.plan.sweep, one.seed == self.plan.sweep.seeds[0] or self.plan.sweep.combine != "tpe"

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
        self.say(f"{one.setting.label}, seed {one.seed}: {text} ({time.monotonic() - started:.1f} s)")
        return outcome

    def _side_by_side(self, one: Run) -> bool:
        """Whether runs like this one train side by side: where it pays, and their images live on the device."""
        config = one.setting.config
        workshop = self.plan.workshop
        return together(self.plan.sweep, config.technique) and workshop.images(workshop.classifier(config))[1]


def run_config(plan: Plan, one: Run) -> Config:
    """The config of one run: quiet, and with no model and no system metrics in MLflow unless the base asks for them."""
    sweep = plan.sweep
    asked = sweep.base.tracking.model_fields_set
    lean = {f"tracking.{key}": False for key in ("log_model", "system_metrics") if key not in asked}
    changes: dict[str, Any] = {
        "seed": one.seed,
        "run_dir": sweep.folder / one.name,
        "name": None,
        "quiet": True,
        **lean,
    }
    return one.setting.config.replace(**changes)


def objective(name: str, summary: Mapping[str, Any], folder: Path) -> float:
    """What decides, of the weights that a finished run keeps; NaN where it has none."""
    if name == "val/accuracy":
        value = summary["val_accuracy"]
        return math.nan if value is None else float(value)
    for line in reversed((folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()):
        record = json.loads(line)
        if record.get("step") == summary["best_step"] and name in record:
            return float(record[name])
    return math.nan
