"""The trials of a sweep in an Optuna study, which any number of workers share.

A trial is one slot of the sweep: a run, or for tpe a proposed setting with all its seeds. Slots are put into the study
once, waiting; a worker claims one (the database lets only one of them), keeps its heartbeat, and says how it ended. The
slot of a worker that died is put back and its run directory resumed.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtrain.errors import UserError
from jaxtrain.files import file_lock, reason
from jaxtrain.redact import redact
from jaxtrain.sweeps.config import SweepConfig
from jaxtrain.sweeps.plan import Plan
from jaxtrain.sweeps.settings import Axis
from jaxtrain.tracking.provenance import process_identity, process_is_gone

HEARTBEAT_SECONDS, GRACE_SECONDS = 20, 120
_STARTUP_TRIALS = 4
_SLOT, _ENDED, _PROCESS, _OPTIONS = "slot", "ended", "process", "options"
BASELINE = "baseline"
"""The slot of a tpe sweep that proposes nothing."""


@dataclass(frozen=True)
class Slot:
    """What is put into the study: its name, and the values of a setting that is known."""

    name: str
    options: Mapping[str, Any] | None


def slots_of(plan: Plan) -> list[Slot]:
    """The slots of a sweep, in the order of its runs."""
    if plan.sweep.combine == "tpe":
        proposed = [Slot(f"proposal-{number:04d}", None) for number in range(plan.sweep.budget.trials or 0)]
        return [Slot(BASELINE, None), *proposed]
    return [Slot(run.digest, run.setting.options) for run in plan.runs]


class Claimed:
    """A slot that this worker has."""

    def __init__(self, trial: Any, slot: str, number: int) -> None:
        self.trial, self.slot, self.number = trial, slot, number

    def propose(self, axes: Sequence[Axis]) -> dict[str, Any]:
        """The values of the study's sampler, by option path."""
        found: dict[str, Any] = {}
        for axis in axes:
            if axis.range is None or axis.values:
                texts = _categories(axis)
                row = axis.values[texts.index(self.trial.suggest_categorical(axis.name, texts))]
            elif axis.whole:
                row = (
                    self.trial.suggest_int(axis.name, int(axis.range.low), int(axis.range.high), log=axis.range.log),
                )
            else:
                row = (self.trial.suggest_float(axis.name, axis.range.low, axis.range.high, log=axis.range.log),)
            found |= dict(zip(axis.paths, row, strict=True))
        return found

    def report(self, value: float, step: int) -> bool:
        """Note an intermediate value; whether the run is to be stopped."""
        self.trial.report(value, step)
        return bool(self.trial.should_prune())


