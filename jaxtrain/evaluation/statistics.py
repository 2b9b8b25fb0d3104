"""How sure a metric is: intervals by resampling the test images.

Images are drawn again within their class, because a test set's class sizes are chosen, and because a rare class
must not vanish from a resample. Of a class of n images n - 1 are drawn and weigh n / (n - 1) each: so the variance
is right also for classes of few images (Rao & Wu 1988, doi 10.1080/01621459.1988.10478591), where drawing n of n
is too sure by a factor (n - 1) / n. All models of a comparison are resampled with the same draws, so that the
difference of their replicates is a paired bootstrap.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxtrain.evaluation.metrics import Floats, Outcomes, calibration_gaps, weighted_metrics

RESAMPLES = 1000
CONFIDENCE = 0.95
_CHUNK = 1 << 24
"""Elements of the largest array of weights."""


class Interval(NamedTuple):
    """From `low` to `high`."""

    low: float
    high: float


# How the interval of each metric is found; one that is missing here has none. The least of many accuracies and the
# largest safe coverage are extremes, about which a bootstrap says nothing.
_METHODS = {
    # Also right where (nearly) all images are: resampling 360 right answers gives 100% every time.
    "accuracy": "wilson",
    "top5_accuracy": "wilson",
    "balanced_accuracy": "percentile",
    "macro_recall": "percentile",
    "macro_f1": "percentile",
    "mcc": "percentile",
    # The rest is smooth enough for the correction of the median, which they need most where classes are small.
    "macro_precision": "bias_corrected",
    "loss": "bias_corrected",
    "brier": "bias_corrected",
    "aurc": "bias_corrected",
    "auroc_ovr": "bias_corrected",
    # Noise makes a sum of absolute values larger, in each resample once more.
    "ece": "inversion",
    "adaptive_ece": "inversion",
}


def resampling_weights(labels: NDArray[np.integer[Any]], resamples: int, seed: int) -> Iterator[Floats]:
    """Weights `float64[images, part of the resamples]` of all resamples, in parts that fit the memory.

    They depend on `labels`, `resamples` and `seed` alone. Every class keeps its total weight, but that classes of a
    single image are drawn as if they were one class (or part of the smallest other one).
    """
    rng = np.random.default_rng(seed)
    strata = _strata(labels)
    step = max(_CHUNK // len(labels), 1)
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        weights = np.ones((len(labels), count))
        for members in strata:
            size = len(members)
            if size > 1:
                drawn = rng.integers(size, size=(size - 1, count)) * count + np.arange(count)
                times = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)
                weights[members] = times * (size / (size - 1))
        yield weights


def _strata(labels: NDArray[np.integer[Any]]) -> list[NDArray[np.int64]]:
    """The images of each class, those of single-image classes together."""
    order = np.argsort(labels, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    groups.sort(key=len)
    alone = [group for group in groups if len(group) == 1]
    if len(alone) == 1 and len(groups) > 1:
        alone = groups[:2]
    return [np.concatenate(alone), *groups[len(alone) :]] if alone else groups


class Resampled(NamedTuple):
    """The metrics of one model, and their replicates."""

    metrics: dict[str, float]
    replicates: dict[str, Floats]
    """`float64[resamples]` of each metric."""
    gaps: dict[str, tuple[Floats, Floats]]
    """Of the calibration errors: gaps `float64[bins]` and their replicates `float64[bins, resamples]`."""
    images: int


def resample(found: Outcomes, resamples: int = RESAMPLES, seed: int = 0) -> Resampled:
    """All metrics, and their values in every resample."""
    ones = np.ones((len(found.labels), 1))
    metrics, gaps = _both(found, ones)
    parts = [_both(found, weights) for weights in resampling_weights(found.labels, resamples, seed)]
    return Resampled(
        metrics={name: float(value[0]) for name, value in metrics.items()},
        replicates={name: np.concatenate([part[0][name] for part in parts]) for name in metrics},
        gaps={
            name: (value[:, 0], np.concatenate([part[1][name] for part in parts], axis=1))
            for name, value in gaps.items()
        },
        images=len(found.labels),
    )


def _both(found: Outcomes, weights: Floats) -> tuple[dict[str, Floats], dict[str, Floats]]:
    gaps = calibration_gaps(found, weights)
    return weighted_metrics(found, weights, gaps), gaps


def intervals(resampled: Resampled, confidence: float = CONFIDENCE) -> dict[str, Interval]:
    """The interval of each metric that has one."""
    found = {}
    for name, value in resampled.metrics.items():
        replicates = resampled.replicates[name]
        match _METHODS.get(name):
            case "wilson":
                found[name] = wilson(value, resampled.images, confidence)
            case "percentile":
                found[name] = percentile(replicates, confidence)
            case "bias_corrected":
                found[name] = bias_corrected(value, replicates, confidence)
            case "inversion":
                found[name] = sum_of_gaps(*resampled.gaps[name], confidence)
    return found


def wilson(share: float, images: int, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's score interval of a share (Wilson 1927)."""
    from scipy.stats import binomtest

    found = binomtest(round(share * images), images).proportion_ci(confidence, method="wilson")
    return Interval(float(found.low), float(found.high))


