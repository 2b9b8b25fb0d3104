"""The trials of a sweep in an Optuna study, which any number of workers share.

A trial is one slot of the sweep: a run, or for tpe a proposed setting with all its seeds. Slots are enqueued once; a
worker holds those that it claims inside `study.optimize`, Optuna's own loop, which keeps their heartbeats and enqueues
the trials of workers that died again. What became of a run is decided by its run directory, and the trial follows it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import optuna
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import TrialState

from jaxtrain.errors import JaxtrainError, UserError
from jaxtrain.evaluation.finished import STUDY_LOCK
from jaxtrain.files import file_lock, reason
from jaxtrain.redact import redact
from jaxtrain.runs.learning import Pruned
from jaxtrain.sweeps.config import SweepConfig
from jaxtrain.sweeps.plan import Plan, Run
from jaxtrain.sweeps.settings import Axis, setting
from jaxtrain.tracking.store import sqlite_uri
from jaxtrain.training.nonfinite import Diverged

HEARTBEAT_SECONDS, GRACE_SECONDS = 10, 60
QUEUED = 16
"""Slots that wait at a time."""
_STARTUP_TRIALS = 4
_SLOT, _ENDED, _OPTIONS, _OPEN = "slot", "ended", "options", "open"
BASELINE = "baseline"
"""The slot of a tpe sweep that proposes nothing."""
_log = logging.getLogger(__name__)


class Claimed:
    """A slot that this worker has: a thread holds its trial inside `study.optimize` until `end`."""

    def __init__(self, study: optuna.Study, propose: Callable[[optuna.Trial], Mapping[str, Any] | None]) -> None:
        self._study, self._propose = study, propose
        self._begun: Future[tuple[optuna.Trial, Mapping[str, Any] | None]] = Future()
        self._end: Future[float | Exception | None] = Future()
        self._thread = threading.Thread(target=self._hold, daemon=True)
        self._thread.start()

    @property
    def slot(self) -> str | None:
        """Its name; None for a trial that is not a slot."""
        return self._begun.result()[0].user_attrs.get(_SLOT)

    @property
    def options(self) -> Mapping[str, Any] | None:
        """The values that were proposed for it, by option path."""
        return self._begun.result()[1]

    def report(self, value: float, step: int) -> bool:
        """Note an intermediate value; whether the run is to be stopped."""
        trial = self._begun.result()[0]
        trial.report(value, step)
        return bool(trial.should_prune())

    def end(self, outcome: float | Exception | None = None, *, wait: bool = True) -> None:
        """Say, once, how the slot ended: with its value, or with what went wrong.

        After Pruned and Diverged it is not tried again, after other errors at the next start of the command. None:
        it was interrupted, and whoever comes next goes on with it.
        """
        if not self._end.done():
            self._end.set_result(outcome)
        if wait:
            self._thread.join()

    def _hold(self) -> None:
        try:
            self._study.optimize(self._objective, n_trials=1)
        except _GivenUp:
            pass
        except Exception as error:
            if not self._begun.done():
                self._begun.set_exception(error)
            else:  # whoever gets the slot next finds what the run directory has
                _log.warning("how a run ended is not noted in the study: %s", reason(error))

    def _objective(self, trial: optuna.Trial) -> float:
        self._begun.set_result((trial, self._propose(trial)))
        match end := self._end.result():
            case None:
                raise _GivenUp
            case Exception():
                lost = isinstance(end, Diverged)
                trial.set_user_attr(_ENDED, f"diverged: {end}" if lost else str(end))
                raise optuna.TrialPruned if lost or isinstance(end, Pruned) else _GivenUp
        return end


class _GivenUp(Exception):  # noqa: N818  (it tells Optuna that a trial failed)
    """A trial that ends without a value."""


class Trials:
    """The study of a sweep, and the slots of it that its file asks for."""

    def __init__(self, plan: Plan) -> None:
        """Makes or opens the study. Raises UserError for a storage that cannot be used, or another kind of sweep."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        sweep = plan.sweep
        self._plan, self._slots = plan, _slots(plan)
        self._claimed: list[Claimed] = []
        self._lock = sweep.folder / STUDY_LOCK
        sweep.folder.mkdir(parents=True, exist_ok=True)
        self._url = sweep.storage or sqlite_uri(sweep.folder / "study.db")
        with file_lock(self._lock), _using(self._url):
            self.study = optuna.create_study(
                storage=_storage(self._url),
                study_name=sweep.name,
                direction="maximize" if sweep.higher_is_better else "minimize",
                pruner=_pruner(sweep),
                load_if_exists=True,
            )
            self._check_kind()

    def fill(self, *, again: bool = False) -> int:
        """Enqueue the next slots that were never in, and those that a worker gave up; returns how many have not ended.

        Few wait at a time, as Optuna reads all that do for each claim; `claim` adds more. `again`: also those that
        failed, and those that are done but lost their run directories.
        """
        with file_lock(self._lock), _using(self._url):
            optuna.storages.fail_stale_trials(self.study)
            lost = {slot for slot, run in self.runs() if self._plan.summary(run) is None} if again else set()
            if again:
                self.open_for_claims(True)
            latest = self._latest()
            self._enqueue_next(latest)
            for slot, last in latest.items():
                if (last.state == TrialState.FAIL and (again or _ENDED not in last.user_attrs)) or (
                    last.state == TrialState.COMPLETE and slot in lost
                ):
                    kept = {key: value for key, value in last.user_attrs.items() if key != _ENDED}
                    self.study.enqueue_trial(last.params or _plain(self._slots[slot]), user_attrs=kept)
        return self.unfinished()

    def claim(self) -> Claimed | None:
        """The first slot that waits, from now on this worker's alone; None where none does."""
        while True:
            with file_lock(self._lock):  # where nothing waits, Optuna would make up a trial
                latest = self._latest()
                waiting = any(trial.state == TrialState.WAITING for trial in latest.values())
                if (not waiting and len(latest) == len(self._slots)) or not self.study.user_attrs.get(_OPEN, True):
                    return None
                if not waiting:
                    self._enqueue_next(latest)
                one = Claimed(self.study, self._propose)
                self._claimed.append(one)
                if one.slot in self._slots:
                    return one
            one.end()  # the file does not have it any more

    def _enqueue_next(self, latest: Mapping[str, Any]) -> None:
        """So many of those that were never in that a few wait."""
        waiting = sum(trial.state == TrialState.WAITING for trial in latest.values())
        new = (slot for slot in self._slots if slot not in latest)
        for slot in itertools.islice(new, max(QUEUED - waiting, 0)):
            self.study.enqueue_trial(_plain(self._slots[slot]), user_attrs={_SLOT: slot})

    def close(self) -> None:
        """Give back what this worker claimed and did not end."""
        for one in self._claimed:
            one.end(wait=False)  # all of them, before waiting can be interrupted
        for one in self._claimed:
            one.end()
        self._claimed.clear()

    def ended(self) -> dict[str, str]:
        """How each slot that is over ended."""
        over = {slot: trial for slot, trial in self._latest().items() if trial.state.is_finished()}
        done = dict.fromkeys((slot for slot, trial in over.items() if trial.state == TrialState.COMPLETE), "done")
        return {slot: trial.user_attrs[_ENDED] for slot, trial in over.items() if _ENDED in trial.user_attrs} | done

    def open_for_claims(self, is_open: bool) -> None:
        """Whether any worker may claim a slot from now on."""
        if self.study.user_attrs.get(_OPEN, True) != is_open:
            self.study.set_user_attr(_OPEN, is_open)

    def waiting(self) -> int:
        """Slots that nobody has."""
        latest = self._latest()
        given = sum(trial.state != TrialState.WAITING for trial in latest.values())
        return len(self._slots) - given

    @property
    def count(self) -> int:
        """Slots that the file asks for."""
        return len(self._slots)

    def unfinished(self) -> int:
        """Slots that wait, that workers have now, or that were given back."""
        return len(self._slots) - len(self.ended())

    def runs(self) -> list[tuple[str, Run]]:
        """Every run that is known with its slot; a run that several slots came to, with the first."""
        plan = self._plan
        if plan.sweep.combine != "tpe":
            return [(run.digest, run) for run in plan.runs]
        found = [(BASELINE, run) for run in plan.runs]
        for slot, trial in self._latest().items():
            if _OPTIONS in trial.user_attrs:
                with contextlib.suppress(JaxtrainError):  # refused when it was proposed
                    one = setting(plan.sweep, trial.user_attrs[_OPTIONS])
                    found += [(slot, Run(one, repeat, "")) for repeat in plan.sweep.repeats]
        return list({run.digest: (slot, run) for slot, run in reversed(found)}.values())[::-1]

    def _latest(self) -> dict[str, Any]:
        """The trial that stands for each slot: the latest."""
        found = {trial.user_attrs.get(_SLOT): trial for trial in self.study.get_trials(deepcopy=False)}
        return {slot: trial for slot, trial in found.items() if slot in self._slots}

    def _propose(self, trial: optuna.Trial) -> dict[str, Any] | None:
        """The values of the study's sampler where a slot asks for them: the same again for who goes on with it."""
        sweep = self._plan.sweep
        if sweep.combine != "tpe" or trial.user_attrs.get(_SLOT) in (None, BASELINE):
            return None
        self.study.sampler = _sampler(sweep, trial.number)
        found: dict[str, Any] = {}
        for axis in self._plan.axes:
            found |= dict(zip(axis.paths, _suggested(trial, axis), strict=True))
        trial.set_user_attr(_OPTIONS, _plain(found))
        return found

    def _check_kind(self) -> None:
        sweep = self._plan.sweep
        kind: dict[str, Any] = {"combine": sweep.combine, "objective": sweep.objective}
        if sweep.combine == "tpe":
            kind["axes"] = [[axis.name, str(axis.range or [*map(_text, axis.values)])] for axis in self._plan.axes]
        before = self.study.user_attrs.get("kind")
        if before is None:
            self.study.set_user_attr("kind", kind)
        elif before != _plain(kind):
            differs = next(key for key in {*kind, *before} if kind.get(key) != before.get(key))
            raise UserError(
                f"sweep {sweep.name} in {sweep.folder} was begun with {differs} {before.get(differs)}, "
                f"not {kind.get(differs)}; give the sweep another name"
            )


