"""Models compared on one test set: who is ahead, by how much, and whether one can believe it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from jaxtrain.data.base import Labels
from jaxtrain.errors import UserError
from jaxtrain.evaluation.costs import Costs
from jaxtrain.evaluation.evaluate import Measured, measure
from jaxtrain.evaluation.folds import OverFolds, over_folds
from jaxtrain.evaluation.metrics import Floats, Outcomes
from jaxtrain.evaluation.predictions import Predictions
from jaxtrain.evaluation.significance import (
    MARGIN,
    difference_of_shares,
    equivalence,
    holm,
    joint_spread,
    mcnemar,
    smallest_detectable_difference,
)
from jaxtrain.evaluation.statistics import (
    RESAMPLES,
    Interval,
    Resampled,
    bounded_differences,
    mean_of_seeds,
    seed_replicates,
)
from jaxtrain.label_metrics import LabelOutcomes

LEVEL = 0.05
ALONE = 1.96
"""Standard errors to each side of an interval of one pair."""

Verdict = Literal["better", "worse", "equivalent", "undecided"]


@dataclass(frozen=True)
class Candidate:
    """A model that takes part."""

    name: str
    predictions: Predictions
    costs: Costs = field(default_factory=dict)
    """See `jaxtrain.evaluation.costs`."""
    run_dir: Path | None = None
    seed: int | None = None
    recipe: str | None = None
    """What runs share that differ in nothing but their seed; None: it stands alone."""
    curves: Sequence[Mapping[str, Any]] = ()
    """Records of `metrics.jsonl`."""
    folds: Sequence[Predictions] = ()
    """In cross-validation the predictions on each fold, of which `predictions` are made up."""


@dataclass(frozen=True)
class Entry:
    """A candidate with its figures."""

    candidate: Candidate
    measured: Measured
    predicted: NDArray[Any]
    """`int64[images]`: the predicted classes; of several labels, `bool[images, classes]`."""
    over_folds: Mapping[str, OverFolds] = field(default_factory=dict)
    """By metric, in cross-validation."""

    @property
    def name(self) -> str:
        """The candidate's."""
        return self.candidate.name

    @property
    def score(self) -> float:
        """The metric by which models are ranked."""
        return self.measured.metrics[figure_of(self.measured.metrics)]

    @property
    def correct(self) -> NDArray[np.bool_]:
        """`bool[images]`: which images are right, of several labels in every one."""
        found = self.measured.resampled.found
        assert found is not None
        return found.correct


@dataclass(frozen=True)
class Gap:
    """A difference of one metric, first less second."""

    difference: float
    interval: Interval
    """95%, for this pair alone."""
    corrected: Interval
    """95% for all pairs at once."""
    p_holm: float | None = None
    """Of several labels per image: two-sided, from the paired bootstrap, corrected for all pairs."""


@dataclass(frozen=True)
class Paired:
    """What two models do on the same images."""

    both_right: int
    only_first: int
    only_second: int
    both_wrong: int
    agreement: float
    """Share of images with the same prediction."""
    p: float
    """Exact McNemar test, two-sided."""
    p_holm: float
    """The same, corrected for all pairs."""
    p_equivalent: float
    """That they differ by the margin or more: two one-sided tests, corrected for all pairs."""
    detectable: float
    """The smallest difference in accuracy that this test set would find in 80% of cases."""


@dataclass(frozen=True)
class Pair:
    """Two models, or two recipes, against each other."""

    first: str
    second: str
    gaps: dict[str, Gap]
    """By metric."""
    paired: Paired | None
    """None for recipes of several seeds."""
    verdict: Verdict
    """Of the first, in accuracy (of several labels, in mAP)."""

    @property
    def gap(self) -> Gap:
        """That of the metric by which models are ranked."""
        return self.gaps[figure_of(self.gaps)]


