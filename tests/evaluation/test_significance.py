from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from statsmodels.stats.contingency_tables import mcnemar as mcnemar_of_statsmodels
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_paired

from jaxtrain.evaluation.significance import (
    difference_of_shares,
    equivalence,
    holm,
    joint_spread,
    mcnemar,
    score,
    smallest_detectable_difference,
)
from jaxtrain.evaluation.statistics import wilson


def test_mcnemar_equals_statsmodels():
    first, second = np.array([0, 5, 0, 12, 30, 7]), np.array([0, 0, 9, 4, 31, 7])
    expected = [
        mcnemar_of_statsmodels([[50, a], [b, 20]], exact=True).pvalue if a + b else 1.0
        for a, b in zip(first, second, strict=True)
    ]
    assert mcnemar(first, second) == pytest.approx(expected, abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_holm_equals_statsmodels(seed):
    p = np.random.default_rng(seed).random(10) ** 3
    p[3] = p[4]
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1], abs=1e-12)


@pytest.mark.parametrize(("first", "second", "images"), [(10, 4, 100), (0, 0, 50), (3, 0, 40), (7, 9, 200), (0, 5, 30)])
@pytest.mark.parametrize("difference", [-0.05, 0.0, 0.02])
def test_the_score_uses_the_likeliest_shares_given_the_difference(first, second, images, difference):
    def unlikelihood(share):
        chances = np.array([share + difference, share, 1 - 2 * share - difference])
        counts = np.array([first, second, images - first - second])
        return -np.sum(counts * np.log(np.maximum(chances, 1e-300)))

    bounds = (max(0, -difference), (1 - difference) / 2)
    share = minimize_scalar(unlikelihood, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
    variance = images * (2 * share + difference - difference**2)
    expected = (first - second - images * difference) / np.sqrt(variance) if variance > 1e-9 else 0.0
    assert score(first, second, images, difference) == pytest.approx(expected, abs=1e-5)


def test_equivalence_nears_the_t_tests_of_statsmodels_where_there_is_much_disagreement():
    for only_first, only_second in [(1000, 1010), (1050, 1000), (900, 980), (1500, 1380)]:
        difference = np.repeat([1.0, -1.0, 0.0], [only_first, only_second, 10_000 - only_first - only_second])
        expected = ttost_paired(difference, np.zeros(10_000), -0.01, 0.01)[0]
        assert 1e-4 < expected < 0.8
        assert equivalence(only_first, only_second, 10_000) == pytest.approx(expected, abs=2e-3)


def test_models_that_never_differ_are_equivalent_only_on_enough_images():
    assert equivalence(0, 0, 100) > 0.05 > equivalence(0, 0, 300)


def test_all_pairs_need_more_than_one_and_no_more_than_bonferroni():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(4, 20_000))
    values, pairs = np.arange(4.0), np.array(list(itertools.combinations(range(4), 2)))
    replicates = values[:, None] + noise
    # Tukey's studentised range of 4 means is 3.633, that is 2.569 standard errors of a difference.
    assert joint_spread(values, replicates, pairs).width == pytest.approx(2.569, rel=0.03)
    assert joint_spread(values, replicates, pairs[:1]).width == pytest.approx(1.96, rel=0.03)
    heavy, with_the_first = rng.standard_cauchy((7, 20_000)), np.array([(0, other) for other in range(1, 7)])
    assert joint_spread(np.zeros(7), heavy, with_the_first).width <= 2.64
    assert joint_spread(np.zeros(3), np.zeros((3, 50)), pairs[:2]).width == pytest.approx(1.96, abs=1e-3)


def test_the_spread_of_many_pairs_is_that_of_each():
    rng = np.random.default_rng(0)
    values, replicates = rng.random(40), rng.random((40, 300))
    values[3], replicates[3] = np.nan, np.nan
    pairs = np.array(list(itertools.combinations(range(40), 2)))
    found = joint_spread(values, replicates, pairs)
    for n in (0, 255, 256, 500, 779):
        i, j = pairs[n]
        each = replicates[i] - replicates[j]
        assert found.differences[n] == values[i] - values[j]
        assert found.errors[n] == pytest.approx(np.sqrt(np.mean((each - values[i] + values[j]).var())))
        assert found.alone[:, n] == pytest.approx(np.quantile(each, [0.025, 0.975]))