class _Storage(RDBStorage):  # type: ignore[misc]  # Optuna's types are not followed
    """Optuna's, with a heartbeat that has no gaps."""

    def record_heartbeat(self, trial_id: int) -> None:
        """Goes on where the database is away for a while."""
        with contextlib.suppress(Exception):
            super().record_heartbeat(trial_id)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """The first beat comes before a trial runs, so that a worker killed right after it claimed one is missed."""
        if state == TrialState.RUNNING:
            self.record_heartbeat(trial_id)
        return bool(super().set_trial_state_values(trial_id, state, values))


_POSTGRES = ("postgres://", "postgresql://")


def _storage(url: str) -> RDBStorage:
    if url.startswith(_POSTGRES):  # with the driver of the extra
        url = f"postgresql+psycopg://{url.partition('://')[2]}"
    arguments = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    return _Storage(
        url,
        engine_kwargs=arguments,
        heartbeat_interval=HEARTBEAT_SECONDS,
        grace_period=GRACE_SECONDS,
        heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
    )


@contextlib.contextmanager
def _using(url: str) -> Iterator[None]:
    """Around work with a database: whatever its driver raises, or what damaged content does to Optuna, is one line."""
    try:
        yield
    except JaxtrainError:
        raise
    except Exception as error:
        why = reason(error)
        if isinstance(error, ImportError):
            missing = "psycopg is missing: pip install 'jaxtrain[postgres]'"
            why = missing if url.startswith(_POSTGRES) else f"{why} {error.__cause__}"
        raise UserError(f"storage {redact(url)}: {why}") from error