def percentile(replicates: Floats, confidence: float = CONFIDENCE) -> Interval:
    """Quantiles of the replicates."""
    low, high = np.nanquantile(replicates, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def bias_corrected(value: float, replicates: Floats, confidence: float = CONFIDENCE) -> Interval:
    """Quantiles, shifted by how far the median of the replicates is from the metric (Efron 1981)."""
    from scipy.special import ndtr, ndtri

    below = np.nanmean((replicates < value) + 0.5 * (replicates == value))
    shift = 2 * ndtri(np.clip(below, 1 / len(replicates), 1 - 1 / len(replicates)))
    low, high = np.nanquantile(replicates, ndtr(shift + ndtri([(1 - confidence) / 2, (1 + confidence) / 2])))
    return Interval(float(low), float(high))


def sum_of_gaps(gaps: Floats, replicates: Floats, confidence: float = CONFIDENCE) -> Interval:
    """Interval of a calibration error, from its signed gaps `float64[bins]` and their `float64[bins, resamples]`.

    It holds every multiple of the measured gaps from which, with the noise that the resamples show, a sum of
    absolute values as measured is to be expected. A model that may be perfectly calibrated gets 0 as its low end,
    which no quantile of replicates would.
    """
    noise = replicates - gaps[:, None]
    measured = np.abs(gaps).sum()
    multiples = np.linspace(0.0, 3.0, 301)
    sums = np.array([np.abs(multiple * gaps[:, None] + noise).sum(axis=0) for multiple in multiples])
    low, high = np.quantile(sums, [(1 - confidence) / 2, (1 + confidence) / 2], axis=1)
    expected = multiples[(low <= measured) & (measured <= high)]
    if not len(expected):  # no noise at all
        return Interval(float(measured), float(measured))
    return Interval(float(expected[0] * measured), float(expected[-1] * measured))


def mean_of_seeds(resampled: Sequence[Resampled], name: str) -> tuple[float, float, Interval]:
    """Mean, standard deviation and 95% interval of one metric over runs that differ in their seed alone."""
    values = np.array([each.metrics[name] for each in resampled])
    low, high = percentile(seed_replicates(resampled, name))
    # Two or three seeds may say so little that the interval leaves the range of the metric.
    lowest, highest = -1.0 if name == "mcc" else 0.0, {"loss": np.inf, "brier": 2.0}.get(name, 1.0)
    interval = Interval(max(low, lowest), min(high, highest))
    return float(values.mean()), float(values.std(ddof=1)), interval


def seed_replicates(resampled: Sequence[Resampled], name: str, number: int = 0) -> Floats:
    """Replicates `float64[resamples]` of the mean over runs that differ in their seed alone.

    They hold both accidents, which images the test set has and which seeds were drawn (two levels, as in a
    hierarchical bootstrap): the mean over the same resampled images, plus a draw of what so few seeds leave open.
    That is Student's t, since to draw from three seeds again says too little. `number` tells groups of runs apart,
    whose draws are independent.
    """
    from scipy.stats import t

    values = np.array([each.metrics[name] for each in resampled])
    replicates = np.mean([each.replicates[name] for each in resampled], axis=0)
    # All quantiles of t once, in a seeded order: without the noise of drawing them.
    order = np.random.default_rng(number).permutation(len(replicates))
    draws = t.ppf((order + 0.5) / len(replicates), len(values) - 1)
    return replicates + draws * values.std(ddof=1) / np.sqrt(len(values))