def test_the_interval_of_a_difference_is_where_the_score_says_so():
    first, second, images = np.array([0, 1, 10, 0, 30]), np.array([0, 3, 10, 10, 0]), 90
    for (low, high), one, other in zip(difference_of_shares(first, second, images, 1.96).T, first, second, strict=True):
        assert -1 <= low <= (one - other) / images <= high <= 1
        for end in (low, high):
            assert abs(score(one, other, images, end)) == pytest.approx(1.96, abs=1e-6)
    # 88.9% right against all of 90: as far as the interval of 88.9% says.
    low, high = difference_of_shares(np.array([10]), np.array([0]), 90, 1.96)[:, 0]
    assert (1 - high, 1 - low) == pytest.approx(wilson(80 / 90, 90), abs=0.01)


@pytest.mark.parametrize("simulations", [400, pytest.param(20_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("better", "worse", "both"), [(0.98, 0.97, 0.952), (0.99, 0.97, 0.965), (1.0, 0.97, 0.97)])
def test_differences_are_covered_also_where_errors_are_rare(better, worse, both, simulations):
    chances = [better - both, worse - both, both, 1 - better - worse + both]
    first, second, *_ = np.random.default_rng(1).multinomial(144, np.clip(chances, 0, 1), simulations).T
    found = difference_of_shares(first, second, 144, 1.96).T
    share = np.mean([low <= better - worse <= high for low, high in found])
    slack = 0 if simulations > 1000 else 0.03
    assert 0.93 - slack <= share <= 0.97 + slack


def test_the_smallest_detectable_difference_is_detected_with_its_power():
    images, disagreement = 2000, 0.1
    smallest = smallest_detectable_difference(disagreement, images)
    rng = np.random.default_rng(0)
    chances = [(disagreement + smallest) / 2, (disagreement - smallest) / 2, 1 - disagreement]
    first, second, _ = rng.multinomial(images, chances, size=20_000).T
    assert np.mean(mcnemar(first, second) < 0.05) == pytest.approx(0.8, abs=0.03)
    assert smallest_detectable_difference(0.0, 100) > 0.02


def models(rng, images, count):
    """Which images each of several models of one true accuracy has right; half of the images are easy for all."""
    easy = rng.random(images) < 0.5
    return easy | (rng.random((count, images)) < 0.6)


def false_alarms(simulations, images, count, resamples):
    """How often any pair of equally good models is found to differ: by Holm, and by the joint intervals."""
    rng = np.random.default_rng(0)
    by_test, by_interval = 0, 0
    i, j = np.triu_indices(count, 1)
    for _ in range(simulations):
        right = models(rng, images, count)
        p = holm(mcnemar((right[i] & ~right[j]).sum(1), (~right[i] & right[j]).sum(1)))
        by_test += p.min() < 0.05
        weights = rng.multinomial(images, np.full(images, 1 / images), resamples) / images
        accuracy, replicates = right.mean(1), right.astype(float) @ weights.T
        width = joint_spread(accuracy, replicates, np.stack([i, j], 1)).width
        found = difference_of_shares((right[i] & ~right[j]).sum(1), (~right[i] & right[j]).sum(1), images, width).T
        by_interval += any(low > 0 or high < 0 for low, high in found)
    return by_test / simulations, by_interval / simulations


def test_false_alarms_in_a_few_simulations():
    assert max(false_alarms(150, 200, 4, 200)) <= 0.12


@pytest.mark.slow
@pytest.mark.soak
def test_at_most_6_percent_false_alarms_in_2000_simulations():
    assert max(false_alarms(2000, 500, 5, 500)) <= 0.06


def test_at_most_6_percent_of_models_at_the_margin_are_called_equivalent():
    rng = np.random.default_rng(0)
    for disagreement in (0.02, 0.1, 0.4):
        chances = [(disagreement + 0.01) / 2, (disagreement - 0.01) / 2, 1 - disagreement]
        first, second, _ = rng.multinomial(3000, chances, size=4000).T
        assert np.mean(equivalence(first, second, 3000) < 0.05) <= 0.06
