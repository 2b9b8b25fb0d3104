"""`jaxtrain sweep`: the settings of one file, trained, compared, and the best tested."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from jaxtrain.cli.command import Command, Positional
from jaxtrain.config import TrialsConfig, resources
from jaxtrain.config_io import find_config
from jaxtrain.errors import UserError
from jaxtrain.screen.program import command

if TYPE_CHECKING:
    from jaxtrain.cluster.session import Session
    from jaxtrain.sweeps.parent import Parent
    from jaxtrain.sweeps.plan import Plan
    from jaxtrain.sweeps.results import Results
    from jaxtrain.sweeps.study import Trials
    from jaxtrain.training.signals import StopRequest

    Say = Callable[[str], None]

_SHOWN = 30
_log = logging.getLogger(__name__)


class Sweep(Command):
    """Train every setting of a sweep.

    The same command goes on where it was stopped; started several times at once, also on several machines with a
    folder in common, it shares the work.
    """

    file: Annotated[Path, Positional("FILE.yaml")]
    """The file of the sweep, or the name of a recipe, as `sweeps/pt_digits`."""
    plan: bool = False
    """Print what would be done and exit."""
    quiet: bool = False
    """Print nothing but warnings and errors."""
    cluster: TrialsConfig = TrialsConfig()
    helper: bool = False
    """Take part in the sweep of the process that started this one (it gives this option itself)."""

    def run(self) -> None:
        """Plan, train, report."""
        if self.helper:
            _follow_parent()
        address = self.cluster.address
        if address is None or self.plan:
            self._sweep(None)
            return
        from jaxtrain.cluster.session import connected

        with connected(address) as session:  # before JAX has threads: Ray forks
            session.require(resources(self.cluster.per_trial), "--cluster.per-trial")
            self._sweep(session)

    def _sweep(self, session: Session | None) -> None:
        from jaxtrain.screen.console import print_line
        from jaxtrain.sweeps.config import load_sweep

        say = (lambda text: None) if self.quiet else print_line
        file = find_config(self.file)
        sweep = load_sweep(file)
        from jaxtrain.sweeps.plan import describe, make_plan

        plan = make_plan(sweep, file)
        if self.plan:
            for line in describe(plan, 0):
                print_line(line)
            return
        from jaxtrain.sweeps.worker import to_continue
        from jaxtrain.training.signals import Interrupted, StopRequest

        words = to_continue(plan, *self._cluster_words())
        try:
            with StopRequest(None if self.helper else words) as stop:
                self._work(plan, say, stop, session)
                stop.check(words)
        except Interrupted as stopped:
            if self.helper:  # the process that started it says all there is to say
                raise SystemExit(stopped.exit_code) from None
            raise

    def _work(self, plan: Plan, say: Say, stop: StopRequest, session: Session | None) -> None:
        from jaxtrain.sweeps.parent import Parent
        from jaxtrain.sweeps.plan import describe
        from jaxtrain.sweeps.processes import helpers, process_count
        from jaxtrain.sweeps.report import read_outcomes
        from jaxtrain.sweeps.study import Trials
        from jaxtrain.sweeps.worker import Worker, to_continue

        parent = Parent(plan)
        trials = Trials(plan)
        trials.fill(again=not self.helper)
        try:
            if self.helper:
                Worker(plan, trials, parent, say, stop, helper=True).work()
                return
            done = sum(one.how == "done" for one in read_outcomes(plan, trials))
            for line in describe(plan, done):
                say(line)
            led = parent.lead()
            stop.check(to_continue(plan))
            if session is not None:
                if not led:
                    raise UserError(
                        f"another process drives this sweep in {plan.sweep.folder}: wait for it, or stop it"
                    )
                self._drive(session, plan, trials, say, stop)
            else:
                say(f"  processes: {process_count(plan)}")
                with helpers(plan, quiet=self.quiet):
                    Worker(plan, trials, parent, say, stop).work()
            if parent.lead():
                found, test = _report(plan, trials, parent, say, stop)
                if not self.quiet:
                    _show(plan, found, test)
            else:
                say("another worker writes the results")
        finally:
            parent.close()

    def _cluster_words(self) -> list[str]:
        given = {"address": self.cluster.address, "per-trial": self.cluster.per_trial} if self.cluster.address else {}
        return [word for name, value in given.items() for word in (f"--cluster.{name}", str(value))]

    def _drive(self, session: Session, plan: Plan, trials: Trials, say: Say, stop: StopRequest) -> None:
        """Let the nodes of a cluster train."""
        from jaxtrain.cluster.session import shown
        from jaxtrain.cluster.sweep import Driver
        from jaxtrain.sweeps.worker import to_continue

        need = resources(self.cluster.per_trial)
        say(f"  cluster: room for {session.room(need)} x {shown(need)} at once")
        words = to_continue(plan, *self._cluster_words())
        Driver(session, plan, trials, need, say, stop, words).work()


def _follow_parent() -> None:
    """Once the process that started this helper has ended, or stops early: as after a SIGTERM, but in silence."""
    from jaxtrain.lifeline import follow
    from jaxtrain.training.signals import last_words_said

    last_words_said()
    follow(sys.stdin, lambda: os.kill(os.getpid(), signal.SIGTERM))


def _report(
    plan: Plan, trials: Trials, parent: Parent, say: Say, stop: StopRequest
) -> tuple[Results, dict[str, Any] | None]:
    """Write the results, test the chosen setting and the baseline, and give everything to the sweep's MLflow run."""
    from jaxtrain.evaluation.plots import save
    from jaxtrain.files import optional, write_text
    from jaxtrain.sweeps.final import final_test
    from jaxtrain.sweeps.page import FIGURES, render
    from jaxtrain.sweeps.report import BEST, results, write_tables
    from jaxtrain.sweeps.worker import to_continue

    found, folder = results(plan, trials), plan.sweep.folder / "results"
    files = write_tables(found, folder)
    complete = trials.unfinished() == 0
    test = final_test(found, folder, say) if plan.sweep.test and complete else None
    for name, make in FIGURES.items():
        stop.check(to_continue(plan))
        files += save(partial(make, found), folder / f"{name}.png")
    best = (folder / BEST).read_text(encoding="utf-8") if found.best is not None else None
    with optional(str(page := folder / "report.html")):
        write_text(page, render(found, best, test))
        files.append(page)
    problem = parent.finish(files, *_for_mlflow(found, test), complete=complete)
    if problem is not None:
        _log.warning("MLflow lacks results of the sweep (%s); they are in %s", problem, folder)
    return found, test