@dataclass(frozen=True)
class Recipe:
    """Runs that differ in nothing but their seed."""

    name: str
    members: tuple[str, ...]
    metrics: dict[str, tuple[float, float, Interval]]
    """By metric: mean, standard deviation over seeds, and 95% interval of the mean (`mean_of_seeds`)."""
    costs: Costs
    """Medians."""


@dataclass(frozen=True)
class Comparison:
    """Everything that follows from the predictions, the best model first: by accuracy, of several labels by mAP."""

    entries: list[Entry]
    pairs: list[Pair]
    """Every two entries, the more accurate one first."""
    recipes: list[Recipe]
    """Empty where no two runs differ in their seed alone; else all, the most accurate first."""
    recipe_pairs: list[Pair]
    margin: float
    resamples: int
    seed: int

    @property
    def predictions(self) -> Predictions:
        """Of the first entry; ids, labels and class names are those of all."""
        return self.entries[0].candidate.predictions

    @property
    def figure(self) -> str:
        """The metric by which models are ranked."""
        return figure_of(self.entries[0].measured.metrics)

    def entry(self, name: str) -> Entry:
        """The entry of that name."""
        return next(entry for entry in self.entries if entry.name == name)


def figure_of(metrics: Mapping[str, Any]) -> str:
    """The metric by which models are ranked, among those that there are."""
    return "mAP" if "mAP" in metrics else "accuracy"


def compare(
    candidates: Sequence[Candidate], *, margin: float = MARGIN, resamples: int = RESAMPLES, seed: int = 0
) -> Comparison:
    """Measure every candidate and compare each two on the same images.

    `margin` is the difference in accuracy, a share, below which models are as good as each other.

    Raises UserError where there is no candidate, two have one name, or they were not measured on the same test set.
    """
    if not candidates:
        raise UserError("nothing to compare: no model was given")
    names = [candidate.name for candidate in candidates]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"two models are named '{twice}': give each a name of its own")
    first = candidates[0]
    entries = []
    for candidate in candidates:
        predictions = aligned(candidate.predictions, first.predictions, candidate.name, first.name)
        measured = measure(predictions, resamples=resamples, seed=seed)
        aligned_one = replace(candidate, predictions=predictions)
        found = measured.resampled.found
        assert found is not None
        entries.append(Entry(aligned_one, measured, found.predicted, over_folds(candidate.folds)))
    entries.sort(key=lambda entry: (-entry.score, entry.measured.metrics["loss"], entry.name))
    pairs = _pairs([(entry.name, entry.measured.resampled) for entry in entries], margin)
    recipes, recipe_pairs = _recipes(entries, margin)
    return Comparison(entries, pairs, recipes, recipe_pairs, margin, resamples, seed)


def aligned(predictions: Predictions, like: Predictions, name: str, other: str) -> Predictions:
    """`predictions` with images and classes in the order of `like`. Raises UserError where these are not the same."""
    if predictions.test_digest != like.test_digest:
        one, two = (f"{p.dataset}, {len(p.ids):,} images, {p.test_digest[:8]}" for p in (predictions, like))
        raise UserError(
            f"{name} was measured on another test set ({one}) than {other} ({two}): "
            "give --data.name to measure all on one"
        )
    if predictions.multilabel != like.multilabel:
        one, two = (name, other) if predictions.multilabel else (other, name)
        raise UserError(f"{one} gives several labels per image, {two} one class: compare them apart")
    if predictions.ids == like.ids and predictions.class_names == like.class_names:
        return predictions
    if sorted(predictions.class_names) != sorted(like.class_names):
        unknown = sorted(set(predictions.class_names) ^ set(like.class_names))
        raise UserError(f"{name} and {other} do not have the same classes: {', '.join(unknown[:5])}")
    place = [predictions.class_names.index(known) for known in like.class_names]
    rank = np.argsort(place)

    def renamed(labels: Labels) -> Labels:
        return labels[:, place] if labels.ndim == 2 else rank[labels].astype(np.int32)

    labels = renamed(predictions.labels)
    # Equal images are interchangeable, but their labels may differ.
    mine = np.lexsort((*np.atleast_2d(labels.T), np.array(predictions.ids)))
    theirs = np.lexsort((*np.atleast_2d(like.labels.T), np.array(like.ids)))
    order = np.empty(len(mine), np.int64)
    order[theirs] = mine
    changed: dict[str, Any] = {
        "ids": like.ids,
        "labels": labels[order],
        "logits": np.ascontiguousarray(predictions.logits[order][:, place]),  # sums round as those of the others do
        "class_names": like.class_names,
    }
    if predictions.val_labels is not None and predictions.val_logits is not None:
        changed["val_labels"] = renamed(predictions.val_labels)
        changed["val_logits"] = np.ascontiguousarray(predictions.val_logits[:, place])
    if predictions.thresholds is not None:
        changed["thresholds"] = tuple(predictions.thresholds[i] for i in place)
    return replace(predictions, **changed)


