"""The trials of a sweep: put in once, claimed by one, taken over from the dead."""

import subprocess
import sys
import textwrap

import pytest

from jaxtrain.config import Config
from jaxtrain.errors import UserError
from jaxtrain.sweeps.config import SweepConfig
from jaxtrain.sweeps.settings import axes_of
from jaxtrain.sweeps.study import Slot, Trials

SLOTS = [Slot(name, {"optimizer.learning_rate": 0.1}) for name in ("a", "b", "c")]
AXES = {"optimizer.learning_rate": (1e-3, 3e-3)}


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def opened(**options):
    sweep = SweepConfig(name="s", base=Config(), axes=AXES, **options)
    return Trials(sweep, axes_of(sweep))


def test_slots_are_put_in_once_and_claimed_by_one_worker_each():
    first, second = opened(), opened()
    first.fill(SLOTS)
    second.fill(SLOTS)
    claimed = [first.claim(), second.claim(), first.claim(), second.claim()]
    assert [one.slot if one else None for one in claimed] == ["a", "b", "c", None]
    assert first.unfinished() == 3
    first.done(claimed[0], 0.9)
    second.pruned(claimed[1], "pruned at step 3")
    first.failed(claimed[2], "no memory")
    assert first.unfinished() == 0
    assert second.ended() == {"a": "done", "b": "pruned at step 3", "c": "no memory"}


def test_what_ended_stays_ended_and_what_failed_is_tried_at_the_next_start():
    trials = opened()
    trials.fill(SLOTS)
    trials.done(trials.claim(), 0.5)
    trials.failed(trials.claim(), "no memory")
    trials.release(trials.claim())
    trials.fill(SLOTS)
    assert [trials.claim().slot] == ["c"]
    assert trials.claim() is None
    trials.fill(SLOTS, again=True)
    assert trials.claim().slot == "b"


def test_a_slot_of_a_dead_worker_is_taken_over_and_one_of_a_living_is_not():
    trials = opened()
    trials.fill(SLOTS)
    script = """
        import os
        from jaxtrain.config import Config
        from jaxtrain.sweeps.config import SweepConfig
        from jaxtrain.sweeps.settings import axes_of
        from jaxtrain.sweeps.study import Slot, Trials
        sweep = SweepConfig(name="s", base=Config(), axes={"optimizer.learning_rate": (1e-3, 3e-3)})
        trials = Trials(sweep, axes_of(sweep))
        trials.fill([Slot("a", {"optimizer.learning_rate": 0.1})])
        print(trials.claim().slot, flush=True)
        os._exit(9)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["a"], done.stderr
    mine = trials.claim()
    assert mine.slot == "b"
    assert trials.take_over() == 1
    trials.fill(SLOTS)
    assert trials.take_over() == 0
    assert sorted([trials.claim().slot, trials.claim().slot]) == ["a", "c"]


def test_a_sweep_of_another_kind_is_refused():
    opened()
    with pytest.raises(UserError, match="was begun with combine grid, not zip; give the sweep another name"):
        opened(combine="zip")


def test_a_storage_that_cannot_be_is_one_line():
    with pytest.raises(UserError, match="storage nonsense") as raised:
        opened(storage="nonsense")
    assert "\n" not in str(raised.value)


def test_proposals_are_inside_their_axes_and_come_back_to_who_takes_over():
    axes = {"optimizer.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}, "train.batch_size": (16, 32)}
    sweep = SweepConfig(name="t", base=Config(), axes=axes, combine="tpe", budget={"trials": 2})
    trials = Trials(sweep, axes_of(sweep))
    trials.fill([Slot("p", None)])
    claimed = trials.claim()
    options = claimed.propose(axes_of(sweep))
    assert 1e-4 <= options["optimizer.learning_rate"] <= 1e-2
    assert options["train.batch_size"] in (16, 32)
    trials.release(claimed)
    trials.fill([Slot("p", None)])
    assert trials.claim().propose(axes_of(sweep)) == options


def test_slots_that_the_file_no_longer_has_are_left_alone():
    trials = opened()
    trials.fill(SLOTS)
    trials.fill(SLOTS[1:])
    assert [trials.claim().slot, trials.claim().slot, trials.claim()] == ["b", "c", None]
    assert trials.unfinished() == 2


def test_proposals_follow_from_the_seed():
    def proposals(name, seed):
        axes = {"optimizer.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}
        sweep = SweepConfig(name=name, base=Config(), axes=axes, combine="tpe", budget={"trials": 3}, seed=seed)
        trials = Trials(sweep, axes_of(sweep))
        trials.fill([Slot(str(number), None) for number in range(3)])
        found = []
        for number in range(3):
            claimed = trials.claim()
            found.append(claimed.propose(axes_of(sweep))["optimizer.learning_rate"])
            trials.done(claimed, number / 3)
        return found

    assert proposals("u", 0) == proposals("v", 0) != proposals("w", 1)
    assert len(set(proposals("x", 0))) == 3
