"""Whether two models differ: paired tests on the same images, and their correction for comparing many pairs."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxtrain.evaluation.metrics import Floats
from jaxtrain.evaluation.statistics import CONFIDENCE, percentiles

Counts = NDArray[np.integer[Any]] | Floats
"""Images, one number for each pair of models."""
MARGIN = 0.01
"""Share of images: models whose accuracies differ by less are as good as each other."""
POWER = 0.8
_PAIRS = 256
"""That are resampled at once: their replicates fit a cache."""


def mcnemar(only_first: Counts, only_second: Counts) -> Floats:
    """Two-sided p values of the exact test that two models are equally often right (McNemar 1947).

    Of each pair: how many images the first model alone has right, and the second alone.
    """
    from scipy.special import bdtr

    fewer, both = np.minimum(only_first, only_second), np.add(only_first, only_second)
    return np.minimum(2 * bdtr(fewer, both, 0.5), 1.0)


def holm(p: Floats) -> Floats:
    """P values corrected for testing all of them at once (Holm 1979): the family-wise error stays below the level."""
    order = np.argsort(p, kind="stable")
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order]), 1.0)
    return corrected


class Spread(NamedTuple):
    """How far apart two models are in one metric, for many pairs of models."""

    differences: Floats
    """`float64[pairs]`: the metric of the first model less that of the second."""
    errors: Floats
    """`float64[pairs]`: standard error of each over the resamples."""
    alone: Floats
    """`float64[2, pairs]`: quantiles of each over the resamples."""
    width: float
    """How many standard errors wide, to each side, intervals are that hold all true differences at once."""


def joint_spread(
    values: Floats, replicates: Floats, places: NDArray[np.int64], confidence: float = CONFIDENCE
) -> Spread:
    """Differences between models in one metric.

    `values` is `float64[models]`, `replicates` `float64[models, resamples]` of the same resamples, `places`
    `int64[pairs, 2]`: the models of each pair. The joint width is the largest deviation among the pairs (the bootstrap
    form of Tukey's method, Westfall & Young 1993), at most Bonferroni's: less, as pairs that share a model go together.
    What one pair alone needs is the least.
    """
    from scipy.special import ndtri

    pairs, first, second = len(places), *places.T
    differences, errors, alone = values[first] - values[second], np.empty(pairs), np.empty((2, pairs))
    largest = np.zeros(replicates.shape[1])
    for start in range(0, pairs, _PAIRS):
        part = slice(start, start + _PAIRS)
        each = np.nan_to_num(replicates[first[part]] - replicates[second[part]], nan=0.0)
        alone[:, part] = percentiles(each, confidence)
        each -= differences[part, None]
        errors[part] = each.std(axis=1)
        np.abs(each, out=each)
        each /= np.where(errors[part] > 0, errors[part], np.inf)[:, None]
        np.fmax(largest, np.fmax.reduce(each, axis=0), out=largest)  # a metric may be NaN
    one, bonferroni = (float(ndtri(1 - (1 - confidence) / 2 / count)) for count in (1, max(pairs, 1)))
    joint = float(np.quantile(largest, confidence))
    return Spread(differences, errors, alone, min(max(joint, one), bonferroni))


def difference_of_shares(first: Counts, second: Counts, images: int, width: float) -> Floats:
    """Tango's interval of each paired difference of shares: what his statistic puts within `width` standard errors.

    Low and high ends, `float64[2, pairs]`.

    `first` and `second` are how many images the first model alone has right, and the second alone. It covers also
    where there are few or none of them, about which resamples say too little.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    ends = []
    for end in (-1.0, 1.0):
        inside, outside = (first - second) / images, np.full(first.shape, end)
        for _ in range(50):
            middle = (inside + outside) / 2
            likely = np.abs(score(first, second, images, middle)) <= width
            inside, outside = np.where(likely, middle, inside), np.where(likely, outside, middle)
        ends.append(inside)
    return np.array(ends)


def score(only_first: Counts, only_second: Counts, images: int, difference: float | Floats) -> Floats:
    """Tango's statistic of a paired difference of shares (Tango 1998): standard normal if it truly is `difference`.

    It holds with few or no images on which the models differ, where a t test has no variance to go by.
    """
    first, second = np.asarray(only_first, np.float64), np.asarray(only_second, np.float64)
    # The likeliest share of `second`, given the difference: the positive root of a quadratic.
    a = 2.0 * images
    b = -first - second + (2 * images - first + second) * difference
    c = -second * difference * (1 - difference)
    share = (np.sqrt(np.maximum(b**2 - 4 * a * c, 0.0)) - b) / (2 * a)
    variance = images * (2 * share + difference * (1 - difference))
    excess = first - second - images * difference
    return np.where(variance > 0, excess / np.sqrt(np.where(variance > 0, variance, 1.0)), 0.0)


def equivalence(
    only_first: Counts,
    only_second: Counts,
    images: int,
    margin: float = MARGIN,
) -> Floats:
    """P values of two one-sided tests that accuracies differ by `margin` or more (Schuirmann 1987), by Tango's score.

    Where p is small, the difference is smaller than the margin, in either direction.
    """
    from scipy.special import ndtr

    above = ndtr(-score(only_first, only_second, images, -margin))
    below = ndtr(score(only_first, only_second, images, margin))
    return np.maximum(above, below)


def smallest_detectable_difference(
    disagreement: float, images: int, confidence: float = CONFIDENCE, power: float = POWER
) -> float:
    """The difference in accuracy that a test set of this many images finds with probability `power` (Miettinen 1968).

    `disagreement` is the share of images that exactly one of two models has right; at least one image is assumed.
    """
    from scipy.special import ndtri

    sigma = np.sqrt(max(disagreement, 1 / images) / images)
    return float((ndtri((1 + confidence) / 2) + ndtri(power)) * sigma)