def _pairs(models: Sequence[tuple[str, Resampled]], margin: float) -> list[Pair]:
    """Every two of them; counts of images for two models, none where one is a mean over seeds."""
    places = list(itertools.combinations(range(len(models)), 2))
    resampled = [each for _, each in models]
    found = [(resampled[i].found, resampled[j].found) for i, j in places]
    counted = {n: (one, other) for n, (one, other) in enumerate(found) if one is not None and other is not None}
    paired = dict(zip(counted, _paired([*counted.values()], margin), strict=True))
    gaps = _gaps(resampled, places, paired)
    found_pairs = []
    for n, ((i, j), each) in enumerate(zip(places, gaps, strict=True)):
        figure = figure_of(each)
        counts = paired.get(n) if figure == "accuracy" else None  # which say nothing of mAP
        verdict = _verdict(each[figure], counts, margin)
        found_pairs.append(Pair(models[i][0], models[j][0], each, paired.get(n), verdict))
    return found_pairs


def _paired(pairs: Sequence[tuple[Outcomes | LabelOutcomes, Outcomes | LabelOutcomes]], margin: float) -> list[Paired]:
    only_first = np.array([np.sum(one.correct & ~other.correct) for one, other in pairs], np.int64)
    only_second = np.array([np.sum(other.correct & ~one.correct) for one, other in pairs], np.int64)
    images = len(pairs[0][0].labels) if pairs else 0
    p = mcnemar(only_first, only_second)
    p_holm, p_equivalent = holm(p), holm(equivalence(only_first, only_second, images, margin))
    return [
        Paired(
            both_right=int((one.correct & other.correct).sum()),
            only_first=int(only_first[n]),
            only_second=int(only_second[n]),
            both_wrong=int((~one.correct & ~other.correct).sum()),
            agreement=float(np.mean(one.predicted == other.predicted)),
            p=float(p[n]),
            p_holm=float(p_holm[n]),
            p_equivalent=float(p_equivalent[n]),
            detectable=smallest_detectable_difference(float(only_first[n] + only_second[n]) / images, images),
        )
        for n, (one, other) in enumerate(pairs)
    ]


def _gaps(
    resampled: Sequence[Resampled], places: Sequence[tuple[int, int]], paired: Mapping[int, Paired]
) -> list[dict[str, Gap]]:
    """Differences of every metric that all have, for each pair of places; of accuracy by counts where there are any."""
    several = bool(places) and all(figure_of(each.metrics) == "mAP" for each in resampled)
    found: list[dict[str, Gap]] = [{} for _ in places]
    for name in resampled[0].metrics if places else ():
        if not all(name in each.metrics for each in resampled):
            continue
        values = np.array([each.metrics[name] for each in resampled])
        replicates = np.array([each.replicates[name] for each in resampled])
        differences, errors, alone, width = joint_spread(values, replicates, np.array(places))
        corrected = np.array([differences - width * errors, differences + width * errors])
        if name in ("accuracy", "subset_accuracy") and paired:
            first, second = np.array([[each.only_first, each.only_second] for each in paired.values()]).T
            for ends, wide in ((alone, ALONE), (corrected, width)):
                ends[:, [*paired]] = difference_of_shares(first, second, resampled[0].images, wide)
        both = (bounded_differences(ends[0], ends[1], differences, name) for ends in (alone, corrected))
        p_holm = _bootstrap_p(differences, errors) if several else [None] * len(places)
        for gaps, gap in zip(found, map(Gap, differences.tolist(), *both, p_holm), strict=True):
            gaps[name] = gap
    return found