class Trials:
    """The study of a sweep; `fill` comes first, and says which slots are looked at."""

    def __init__(self, sweep: SweepConfig, axes: Sequence[Axis]) -> None:
        """Makes or opens the study. Raises UserError for a storage that cannot be used, or another kind of sweep."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        self._sweep, self._axes = sweep, axes
        self._states = optuna.trial.TrialState
        sweep.folder.mkdir(parents=True, exist_ok=True)
        url = sweep.storage or f"sqlite:///{sweep.folder / 'study.db'}"
        arguments = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {"pool_pre_ping": True}
        with self._lock():
            try:
                self._storage = optuna.storages.RDBStorage(
                    url,
                    engine_kwargs=arguments,
                    heartbeat_interval=HEARTBEAT_SECONDS,
                    grace_period=GRACE_SECONDS,
                )
                self.study = optuna.create_study(
                    storage=self._storage,
                    study_name=sweep.name,
                    direction="maximize" if sweep.higher_is_better else "minimize",
                    pruner=_pruner(sweep),
                    load_if_exists=True,
                )
            except Exception as error:  # whatever the database's driver raises
                causes = [str(each) for each in (error, error.__cause__) if isinstance(each, ImportError)]
                raise UserError(f"storage {redact(url)}: {' '.join(causes) or reason(error)}") from error
            self._check_kind()
        self._slots: set[str] = set()
        self._id = self._storage.get_study_id_from_name(sweep.name)
        self._process = process_identity(os.getpid())

    def fill(self, slots: Sequence[Slot], *, again: bool = False) -> None:
        """Put in what is missing: slots that were never in, and those whose worker died; `again`: also failed ones."""
        wanted = {slot.name: slot for slot in slots}
        self._slots = set(wanted)
        with self._lock():
            there = {trial.user_attrs[_SLOT]: trial for trial in self._all()}  # the latest of a slot stands
            for slot in wanted.values():
                last = there.get(slot.name)
                if last is not None and not (
                    last.state == self._states.FAIL and (again or _ENDED not in last.user_attrs)
                ):
                    continue
                proposed = last.params if last is not None else {}
                attributes = {_SLOT: slot.name} | ({_OPTIONS: _plain(slot.options)} if slot.options else {})
                self.study.enqueue_trial(proposed, user_attrs=attributes)

    def claim(self, wanted: Sequence[str] | None = None) -> Claimed | None:
        """The first waiting slot (of those `wanted`) that no other worker takes at this moment."""
        from optuna.trial import Trial

        for frozen in self._all(self._states.WAITING):
            slot = frozen.user_attrs[_SLOT]
            if wanted is not None and slot not in wanted:
                continue
            if self._moved(frozen._trial_id, self._states.RUNNING):
                self._storage.set_trial_user_attr(frozen._trial_id, _PROCESS, self._process)
                self._storage.record_heartbeat(frozen._trial_id)
                self.study.sampler = _sampler(self._sweep, frozen.number)
                return Claimed(Trial(self.study, frozen._trial_id), slot, frozen.number)
        return None

    @contextlib.contextmanager
    def beating(self, claimed: Sequence[Claimed]) -> Iterator[None]:
        """While entered, the trials' heartbeats are kept by a thread."""
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(HEARTBEAT_SECONDS):
                for one in claimed:
                    with contextlib.suppress(Exception):  # a database that is away for a while
                        self._storage.record_heartbeat(one.trial._trial_id)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def take_over(self) -> int:
        """Give up the trials of workers that died; `fill` puts their slots back. Returns how many there were."""
        import optuna

        running = self._all(self._states.RUNNING)
        if not running:
            return 0
        now = datetime.datetime.now()
        given_up = 0
        for frozen in running:
            process = frozen.user_attrs.get(_PROCESS)
            started = frozen.datetime_start or now
            never_began = process is None and (now - started).total_seconds() > GRACE_SECONDS
            if never_began or (process is not None and process_is_gone(process)):
                given_up += self._moved(frozen._trial_id, self._states.FAIL)
        before = len(self._all(self._states.RUNNING))
        optuna.storages.fail_stale_trials(self.study)
        return given_up + before - len(self._all(self._states.RUNNING))

    def note(self, one: Claimed, options: Mapping[str, Any]) -> None:
        """Which setting a proposed slot became."""
        one.trial.set_user_attr(_OPTIONS, _plain(options))

    def done(self, one: Claimed, value: float) -> None:
        """The slot has its value."""
        self._end(one, "done", self._states.COMPLETE, [value])

    def pruned(self, one: Claimed, why: str) -> None:
        """The slot ended early and is not to be tried again."""
        self._end(one, why, self._states.PRUNED, None)

    def failed(self, one: Claimed, why: str) -> None:
        """The slot cannot be run as it is; the next start of the command tries again."""
        self._end(one, why, self._states.FAIL, None)

    def release(self, one: Claimed) -> None:
        """The slot is interrupted: whoever comes next goes on with it."""
        self._moved(one.trial._trial_id, self._states.FAIL)

    def ended(self) -> dict[str, str]:
        """How each slot that is over ended."""
        latest = {trial.user_attrs[_SLOT]: trial.user_attrs.get(_ENDED) for trial in self._all()}
        return {slot: how for slot, how in latest.items() if how is not None}

    def proposals(self) -> dict[str, Mapping[str, Any]]:
        """The settings that slots of a tpe sweep became, by slot."""
        found = ((trial.user_attrs[_SLOT], trial.user_attrs.get(_OPTIONS)) for trial in self._all())
        return {slot: options for slot, options in found if options is not None}

    def unfinished(self) -> int:
        """Slots that wait, or that workers have now."""
        return len(self._all(self._states.RUNNING, self._states.WAITING))

    def _end(self, one: Claimed, how: str, state: Any, values: list[float] | None) -> None:
        one.trial.set_user_attr(_ENDED, how)
        self._storage.set_trial_state_values(one.trial._trial_id, state=state, values=values)

    def _moved(self, trial_id: int, state: Any) -> bool:
        """Whether this worker, and no other, brought a trial into a state."""
        from optuna.exceptions import UpdateFinishedTrialError

        try:
            return bool(self._storage.set_trial_state_values(trial_id, state=state))
        except UpdateFinishedTrialError:
            return False

    def _all(self, *states: Any) -> list[Any]:
        found = self._storage.get_all_trials(self._id, deepcopy=False, states=states or None)
        return [trial for trial in found if trial.user_attrs.get(_SLOT) in self._slots]

    def _check_kind(self) -> None:
        kind: dict[str, Any] = {"combine": self._sweep.combine, "objective": self._sweep.objective}
        if self._sweep.combine == "tpe":
            kind["axes"] = [[axis.name, str(axis.range or _categories(axis))] for axis in self._axes]
        before = self.study.user_attrs.get("kind")
        if before is None:
            self.study.set_user_attr("kind", kind)
        elif before != json.loads(json.dumps(kind)):
            differs = next(key for key in {*kind, *before} if kind.get(key) != before.get(key))
            raise UserError(
                f"sweep {self._sweep.name} in {self._sweep.folder} was begun with {differs} {before.get(differs)}, "
                f"not {kind.get(differs)}; give the sweep another name"
            )

    def _lock(self) -> contextlib.AbstractContextManager[None]:
        return file_lock(self._sweep.folder / "study.lock")


def _categories(axis: Axis) -> list[Any]:
    """The values of an axis as Optuna takes them."""
    return [_text(row) for row in axis.values]


def _plain(options: Mapping[str, Any]) -> Any:
    """As JSON types."""
    return json.loads(json.dumps(dict(options)))


def _text(row: Sequence[Any]) -> Any:
    """A category: one number, text or nothing as it is, anything else as JSON."""
    value = row[0] if len(row) == 1 else row
    return value if value is None or isinstance(value, bool | int | float | str) else json.dumps(value)


def _sampler(sweep: SweepConfig, number: int) -> Any:
    """What proposes the trial of that number: the same again after the same trials, another in each worker."""
    import optuna

    seed = sweep.seed * 1_000_003 + number
    return optuna.samplers.TPESampler(
        seed=seed % 2**32, n_startup_trials=_STARTUP_TRIALS, constant_liar=sweep.combine == "tpe"
    )


def _pruner(sweep: SweepConfig) -> Any:
    import optuna

    match sweep.pruning:
        case "median":
            return optuna.pruners.MedianPruner(n_startup_trials=_STARTUP_TRIALS)
        case "halving":
            return optuna.pruners.SuccessiveHalvingPruner()
    return optuna.pruners.NopPruner()


logging.getLogger("alembic").setLevel(logging.WARNING)
