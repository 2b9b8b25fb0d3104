"""Means, intervals, effects and interactions against SciPy, statsmodels and sums done by hand."""

import dataclasses
import itertools

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.weightstats import DescrStatsW

from jaxtrain.config import Config
from jaxtrain.sweeps.config import SweepConfig
from jaxtrain.sweeps.page import warnings
from jaxtrain.sweeps.report import in_words
from jaxtrain.sweeps.results import Outcome, estimate, results_of
from jaxtrain.sweeps.settings import axes_of, settings_of

RATES, SIZES, SEEDS = (1e-3, 3e-3), (16, 32, 64), (0, 1, 2)


def sweep_of(combine="grid"):
    base = Config(optimizer={"learning_rate": RATES[0]}, train={"batch_size": SIZES[0]})
    axes = {"optimizer.learning_rate": RATES, "train.batch_size": SIZES}
    return SweepConfig(name="s", base=base, axes=axes, seeds=SEEDS, combine=combine)


def outcomes_of(sweep, value):
    settings = settings_of(sweep, axes_of(sweep))
    return [
        Outcome(one, each, one.run_name(each), value(*one.options.values(), each.seed), "done")
        for one in settings
        for each in sweep.repeats
    ]


def results(value, combine="grid"):
    sweep = sweep_of(combine)
    outcomes = outcomes_of(sweep, value)
    return results_of(sweep, axes_of(sweep), outcomes, outcomes[0].setting.digest)


@pytest.fixture(scope="module")
def table():
    return dict(
        zip(
            itertools.product(RATES, SIZES, SEEDS), np.random.default_rng(0).uniform(0.8, 0.9, 18).tolist(), strict=True
        )
    )


def test_the_interval_is_students():
    values = [0.91, 0.93, 0.92, 0.97]
    one = estimate(values)
    low, high = DescrStatsW(values).tconfint_mean()
    assert (one.low, one.high) == pytest.approx((low, high), abs=1e-12)
    assert one.deviation == pytest.approx(np.std(values, ddof=1))
    assert np.isnan(estimate([0.5]).low)


def test_main_effects_are_marginal_means(table):
    found = results(lambda rate, size, seed: table[rate, size, seed])
    cells = np.array([table[key] for key in itertools.product(RATES, SIZES, SEEDS)]).reshape(2, 3, 3)
    gaps = cells.mean(1) - cells.mean((0, 1))  # rate, seed
    for place, rate in enumerate(RATES):
        one = next(e for e in found.effects if e.axis == "optimizer.learning_rate" and float(e.value) == rate)
        assert one.estimate.mean == pytest.approx(gaps[place].mean())
        assert one.mean == pytest.approx(cells[place].mean())
        interval = stats.t.interval(0.95, 2, gaps[place].mean(), stats.sem(gaps[place]))
        assert (one.estimate.low, one.estimate.high) == pytest.approx(interval)


def test_interactions_are_what_an_additive_model_leaves(table):
    added = results(lambda rate, size, seed: 10 * rate + size / 1000 + seed)
    assert max(abs(one.estimate.mean) for one in added.interactions) == pytest.approx(0, abs=1e-12)
    found = results(lambda rate, size, seed: table[rate, size, seed])
    cells = np.array([table[key] for key in itertools.product(RATES, SIZES, SEEDS)]).reshape(2, 3, 3).mean(2)
    rest = cells - cells.mean(0) - cells.mean(1, keepdims=True) + cells.mean()
    assert abs(found.interactions[0].estimate.mean) == pytest.approx(np.abs(rest).max())
    assert len(found.interactions) == 6


def test_one_at_a_time_compares_with_the_baseline_seed_by_seed(table):
    found = results(lambda rate, size, seed: table[rate, size, seed], "one_at_a_time")
    one = next(e for e in found.effects if e.axis == "optimizer.learning_rate")
    gaps = [table[RATES[1], SIZES[0], seed] - table[RATES[0], SIZES[0], seed] for seed in SEEDS]
    test = stats.ttest_1samp(gaps, 0).confidence_interval()
    assert (one.estimate.low, one.estimate.high) == pytest.approx((test.low, test.high))
    assert found.interactions == []


def test_the_best_has_the_best_mean_and_all_its_seeds():
    values = {(3e-3, 64): 0.95, (3e-3, 32): 0.99}
    found = results(
        lambda rate, size, seed: None if (rate, size, seed) == (3e-3, 32, 1) else values.get((rate, size), 0.9)
    )
    assert tuple(found.best.setting.options.values()) == (3e-3, 64)
    assert found.best.against.mean == pytest.approx(0.05)
    assert found.ranked[-1].unfinished == 1


def test_a_sweep_in_which_nothing_ended_has_no_best():
    found = results(lambda *_: None)
    assert found.best is None
    assert (list(found.effects), list(found.interactions), found.importances) == ([], [], {})


def with_parameters(found, digest):
    """The same results where each run came to the parameters that `digest` says, at a cost of its batch size."""
    outcomes = [
        dataclasses.replace(
            one,
            summary={
                "params_sha256": digest(one.setting.label, one.repeat.seed),
                "params": 9,
                "wall_seconds": one.setting.options["train.batch_size"],
            },
        )
        for one in found.outcomes
    ]
    return results_of(found.sweep, found.axes, outcomes, outcomes[0].setting.digest)


def test_seeds_that_came_to_the_same_parameters_are_one_result():
    found = results(lambda rate, size, _: 0.5 + 100 * rate + size / 1000)
    same = with_parameters(found, lambda label, _: label)
    assert [one.estimate.count for one in same.ranked] == [1] * 6
    assert [one.against.count for one in same.ranked if one.against] == [1] * 5
    assert {one.estimate.count for one in (*same.effects, *same.interactions)} == {1}
    assert [one.estimate.mean for one in same.effects] == pytest.approx([one.estimate.mean for one in found.effects])
    assert "[" not in in_words(same.ranked[0].estimate, True)
    assert any("all seeds of every setting came to the same parameters" in line for line in warnings(same))
    other = with_parameters(found, lambda label, seed: f"{label} {seed}")
    assert [one.estimate.count for one in other.ranked] == [3] * 6
    assert not other.seedless


def test_a_tie_goes_to_the_cheapest_and_is_said():
    tied = with_parameters(results(lambda rate, size, _: 139 / 144 if size > 16 else 0.9), lambda label, _: label)
    assert tied.best.setting.options["train.batch_size"] == 32
    assert {one.setting.options["train.batch_size"] for one in tied.tied} == {32, 64}
    line = next(line for line in warnings(tied) if "a tie for the best" in line)
    assert tied.tied[0].setting.label in line
    assert not results(lambda rate, size, seed: rate + size + seed).tied


def test_an_accuracy_beyond_one_is_not_in_an_interval():
    found = results(lambda rate, size, seed: 0.8 + 0.1 * seed)
    assert all(one.estimate.high == 1.0 and one.estimate.low >= 0 for one in found.ranked)


def test_importance_goes_to_what_matters():
    found = results(lambda rate, size, seed: 100 * rate + seed / 1e6)
    assert found.importances["optimizer.learning_rate"] > 0.95
    assert sum(found.importances.values()) == pytest.approx(1, abs=1e-6)
