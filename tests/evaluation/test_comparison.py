from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from sklearn.metrics import accuracy_score
from statsmodels.stats.contingency_tables import mcnemar

from jaxtrain.data.digest import digest_of_test_set
from jaxtrain.errors import UserError
from jaxtrain.evaluation.comparison import Candidate, aligned, compare
from tests.evaluation.made_up import NAMES, candidate, predictions


def three():
    return [candidate("b", 0.8, seed=1), candidate("a", 0.9, seed=2), candidate("c", 0.798, seed=3)]


def test_the_most_accurate_comes_first_and_pairs_are_those_of_the_images():
    comparison = compare(three(), resamples=300)
    assert [entry.name for entry in comparison.entries] == ["a", "b", "c"]
    assert [(pair.first, pair.second) for pair in comparison.pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    labels = comparison.predictions.labels
    for pair in comparison.pairs:
        first, second = (comparison.entry(name) for name in (pair.first, pair.second))
        right, other = first.predicted == labels, second.predicted == labels
        table = [[(right & other).sum(), (right & ~other).sum()], [(~right & other).sum(), (~right & ~other).sum()]]
        paired = pair.paired
        assert [[paired.both_right, paired.only_first], [paired.only_second, paired.both_wrong]] == table
        assert paired.p == pytest.approx(mcnemar(table, exact=True).pvalue)
        assert paired.p <= paired.p_holm <= 3 * paired.p + 1e-12
        assert paired.agreement == np.mean(first.predicted == second.predicted)
        difference = accuracy_score(labels, first.predicted) - accuracy_score(labels, second.predicted)
        gap = pair.gaps["accuracy"]
        assert gap.difference == pytest.approx(difference)
        for low, high in (gap.interval, gap.corrected):
            assert low <= difference <= high
        assert np.ptp(gap.corrected) > np.ptp(gap.interval)
        assert pair.gaps["loss"].difference == pytest.approx(
            first.measured.metrics["loss"] - second.measured.metrics["loss"]
        )


def test_verdicts():
    same = dataclasses.replace(three()[0], name="twin")
    comparison = compare([*three(), same], margin=0.02, resamples=300)
    verdicts = {(pair.first, pair.second): pair.verdict for pair in comparison.pairs}
    assert verdicts[("a", "b")] == "better"
    assert verdicts[("b", "twin")] == "equivalent"
    for pair in comparison.pairs:
        corrected = pair.gaps["accuracy"].corrected
        assert (pair.verdict in ("better", "worse")) <= (not corrected.low <= 0 <= corrected.high)
        assert (pair.verdict == "better") <= (pair.paired.p_holm < 0.05)


def test_a_few_images_decide_nothing():
    few = [candidate(name, accuracy, seed=i, images=20) for i, (name, accuracy) in enumerate([("a", 0.9), ("b", 0.8)])]
    assert compare(few, resamples=200).pairs[0].verdict == "undecided"


def test_one_model_alone_is_measured():
    comparison = compare(three()[:1], resamples=200)
    assert (comparison.pairs, comparison.recipes) == ([], [])
    assert comparison.entries[0].score == 0.8


def seeds(name, accuracies, recipe, first=0):
    return [candidate(f"{name}-{i}", a, seed=first + i, recipe=recipe) for i, a in enumerate(accuracies)]


def test_runs_that_differ_in_their_seed_alone_are_grouped():
    runs = [*seeds("pt/cnn", (0.80, 0.82, 0.84), "r1"), *seeds("pt/mlp", (0.60, 0.61), "r2", 5), candidate("x", 0.7)]
    comparison = compare(runs, resamples=500)
    names = [recipe.name for recipe in comparison.recipes]
    assert names == ["pt/cnn (3 seeds)", "x", "pt/mlp (2 seeds)"]
    mean, deviation, interval = comparison.recipes[0].metrics["accuracy"]
    assert (mean, deviation) == pytest.approx((0.82, 0.02))
    assert interval.low < 0.82 - 4.3 * 0.02 / 3**0.5 + 0.02
    pairs = {(pair.first, pair.second): pair for pair in comparison.recipe_pairs}
    assert pairs[(names[0], names[1])].gaps["accuracy"].difference == pytest.approx(0.12)
    assert all(pair.paired is None for pair in comparison.recipe_pairs)
    # Two seeds say little: a difference of 21 points between means of 3 and 2 runs is not beyond doubt.
    wide = pairs[(names[0], names[2])].gaps["accuracy"].corrected
    assert wide.high - wide.low > 2 * (interval.high - interval.low) / 2


def test_recipes_whose_runs_are_called_alike_can_be_told_apart():
    runs = [candidate(f"a-{i}", 0.9 - i / 10, seed=i, recipe="rs"[i // 2]) for i in range(4)]
    recipes = compare(runs, resamples=200).recipes
    assert [recipe.name for recipe in recipes] == ["a-0 and others (2 seeds)", "a-2 and others (2 seeds)"]


def test_seeds_with_equal_parameters_are_one_result():
    one, other = predictions(0.9, seed=1, images=100), predictions(0.88, seed=2, images=100)
    runs = [Candidate(f"{name}-{i}", each, recipe=name) for name, each in (("a", one), ("b", other)) for i in range(3)]
    comparison = compare(runs, resamples=200)
    alone = compare([Candidate("a", one), Candidate("b", other)], resamples=200)
    first, second = comparison.recipes
    assert first.name == "a (3 seeds, one result)"
    assert first.metrics["accuracy"] == (0.9, 0.0, alone.entries[0].measured.intervals["accuracy"])
    (pair,) = comparison.recipe_pairs
    assert pair.gaps == alone.pairs[0].gaps
    assert pair.paired == alone.pairs[0].paired
    assert second.members == ("b-0", "b-1", "b-2")


def test_every_interval_of_a_comparison_holds_its_figure_and_stays_in_its_range():
    runs = [*seeds("a", (1.0, 0.98), "r"), *seeds("b", (0.97, 0.99), "s", 3), candidate("x", 1.0, seed=7)]
    comparison = compare([dataclasses.replace(run) for run in runs], resamples=100)
    for pair in (*comparison.pairs, *comparison.recipe_pairs):
        for name, gap in pair.gaps.items():
            for low, high in (gap.interval, gap.corrected):
                assert low <= gap.difference <= high
                assert name == "loss" or -2 <= low <= high <= 2
                assert name != "accuracy" or -1 <= low <= high <= 1
    for recipe in comparison.recipes:
        for name, (mean, _, (low, high)) in recipe.metrics.items():
            assert low <= mean <= high
            assert name == "loss" or high <= 2
    perfect = next(p for p in comparison.pairs if p.paired.only_first + p.paired.only_second == 0)
    assert perfect.gaps["accuracy"].interval.high > 0  # no difference among 400 images is not none at all


def test_the_costs_of_a_recipe_are_medians():
    runs = [
        candidate(f"m{i}", 0.8, seed=i, recipe="r", costs={"params": 5, "train_seconds": t})
        for i, t in enumerate((3, 1, 9))
    ]
    assert compare(runs, resamples=100).recipes[0].costs == {"params": 5, "train_seconds": 3}


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        ([], "no model was given"),
        ([candidate("a", 0.5), candidate("a", 0.6)], "two models are named 'a'"),
        (
            [candidate("a", 0.5), candidate("b", 0.5, images=200)],
            r"b was measured on another test set \(pets, 200 images, \w{8}\) than a \(pets, 400 images, \w{8}\): give",
        ),
        ([candidate("a", 0.5), candidate("b", 0.5, names=("cat", "dog", "fox", "ape"))], "another test set"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(candidates, message):
    with pytest.raises(UserError, match=message) as error:
        compare(candidates)
    assert "\n" not in str(error.value)


def test_images_and_classes_in_another_order_are_put_in_order():
    like = predictions(0.7, seed=3)
    images = np.random.default_rng(0).permutation(400)
    classes = [2, 0, 3, 1]
    names = tuple(NAMES[c] for c in classes)
    place = np.argsort(classes).astype(np.int32)
    ids = tuple(like.ids[i] for i in images)
    shuffled = dataclasses.replace(
        like,
        ids=ids,
        labels=place[like.labels[images]],
        logits=like.logits[images][:, classes],
        class_names=names,
        val_labels=place[like.val_labels],
        val_logits=like.val_logits[:, classes],
        test_digest=digest_of_test_set(ids, place[like.labels[images]], names),
    )
    back = aligned(shuffled, like, "other", "one")
    for field in ("ids", "class_names", "labels", "logits", "val_labels", "val_logits"):
        assert np.array_equal(getattr(back, field), getattr(like, field)), field
    one, other = compare([Candidate("one", like), Candidate("other", shuffled)], resamples=200).entries
    assert one.measured.metrics == other.measured.metrics
    assert one.measured.intervals == other.measured.intervals


def test_equal_images_with_different_labels_stay_apart():
    like = predictions(0.7, seed=3)
    ids = (like.ids[1], *like.ids[1:])
    like = dataclasses.replace(like, ids=ids, test_digest=digest_of_test_set(ids, like.labels, NAMES))
    turned = dataclasses.replace(like, ids=ids[::-1], labels=like.labels[::-1].copy(), logits=like.logits[::-1].copy())
    assert np.array_equal(aligned(turned, like, "b", "a").logits, like.logits)


def test_the_same_seed_gives_the_same_figures():
    one, other = (compare(three(), resamples=200, seed=4) for _ in range(2))
    assert one.pairs == other.pairs
    assert one.pairs != compare(three(), resamples=200, seed=5).pairs