def _for_mlflow(found: Results, test: Mapping[str, Any] | None) -> tuple[dict[str, float], dict[str, str]]:
    """Metrics and tags of the sweep's run."""
    best = found.best
    if best is None:
        return {}, {}
    metrics = {f"best/{found.sweep.objective}": best.estimate.mean}
    for name, one in (test or {}).get("settings", {}).items():
        metrics[f"test/{name}_accuracy"] = one["mean"]
    return metrics, {"best": best.setting.label}


def _show(plan: Plan, found: Results, test: Mapping[str, Any] | None) -> None:
    from jaxtrain.files import from_here
    from jaxtrain.screen.console import print_line, show_table
    from jaxtrain.sweeps.page import rows_for_terminal, warnings
    from jaxtrain.tracking.store import tracking_uri
    from jaxtrain.tracking.tracker import look

    rows = rows_for_terminal(found, _SHOWN)
    print_line("")
    if rows:
        show_table(rows, right={"rank", *list(rows[0])[-3:]})
    for name, one in (test or {}).get("settings", {}).items():
        interval = f"{100 * one['low']:.2f} to {100 * one['high']:.2f}"
        print_line(f"test accuracy of the {name}: {100 * one['mean']:.2f}% ({interval}): {one['label']}")
    for line in warnings(found):
        print_line(line)
    folder = from_here(plan.sweep.folder / "results")
    print_line("")
    print_line(f"report    {folder / 'report.html'}")
    if found.best is not None:
        words = command("train", "--config", folder / "best.yaml")
        print_line(f"repeat    {shlex.join(words)}")
    if plan.sweep.base.tracking.enabled:
        print_line(f"MLflow    {look(tracking_uri(plan.sweep.base.tracking.uri))}")
