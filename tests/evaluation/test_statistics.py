from __future__ import annotations

import numpy as np
import pytest
from statsmodels.stats.proportion import proportion_confint

from jaxtrain.evaluation import statistics
from jaxtrain.evaluation.metrics import classification_metrics, outcomes, weighted_metrics
from jaxtrain.evaluation.statistics import (
    Interval,
    Resampled,
    bias_corrected,
    bounded,
    bounded_differences,
    intervals,
    mean_of_seeds,
    percentile,
    resample,
    resampling_weights,
    sum_of_gaps,
    wilson,
)
from jaxtrain.tasks import softmax


def population(classes=10, images=20_000, sharpness=1.0, imbalance=0.0, seed=0):
    """Labels and probabilities of a model that is right on about 80% of them; calibrated for `sharpness` 1."""
    rng = np.random.default_rng(seed)
    prior = np.exp(-imbalance * np.arange(classes))
    labels = rng.choice(classes, images, p=prior / prior.sum())
    logits = rng.normal(size=(images, classes))
    logits[np.arange(images), labels] += 2.5 + 0.5 * rng.normal(size=images)
    return labels, softmax(2.5 * sharpness * logits)


def sample(labels, images, rng):
    """Images drawn one by one."""
    return rng.integers(len(labels), size=images)


def weights_of(labels, resamples=400, seed=0):
    return np.concatenate(list(resampling_weights(len(labels), resamples, seed)), axis=1)


def test_images_are_drawn_one_by_one_whatever_their_class():
    weights = weights_of(range(100), 4000)
    assert weights.shape == (100, 4000)
    assert (weights.sum(axis=0) == 100).all()
    rare = weights[:5].sum(axis=0)
    assert rare.var() == pytest.approx(100 * 0.05 * 0.95, rel=0.1)
    values = np.random.default_rng(0).normal(size=100)
    assert (values @ weights / 100).std() == pytest.approx(values.std() / 10, rel=0.1)


def test_draws_depend_on_the_seed_alone_and_come_in_parts(monkeypatch):
    labels = np.arange(60) % 3
    assert np.array_equal(weights_of(labels), weights_of(labels))
    assert not np.array_equal(weights_of(labels), weights_of(labels, seed=1))
    monkeypatch.setattr(statistics, "_CACHED", 60 * 40)
    parts = list(resampling_weights(60, 100, 0))
    assert [part.shape for part in parts] == [(60, 40), (60, 40), (60, 20)]
    assert not np.array_equal(parts[0], parts[1])
    found = outcomes(*population(images=60))
    assert resample(found, 100).replicates["mcc"].shape == (100,)


def test_replicates_are_the_metrics_of_the_resamples():
    labels, probabilities = population(6, 120)
    found = outcomes(labels, probabilities)
    resampled = resample(found, 30, seed=3)
    weights = weights_of(labels, 30, 3)
    assert resampled.metrics == pytest.approx(classification_metrics(labels, probabilities))
    for name, values in weighted_metrics(found, weights).items():
        assert values == pytest.approx(resampled.replicates[name])
    for name, (gaps, replicates) in resampled.gaps.items():
        assert np.abs(gaps).sum() == pytest.approx(resampled.metrics[name])
        assert np.abs(replicates).sum(axis=0) == pytest.approx(resampled.replicates[name])


def test_wilson_equals_statsmodels():
    for right, images in [(0, 7), (7, 7), (36, 100), (359, 360)]:
        expected = proportion_confint(right, images, method="wilson")
        assert wilson(right / images, images) == pytest.approx(expected, abs=1e-12)


def test_quantiles_with_and_without_correction():
    replicates = np.random.default_rng(0).permutation(np.arange(1001.0))
    assert percentile(replicates) == pytest.approx((25, 975))
    assert bias_corrected(500.0, replicates) == pytest.approx((25, 975), abs=0.1)
    # The replicates lie too high, by a quarter of their deviation, and the metric as much: twice that is taken off.
    assert bias_corrected(400.0, replicates) == pytest.approx((6.8, 927.1), abs=0.5)
    assert bias_corrected(1.0, np.ones(100)) == (1.0, 1.0)


def test_a_calibrated_model_may_have_no_calibration_error():
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.01, (15, 2000))
    assert sum_of_gaps(noise[:, 0], noise[:, :1] + noise).low == 0.0
    gaps = np.full(15, 0.05)
    low, high = sum_of_gaps(gaps, gaps[:, None] + noise)
    assert (low, high) == pytest.approx((0.75 - 1.96 * 0.01 * 15**0.5, 0.75 + 1.96 * 0.01 * 15**0.5), abs=0.01)
    assert sum_of_gaps(gaps, np.repeat(gaps[:, None], 50, axis=1)) == pytest.approx((0.75, 0.75))