def _bootstrap_p(differences: Floats, errors: Floats) -> list[float]:
    """Two-sided p values that there is no difference, by its standard error over the resamples, corrected by Holm."""
    from scipy.special import ndtr

    scaled = np.abs(differences) / np.where(errors > 0, errors, 1.0)
    p = np.where(errors > 0, 2 * ndtr(-scaled), np.where(differences == 0, 1.0, 0.0))
    return [float(each) for each in holm(p)]


def _verdict(gap: Gap, paired: Paired | None, margin: float) -> Verdict:
    """Never "better" where the corrected interval holds zero, nor where the exact test disagrees."""
    if paired is None or paired.p_holm < LEVEL:
        if gap.corrected.low > 0:
            return "better"
        if gap.corrected.high < 0:
            return "worse"
    inside = -margin < gap.corrected.low and gap.corrected.high < margin
    if inside if paired is None else paired.p_equivalent < LEVEL:
        return "equivalent"
    return "undecided"


def _recipes(entries: Sequence[Entry], margin: float) -> tuple[list[Recipe], list[Pair]]:
    """Entries grouped by recipe; none where every group is of one."""
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.candidate.recipe or f"alone: {entry.name}", []).append(entry)
    if len(groups) == len(entries):
        return [], []
    called = [_common_name([member.name for member in members]) for members in groups.values()]
    recipes = [
        _recipe(number, members, name if called.count(name) == 1 else f"{members[0].name} and others")
        for number, (members, name) in enumerate(zip(groups.values(), called, strict=True))
    ]
    figure = figure_of(entries[0].measured.metrics)
    recipes.sort(key=lambda pair: -pair[0].metrics[figure][0])
    return [recipe for recipe, _ in recipes], _pairs([(recipe.name, means) for recipe, means in recipes], margin)


def _recipe(number: int, members: Sequence[Entry], called: str) -> tuple[Recipe, Resampled]:
    """What runs say together. Equal parameters are one result, however many seeds came to them."""
    names = tuple(member.name for member in members)
    results = list({member.candidate.predictions.params_sha256: member for member in members}.values())
    resampled = [each.measured.resampled for each in results]
    same = ", one result" if len(results) == 1 else ""
    label = names[0] if len(names) == 1 else f"{called} ({len(names)} seeds{same})"
    if same:
        metrics = {
            name: (resampled[0].metrics[name], 0.0, interval)
            for name, interval in members[0].measured.intervals.items()
        }
        return Recipe(label, names, metrics, _medians(members)), resampled[0]
    shared = [name for name in members[0].measured.intervals if all(name in each.metrics for each in resampled)]
    metrics = {name: mean_of_seeds(resampled, name) for name in shared}
    replicates: dict[str, Floats] = {name: seed_replicates(resampled, name, number) for name in shared}
    means = Resampled({name: metrics[name][0] for name in shared}, replicates, {}, resampled[0].images)
    return Recipe(label, names, metrics, _medians(members)), means


def _common_name(names: Sequence[str]) -> str:
    """What the names begin with in common, without a cut number or word at its end."""
    common = names[0]
    for name in names[1:]:
        common = "".join(a for a, _ in itertools.takewhile(lambda ab: ab[0] == ab[1], zip(common, name, strict=False)))
    return common.rstrip(" -_./0123456789") or names[0]


def _medians(members: Sequence[Entry]) -> Costs:
    shared = set.intersection(*(set(member.candidate.costs) for member in members))
    return {name: float(np.median([member.candidate.costs[name] for member in members])) for name in sorted(shared)}
