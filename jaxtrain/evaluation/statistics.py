"""How sure a metric is: intervals by resampling the test images.

One sampling model holds for all of them: the test images are drawn, each by itself, from the images to come. Wilson's
interval and the tests of pairs assume it; where there is no formula, as many images are drawn again with replacement.
All models of a comparison are resampled with the same draws, so that the difference of their replicates is a paired
bootstrap. Every interval that is given holds its metric and lies in the metric's range.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from jaxtrain.evaluation.metrics import Floats, Outcomes
from jaxtrain.label_metrics import LabelOutcomes

RESAMPLES = 1000
CONFIDENCE = 0.95
_CACHED, _LARGEST, _WEIGHTINGS = 1 << 17, 1 << 24, 32
"""Elements of an array of weights that fits a cache, of the largest one, and below how many resamples calls cost more
than that saves: measured with 360 to 10,000 images."""


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
    # The rest is smooth enough for the correction of the median.
    "macro_precision": "bias_corrected",
    "loss": "bias_corrected",
    "brier": "bias_corrected",
    "aurc": "bias_corrected",
    "auroc_ovr": "bias_corrected",
    # Noise makes a sum of absolute values larger, in each resample once more.
    "ece": "inversion",
    "adaptive_ece": "inversion",
    # Of several labels per image.
    "subset_accuracy": "wilson",
    # Few images with a label make its average precision too high, and skewed.
    **dict.fromkeys(("mAP", "micro_mAP", "weighted_mAP"), "halves"),
    **dict.fromkeys(("auroc", "micro_auroc", "lrap"), "bias_corrected"),
    **dict.fromkeys(("micro_f1", "micro_precision", "micro_recall", "weighted_f1"), "percentile"),
    **dict.fromkeys(("hamming_loss", "coverage_error"), "percentile"),
}
_BIAS_POWER = 0.75
"""That of average precision falls about with this power of the number of images: measured with 4 to 400 images for each
label, of averages from 0.05 to 0.95; the power is 1 where the average is high, and 0.6 where it is low."""
_RANGES = {"mcc": (-1.0, 1.0), "loss": (0.0, np.inf), "brier": (0.0, 2.0), "coverage_error": (0.0, np.inf)}
"""Of the metrics that are not a share of 1."""


def has_interval(name: str) -> bool:
    """Whether one can say how sure a metric is."""
    return name in _METHODS


def bounded(interval: Interval, value: float, name: str) -> Interval:
    """An interval of a metric, widened to hold `value`, cut at the ends of the range."""
    lowest, highest = _RANGES.get(name, (0.0, 1.0))
    return Interval(max(min(interval.low, value), lowest), min(max(interval.high, value), highest))


def bounded_differences(low: Floats, high: Floats, values: Floats, name: str) -> list[Interval]:
    """The same of differences of two models' metrics: the ends of their intervals, and themselves, `float64[pairs]`."""
    lowest, highest = _RANGES.get(name, (0.0, 1.0))
    reach = highest - lowest
    low, high = np.maximum(np.minimum(low, values), -reach), np.minimum(np.maximum(high, values), reach)
    return list(map(Interval, low.tolist(), high.tolist()))