def _slots(plan: Plan) -> dict[str, Mapping[str, Any]]:
    """The slots of a sweep with the values that are known of each, in the order of its runs."""
    if plan.sweep.combine != "tpe":
        return {run.digest: run.setting.options for run in plan.runs}
    proposals = [f"proposal-{number:04d}" for number in range(plan.sweep.budget.trials or 0)]
    return {slot: {} for slot in [BASELINE, *proposals]}


def _suggested(trial: optuna.Trial, axis: Axis) -> tuple[Any, ...]:
    """One value for each path of an axis."""
    if axis.range is None or axis.values:
        texts = [*map(_text, axis.values)]
        return axis.values[texts.index(trial.suggest_categorical(axis.name, texts))]
    low, high, log = axis.range.low, axis.range.high, axis.range.log
    if axis.whole:
        return (trial.suggest_int(axis.name, int(low), int(high), log=log),)
    return (trial.suggest_float(axis.name, low, high, log=log),)


def _plain(options: Mapping[str, Any]) -> Any:
    """As JSON types."""
    return json.loads(json.dumps(dict(options)))


def _text(row: Sequence[Any]) -> Any:
    """A category: one number, text or nothing as it is, anything else as JSON."""
    value = row[0] if len(row) == 1 else row
    return value if value is None or isinstance(value, bool | int | float | str) else json.dumps(value)


def _sampler(sweep: SweepConfig, number: int) -> optuna.samplers.BaseSampler:
    """What proposes the trial of that number: the same again after the same trials, another in each worker."""
    seed = (sweep.seed * 1_000_003 + number) % 2**32
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=_STARTUP_TRIALS, constant_liar=True)


def _pruner(sweep: SweepConfig) -> optuna.pruners.BasePruner:
    match sweep.pruning:
        case "median":
            return optuna.pruners.MedianPruner(n_startup_trials=_STARTUP_TRIALS)
        case "halving":
            return optuna.pruners.SuccessiveHalvingPruner()
    return optuna.pruners.NopPruner()


logging.getLogger("alembic").setLevel(logging.WARNING)
