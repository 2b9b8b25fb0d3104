"""The trials of a sweep: put in once, claimed by one, put in again when their worker died."""

import ast
import contextlib
import itertools
import json
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from optuna.trial import TrialState

import jaxtrain.sweeps
from jaxtrain.config import Config
from jaxtrain.errors import RunError, UserError
from jaxtrain.runs.learning import Pruned
from jaxtrain.sweeps import study
from jaxtrain.sweeps.config import SweepConfig
from jaxtrain.sweeps.plan import Plan, Run, Workshop
from jaxtrain.sweeps.settings import axes_of, settings_of
from jaxtrain.sweeps.study import BASELINE, Trials

RATE, RANGE = "optimizer.learning_rate", {"low": 1e-4, "high": 1e-2, "log": True}
DIES = """
import os, sys
from tests.sweeps.test_study import plan
from jaxtrain.sweeps import study
study.HEARTBEAT_SECONDS, study.GRACE_SECONDS = 1, 2
trials = study.Trials(plan())
trials.fill()
print(trials.claim().slot, flush=True)
os._exit(9)
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def opened():
    """Opens studies, and leaves nothing claimed behind."""
    every = []

    def new(*arguments, **options):
        every.append(Trials(plan(*arguments, **options)))
        return every[-1]

    yield new
    for one in every:
        one.close()


def plan(axes=None, **options):
    axes = axes or {RATE: (1e-3, 3e-3, 1e-2)}
    sweep = SweepConfig(**{"name": "s", "base": Config(optimizer={"learning_rate": 1e-3}), "axes": axes, **options})
    found = axes_of(sweep)
    runs = [Run(one, repeat, "") for one in settings_of(sweep, found) for repeat in sweep.repeats]
    return Plan(sweep, found, runs, runs[0].setting.digest, Workshop(), Path("s.yaml"))


def searched(**options):
    return {"combine": "tpe", "axes": {RATE: RANGE}, "budget": {"trials": 3}, **options}


def claim(trials, number):
    return [trials.claim() for _ in range(number)]


def finish_run(run, **summary):
    folder = Path("runs/sweeps/s", run.name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(summary))


def test_slots_are_put_in_once_and_claimed_by_one_worker_each(opened):
    slots = [run.digest for run in plan().runs]
    first, second = opened(), opened()
    assert first.fill() == second.fill() == 3
    claimed = [first.claim(), second.claim(), first.claim(), second.claim()]
    assert [one.slot if one else None for one in claimed] == [*slots, None]
    assert first.unfinished() == 3
    claimed[0].end(0.9)
    claimed[1].end(Pruned("pruned at step 3"))
    claimed[2].end(RunError("no memory"))
    assert first.unfinished() == 0
    assert second.ended() == dict(zip(slots, ["done", "pruned at step 3", "no memory"], strict=True))


def test_more_slots_than_wait_at_a_time_are_each_given_once(opened, monkeypatch):
    monkeypatch.setattr(study, "QUEUED", 4)
    rates = [round(1e-3 + n * 1e-6, 7) for n in range(10)]
    first, second = (opened(axes={RATE: rates}) for _ in range(2))
    assert first.fill() == second.fill() == len(rates)
    assert first.waiting() == len(rates)
    assert sum(trial.state == TrialState.WAITING for trial in first.study.trials) == 4
    found = []
    for trials in itertools.cycle((first, second)):
        if (one := trials.claim()) is None:
            break
        found.append(one.slot)
        one.end(0.5)
    assert found == [run.digest for run in plan(axes={RATE: rates}).runs]
    assert second.waiting() == first.fill() == 0


def test_what_ended_stays_ended_and_what_failed_is_tried_at_the_next_start(opened):
    trials = opened()
    trials.fill()
    pruned, failed, released = claim(trials, 3)
    pruned.end(Pruned("pruned at step 3"))
    failed.end(RunError("no memory"))
    released.end()
    assert trials.unfinished() == trials.fill() == 1
    assert trials.claim().slot == released.slot
    assert trials.claim() is None
    assert trials.fill(again=True) == 2
    assert trials.claim().slot == failed.slot


def test_a_trial_follows_the_run_directory(opened):
    runs, trials = plan().runs, opened()
    trials.fill()
    for one, run in zip(claim(trials, 2), runs, strict=False):
        one.end(0.5)
        finish_run(run)
    Path("runs/sweeps/s", runs[0].name, "summary.json").unlink()
    assert trials.fill() == 1  # looked at when a command starts
    assert trials.fill(again=True) == 2
    assert {one.slot for one in claim(trials, 2)} == {runs[0].digest, runs[2].digest}


@pytest.mark.slow
def test_a_slot_of_a_dead_worker_is_claimed_again_and_one_of_a_living_is_not(opened, monkeypatch):
    monkeypatch.setattr(study, "HEARTBEAT_SECONDS", 1)
    monkeypatch.setattr(study, "GRACE_SECONDS", 2)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run([sys.executable, "-c", DIES], capture_output=True, text=True, check=False, env=environment)
    trials, slots = opened(), [run.digest for run in plan().runs]
    assert done.stdout.split() == slots[:1], done.stderr
    claimed = claim(trials, 2)
    assert [one.slot for one in claimed] == slots[1:]
    deadline = time.monotonic() + 60
    while (one := trials.claim()) is None and time.monotonic() < deadline:
        assert trials.fill() == 3
        time.sleep(0.2)
    assert one.slot == slots[0]
    time.sleep(4)  # the others live on
    trials.fill()
    assert trials.claim() is None


def test_a_sweep_of_another_kind_is_refused(opened):
    opened()
    with pytest.raises(UserError, match="combine grid, not zip"):
        opened(combine="zip")


@pytest.mark.parametrize("damage", ["update trial_user_attributes set value_json = '{'", "update trials set state = 7"])
def test_a_study_with_damaged_content_is_one_line(opened, damage):
    opened().fill()
    with contextlib.closing(sqlite3.connect("runs/sweeps/s/study.db")) as database, database:
        database.execute(damage)
    with pytest.raises(UserError, match=r"storage .*study\.db: ") as raised:
        opened().fill()
    assert "\n" not in str(raised.value)


def test_a_storage_that_cannot_be_is_one_line(opened):
    with pytest.raises(UserError, match="storage nonsense") as raised:
        opened(storage="nonsense")
    assert "\n" not in str(raised.value)


def test_postgresql_without_its_driver_names_the_extra(opened, monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(UserError, match=r"jaxtrain\[postgres\]") as raised:
        opened(storage="postgresql://me:secret@host/sweeps")
    assert "\n" not in str(raised.value)
    assert "secret" not in str(raised.value)


@pytest.mark.slow
def test_a_study_in_postgresql(opened, postgres):
    where = {"storage": postgres, "name": "shared"}
    first, second = opened(**where), opened(**where)
    assert first.fill() == second.fill() == 3
    for trials in (first, second, first):
        trials.claim().end(0.5)
    assert second.claim() is None
    assert list(second.ended().values()) == ["done"] * 3


def test_proposals_are_inside_their_axes_and_come_back_to_who_goes_on(opened):
    trials = opened(**searched(axes={RATE: RANGE, "train.batch_size": (16, 32)}, budget={"trials": 1}))
    trials.fill()
    baseline, claimed = claim(trials, 2)
    assert (baseline.slot, baseline.options) == (BASELINE, None)
    options = dict(claimed.options)
    assert 1e-4 <= options[RATE] <= 1e-2
    assert options["train.batch_size"] in (16, 32)
    claimed.end()
    trials.fill()
    assert trials.claim().options == options
    assert {run.setting.options[RATE] for _, run in trials.runs()} == {1e-3, options[RATE]}


def test_slots_that_the_file_no_longer_has_are_left_alone(opened):
    trials = opened()
    trials.fill()
    fewer = opened({RATE: (3e-3, 1e-2)})
    assert fewer.fill() == 2
    slots = [run.digest for run in plan().runs]
    assert [one.slot if one else None for one in claim(fewer, 3)] == [*slots[1:], None]
    assert trials.fill() == 3
    assert trials.claim().slot == slots[0]


def test_proposals_follow_from_the_seed(opened):
    def proposals(name, seed):
        trials = opened(**searched(name=name, seed=seed))
        trials.fill()
        found = []
        for number in range(4):
            claimed = trials.claim()
            found.append(claimed.options and claimed.options[RATE])
            claimed.end(number / 3)
        return found[1:]

    assert proposals("u", 0) == proposals("v", 0) != proposals("w", 1)
    assert len(set(proposals("x", 0))) == 3


def test_nothing_private_of_optuna_is_used():
    """Private names are asked of this package's own objects alone: `self`, or the parent of a class."""
    for path in Path(jaxtrain.sweeps.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
                assert ast.unparse(node.value) == "self", f"{path.name}:{node.lineno}: {ast.unparse(node)}"
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("optuna"):
                names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
                assert not any(name.startswith("_") for name in names), f"{path.name}:{node.lineno}"


@pytest.mark.parametrize("name", ["a%20b", "what?"])
def test_the_study_lies_in_the_folder_of_the_sweep_whatever_that_is_called(name, opened, tmp_path, monkeypatch):
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    opened().fill()
    assert (tmp_path / name / "runs" / "sweeps" / "s" / "study.db").is_file()
    assert [path.name for path in tmp_path.iterdir()] == [name]