@pytest.mark.parametrize("case", ["all right", "all wrong", "one image a class", "two classes", "one class"])
def test_intervals_of_degenerate_cases_hold_the_metric(case):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2 if case == "two classes" else 8, 80)
    predicted = {"all right": labels, "all wrong": (labels + 1) % 8}.get(case, rng.integers(0, 2, 80))
    if case == "one image a class":
        labels = np.arange(8)
        predicted = np.array([0, 1, 2, 3, 3, 3, 3, 3])
    if case == "one class":
        labels = np.zeros(80, int)
    probabilities = np.full((len(labels), 8), 0.01)
    probabilities[np.arange(len(labels)), predicted] = 0.93
    resampled = resample(outcomes(labels, probabilities), 200)
    found = intervals(resampled)
    assert set(found) == set(resampled.metrics) - {
        *("worst_class_accuracy", "coverage_at_1pct_risk", "coverage_at_5pct_risk")
    }
    for name, interval in found.items():
        assert interval.low <= resampled.metrics[name] <= interval.high, name
        lowest, highest = {"mcc": (-1, 1), "loss": (0, np.inf), "brier": (0, 2)}.get(name, (0, 1))
        assert lowest <= interval.low <= interval.high <= highest, name
    assert found["accuracy"].high > found["accuracy"].low


def coverage(simulations, resamples, images, **kind):
    """Share of simulations whose interval holds the population's value, for each metric."""
    labels, probabilities = population(**kind)
    truth = classification_metrics(labels, probabilities)
    rng = np.random.default_rng(1)
    hits = {}
    for seed in range(simulations):
        drawn = sample(labels, images, rng)
        for name, interval in intervals(
            resample(outcomes(labels[drawn], probabilities[drawn]), resamples, seed)
        ).items():
            hits.setdefault(name, []).append(interval.low <= truth[name] <= interval.high)
    return {name: np.mean(found) for name, found in hits.items()}


def test_intervals_cover_in_a_few_simulations():
    found = coverage(60, 200, 300, classes=6)
    assert len(found) == 13
    assert min(found.values()) >= 0.85  # at 95% fewer than 51 of 60 come once in 10,000 times


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("sharpness", "simulations", "slack"),
    [
        (1.0, 400, 0.02),  # of 400 the share spreads by 1 point
        pytest.param(1.0, 2000, 0.0, marks=pytest.mark.soak),
        pytest.param(2.0, 2000, 0.0, marks=pytest.mark.soak),  # too sure of itself
    ],
)
def test_intervals_cover_93_to_97_percent(sharpness, simulations, slack):
    found = coverage(simulations, 400, 1000, sharpness=sharpness)
    # Those of calibration errors are widened to hold what was measured, which noise makes too large.
    most = {"ece": 0.985, "adaptive_ece": 0.985}
    wrong = {name: x for name, x in found.items() if not 0.93 - slack <= x <= most.get(name, 0.97) + slack}
    assert wrong == {}


def test_an_interval_holds_its_metric_and_stays_in_its_range():
    assert bounded(Interval(0.0, 0.081), 0.091, "adaptive_ece") == (0.0, 0.091)
    assert bounded(Interval(0.9, 1.133), 0.95, "accuracy") == (0.9, 1.0)
    low, high, values = np.array([[-3.0, -0.5], [0.2, 0.1], [0.1, 0.3]])
    assert bounded_differences(low, high, values, "mcc") == [(-2.0, 0.2), (-0.5, 0.3)]
    assert bounded(Interval(-1.0, 9.0), 3.0, "loss") == (0.0, 9.0)
    labels = np.arange(3000) % 3
    sure = np.full((3000, 3), 1e-4)
    sure[np.arange(3000), labels] = 1 - 2e-4
    assert resample(outcomes(labels, sure), 100).replicates["auroc_ovr"].max() <= 1


def simulated_seeds(rng, seeds, between, images=200):
    """Runs whose true accuracies spread about 0.8, measured on the same images."""
    difficulty = rng.random(images)
    drawn = rng.integers(0, images, (300, images))
    runs = []
    for shift in rng.normal(0, between, seeds):
        right = (difficulty + rng.normal(0, 0.05, images)) < 0.8 + shift
        runs.append(Resampled({"accuracy": right.mean()}, {"accuracy": right[drawn].mean(axis=1)}, {}, images))
    return runs


@pytest.mark.parametrize("between", [0.005, 0.05])
def test_the_mean_of_seeds_is_covered_whatever_spreads_more(between):
    rng = np.random.default_rng(0)
    hits = []
    for _ in range(400):
        # The same images for all seeds: drawn anew in each simulation, as are the seeds.
        _, _, interval = mean_of_seeds(simulated_seeds(rng, 3, between), "accuracy")
        hits.append(interval.low <= 0.8 <= interval.high)
    assert 0.92 <= np.mean(hits) <= 0.995


def test_mean_and_deviation_of_seeds():
    runs = [Resampled({"mcc": value}, {"mcc": np.full(100, value)}, {}, 9) for value in (0.5, 0.6, 0.7)]
    mean, deviation, interval = mean_of_seeds(runs, "mcc")
    assert (mean, deviation) == pytest.approx((0.6, 0.1))
    # With no noise of the images it is the t interval of three numbers, as far as 100 draws tell.
    assert interval == pytest.approx((0.6 - 4.303 * 0.1 / 3**0.5, 0.6 + 4.303 * 0.1 / 3**0.5), rel=0.06)
