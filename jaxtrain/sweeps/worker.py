"""A worker of a sweep: claims slots, trains their runs, and goes on until nothing is left to do."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxtrain.classifiers.learning import Part, Pruned
from jaxtrain.classifiers.program import Programs
from jaxtrain.classifiers.run import run as carry_out
from jaxtrain.config import Config
from jaxtrain.errors import JaxtrainError
from jaxtrain.sweeps.parent import Parent
from jaxtrain.sweeps.plan import Plan, Run
from jaxtrain.sweeps.settings import setting
from jaxtrain.sweeps.study import BASELINE, Claimed, Slot, Trials
from jaxtrain.training.loop import Diverged
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
    programs: Programs = field(default_factory=Programs)

    def work(self, slots: Sequence[Slot]) -> bool:
        """Train until every slot has ended, here or elsewhere (True), or the budget of time is spent (False)."""
        started = time.monotonic()
        seconds = self.plan.sweep.budget.seconds
        while True:
            if self.trials.take_over():
                self.trials.fill(slots)
            self.parent.lead()
            if seconds is not None and time.monotonic() - started >= seconds:
                return self.trials.unfinished() == 0
            claimed = self.trials.claim()
            if claimed is not None:
                with self.trials.beating([claimed]):
                    self._slot(claimed)
            elif self.trials.unfinished() == 0:
                return True
            else:
                time.sleep(_POLL_SECONDS)  # others are at work: one of them may die

    def _slot(self, claimed: Claimed) -> None:
        """Train what a slot stands for, and note how it ended."""
        try:
            values = []
            for number, one in enumerate(self._runs(claimed)):
                values.append(self._run(one, claimed if number == 0 else None))
            self.trials.done(claimed, sum(values) / len(values))
        except Pruned as reason:
            self.trials.pruned(claimed, str(reason))
        except Interrupted as stopped:
            self.trials.release(claimed)
            command = f"python scripts/sweep.py {self.plan.source}"
            raise Interrupted(stopped.signum, f"the run so far is saved; continue with: {command}") from None
        except Diverged as error:
            self.trials.pruned(claimed, f"diverged: {error}")
        except JaxtrainError as error:
            self.trials.failed(claimed, str(error))
            _log.warning("%s", error)

    def _runs(self, claimed: Claimed) -> list[Run]:
        plan = self.plan
        if plan.sweep.combine != "tpe":
            return [run for run in plan.runs if run.digest == claimed.slot]
        if claimed.slot == BASELINE:
            return list(plan.runs)
        one = setting(plan.sweep, claimed.propose(plan.axes))
        self.trials.note(claimed, one.options)
        return [plan.workshop.run(one, seed) for seed in plan.sweep.seeds]

    def _run(self, one: Run, claimed: Claimed | None) -> float:
        """Train one run, or find it trained; its objective. Raises Pruned, also where the loss is not finite."""
        started, sweep = time.monotonic(), self.plan.sweep
        config = run_config(self.plan, one)
        classifier = self.plan.workshop.classifier(config)

        def evaluated(step: int, metrics: Mapping[str, float]) -> None:
            if claimed is not None and sweep.pruning != "none" and claimed.report(metrics[sweep.objective], step):
                raise Pruned(f"pruned at step {step}")

        part = Part(self.programs, lambda final: self.parent.tags(_PARENT_SECONDS if final else 0.0), evaluated)
        try:
            carry_out(classifier, self.plan.workshop.dataset(classifier), part)
        except Pruned as reason:
            self.say(f"{one.setting.label}, seed {one.seed}: {reason}")
            raise
        except JaxtrainError as error:
            if not isinstance(error, Interrupted):
                self.say(f"{one.setting.label}, seed {one.seed}: {error}")
            raise
        value = objective(sweep.objective, classifier.summary, sweep.folder / one.name)
        self.say(
            f"{one.setting.label}, seed {one.seed}: {sweep.objective} {value:.4f} ({time.monotonic() - started:.1f} s)"
        )
        if not math.isfinite(value):
            raise Pruned(f"{sweep.objective} is {value}")
        return value


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