def resampling_weights(images: int, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each image is drawn, `float64[images, part of the resamples]`, in parts that fit the cache."""
    rng = np.random.default_rng(seed)
    step = max(_CACHED // images, min(_WEIGHTINGS, _LARGEST // images), 1)
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        drawn = rng.integers(images, size=(images, count)) * count + np.arange(count)
        yield np.bincount(drawn.ravel(), minlength=images * count).reshape(images, count).astype(np.float64)


def half_weights(images: int, resamples: int, seed: int) -> Iterator[Floats]:
    """Which images are in each random half of them, and then in its other half: as `resampling_weights`, 0 or 1.

    What halves show differs from the whole as the whole does from all images to come: in its spread exactly, in its
    bias nearly (`of_halves`). Drawing with replacement would show half of the bias that ranks have, because what is
    drawn twice is tied.
    """
    rng = np.random.default_rng(seed)
    step = max(_CACHED // images // 2, min(_WEIGHTINGS, _LARGEST // images), 1)
    for start in range(0, -(-resamples // 2), step):
        count = min(step, -(-resamples // 2) - start)
        places = rng.permuted(np.broadcast_to(np.arange(images)[:, None], (images, count)), axis=0)
        half = (places < images // 2).astype(np.float64)
        yield np.concatenate([half, 1 - half], axis=1)


class Resampled(NamedTuple):
    """The metrics of one model, and their replicates."""

    metrics: dict[str, float]
    replicates: dict[str, Floats]
    """`float64[resamples]` of each metric."""
    gaps: dict[str, tuple[Floats, Floats]]
    """Of the calibration errors: gaps `float64[bins]` and their replicates `float64[bins, resamples]`."""
    images: int
    found: Outcomes | LabelOutcomes | None = None
    """What it did with each image; None of a mean over seeds."""
    halves: Mapping[str, Floats] = MappingProxyType({})
    """Of average precisions: `float64[resamples]` in random halves of the images."""


def resample(found: Outcomes | LabelOutcomes, resamples: int = RESAMPLES, seed: int = 0) -> Resampled:
    """All metrics, and their values in every resample."""
    ones = np.ones((len(found.labels), 1))
    metrics, gaps = found.weighted(ones)
    parts = [found.weighted(weights) for weights in resampling_weights(len(found.labels), resamples, seed)]
    return Resampled(
        metrics={name: float(value[0]) for name, value in metrics.items()},
        replicates={name: np.concatenate([part[0][name] for part in parts]) for name in metrics},
        gaps={
            name: (value[:, 0], np.concatenate([part[1][name] for part in parts], axis=1))
            for name, value in gaps.items()
        },
        images=found.images,
        found=found,
        halves=_in_halves(found, resamples, seed) if isinstance(found, LabelOutcomes) else {},
    )


def _in_halves(found: LabelOutcomes, resamples: int, seed: int) -> dict[str, Floats]:
    parts = [found.precisions(weights) for weights in half_weights(len(found.labels), resamples, seed)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def intervals(resampled: Resampled, confidence: float = CONFIDENCE) -> dict[str, Interval]:
    """The interval of each metric that has one."""
    found = {}
    for name, value in resampled.metrics.items():
        replicates = resampled.replicates[name]
        match _METHODS.get(name):
            case "wilson":
                interval = wilson(value, resampled.images, confidence)
            case "percentile":
                interval = percentile(replicates, confidence)
            case "bias_corrected":
                interval = bias_corrected(value, replicates, confidence)
            case "halves":
                degrees = degrees_of(resampled.found)
                interval = of_halves(value, resampled.halves[name], resampled.images, degrees, confidence)
            case "inversion":
                interval = sum_of_gaps(*resampled.gaps[name], confidence)
            case _:
                continue
        found[name] = bounded(interval, value, name)
    return found


def wilson(share: float, images: int, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's score interval of a share (Wilson 1927)."""
    from scipy.special import ndtri

    square = float(ndtri((1 + confidence) / 2)) ** 2
    middle = share + square / (2 * images)
    half = (square * (share * (1 - share) + square / (4 * images)) / images) ** 0.5
    low, high = ((middle + half * end) / (1 + square / images) for end in (-1, 1))
    return Interval(max(low, 0.0), min(high, 1.0))


def percentile(replicates: Floats, confidence: float = CONFIDENCE) -> Interval:
    """Quantiles of the replicates."""
    low, high = percentiles(replicates[None], confidence)
    return Interval(float(low[0]), float(high[0]))


def percentiles(replicates: Floats, confidence: float = CONFIDENCE) -> Floats:
    """The same of each row of `float64[rows, resamples]`: low and high ends `float64[2, rows]`."""
    quantile = np.nanquantile if np.isnan(replicates).any() else np.quantile
    return quantile(replicates, [(1 - confidence) / 2, (1 + confidence) / 2], axis=1)


def bias_corrected(value: float, replicates: Floats, confidence: float = CONFIDENCE) -> Interval:
    """Quantiles, shifted by how far the median of the replicates is from the metric (Efron 1981)."""
    from scipy.special import ndtr, ndtri

    below = np.nanmean((replicates < value) + 0.5 * (replicates == value))
    shift = 2 * ndtri(np.clip(below, 1 / len(replicates), 1 - 1 / len(replicates)))
    low, high = np.nanquantile(replicates, ndtr(shift + ndtri([(1 - confidence) / 2, (1 + confidence) / 2])))
    return Interval(float(low), float(high))


def degrees_of(found: Outcomes | LabelOutcomes | None) -> float:
    """Degrees of freedom of an average precision over labels: of one label with the harmonic mean of their images.

    Over many labels the noise of each averages out, but the correction of the bias adds as much as for one.
    """
    if not isinstance(found, LabelOutcomes):
        return np.inf
    support = found.true.sum(axis=0)
    seen = support[support > 0]
    return len(seen) / float((1 / seen).sum()) - 1 if len(seen) else 0.0


def of_halves(
    value: float, replicates: Floats, images: int, degrees: float = np.inf, confidence: float = CONFIDENCE
) -> Interval:
    """Of a share, from `float64[resamples]` in random halves of the images (`half_weights`).

    The interval is one of log-odds, around the value less its bias, which is taken to fall with `_BIAS_POWER`.
    `degrees` are those of Student's t: few images with a label say little about how much its figure varies.
    """
    from scipy.special import expit, logit, stdtrit

    least = 1 / (2 * max(images, 1))
    bias = (np.nanmean(replicates) - value) / (2**_BIAS_POWER - 1)
    middle = np.clip(value - bias, least, 1 - least)
    width = stdtrit(max(degrees, 1.0), (1 + confidence) / 2) * np.nanstd(replicates) / (middle * (1 - middle))
    return Interval(float(expit(logit(middle) - width)), float(expit(logit(middle) + width)))


def sum_of_gaps(gaps: Floats, replicates: Floats, confidence: float = CONFIDENCE) -> Interval:
    """Interval of a calibration error, from its signed gaps `float64[bins]` and their `float64[bins, resamples]`.

    It holds every multiple of the measured gaps from which, with the noise that the resamples show, a sum of
    absolute values as measured is to be expected. A model that may be perfectly calibrated gets 0 as its low end,
    which no quantile of replicates would.
    """
    noise = replicates - gaps[:, None]
    measured = np.abs(gaps).sum()

    def expected(multiples: Floats) -> Floats:
        sums = np.array([np.abs(multiple * gaps[:, None] + noise).sum(axis=0) for multiple in multiples])
        low, high = np.quantile(sums, [(1 - confidence) / 2, (1 + confidence) / 2], axis=1)
        return multiples[(low <= measured) & (measured <= high)]

    coarse = expected(np.linspace(0.0, 3.0, 31))
    if not len(coarse):
        coarse = expected(np.linspace(0.0, 3.0, 301))
    if not len(coarse):  # no noise at all
        return Interval(float(measured), float(measured))
    low = expected(np.linspace(max(coarse[0] - 0.09, 0.0), coarse[0], 10))[0]
    high = expected(np.linspace(coarse[-1], min(coarse[-1] + 0.09, 3.0), 10))[-1]
    return Interval(float(low * measured), float(high * measured))


def mean_of_seeds(resampled: Sequence[Resampled], name: str) -> tuple[float, float, Interval]:
    """Mean, standard deviation and 95% interval of one metric over runs that differ in their seed alone."""
    values = np.array([each.metrics[name] for each in resampled])
    interval = bounded(percentile(seed_replicates(resampled, name)), float(values.mean()), name)
    return float(values.mean()), float(values.std(ddof=1)), interval


def seed_replicates(resampled: Sequence[Resampled], name: str, number: int = 0) -> Floats:
    """Replicates `float64[resamples]` of the mean over runs that differ in their seed alone.

    They hold both accidents, which images the test set has and which seeds were drawn (two levels, as in a
    hierarchical bootstrap): the mean over the same resampled images, plus a draw of what so few seeds leave open.
    That is Student's t, since to draw from three seeds again says too little. `number` tells groups of runs apart,
    whose draws are independent.
    """
    from scipy.special import stdtrit

    values = np.array([each.metrics[name] for each in resampled])
    replicates = np.mean([each.replicates[name] for each in resampled], axis=0)
    # All quantiles of t once, in a seeded order: without the noise of drawing them.
    order = np.random.default_rng(number).permutation(len(replicates))
    draws = stdtrit(len(values) - 1, (order + 0.5) / len(replicates))
    return replicates + draws * values.std(ddof=1) / np.sqrt(len(values))
