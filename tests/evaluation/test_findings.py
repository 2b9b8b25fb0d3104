from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from statsmodels.stats.proportion import proportion_confint

from jaxtrain.data.digest import digest_of_test_set
from jaxtrain.errors import UserError
from jaxtrain.evaluation.comparison import compare
from jaxtrain.evaluation.findings import disagreements, likely_label_errors, slices, worst_mistakes
from jaxtrain.tasks import softmax
from tests.evaluation.made_up import NAMES, candidate


@pytest.fixture(scope="module")
def comparison():
    return compare([candidate("a", 0.9, seed=1), candidate("b", 0.8, seed=2)], resamples=100)


def test_worst_mistakes_are_the_most_surprising_ones(comparison):
    entry = comparison.entries[0]
    shown = worst_mistakes(comparison, entry, count=10)
    labels, probabilities = comparison.predictions.labels, softmax(entry.candidate.predictions.logits)
    wrong = [i for i in range(400) if entry.predicted[i] != labels[i]]
    expected = sorted(wrong, key=lambda i: probabilities[i, labels[i]])[:10]
    assert [one.index for one in shown] == expected
    first = shown[0]
    assert first.label == NAMES[labels[first.index]]
    assert first.score == pytest.approx(-np.log(probabilities[first.index, labels[first.index]]))
    ((name, answer, sure, right),) = first.answers
    assert (name, answer, right) == ("a", NAMES[entry.predicted[first.index]], False)
    assert sure == pytest.approx(probabilities[first.index].max())
    assert len(worst_mistakes(comparison, entry, count=1000)) == 40


def test_disagreements_are_right_by_one_alone(comparison):
    one, other = comparison.entries
    shown = disagreements(comparison, one, other, count=1000)
    assert len(shown) == comparison.pairs[0].paired.only_first
    assert all([answer[3] for answer in image.answers] == [True, False] for image in shown)
    scores = [image.score for image in shown]
    assert scores == sorted(scores, reverse=True)


def test_twenty_planted_label_errors_are_found():
    rng = np.random.default_rng(0)
    planted = rng.choice(400, 20, replace=False)
    mislabelled = []
    for seed, name in enumerate(("a", "b", "c")):
        one = candidate(name, 0.9, seed=seed)
        labels = one.predictions.labels.copy()
        labels[planted] = (labels[planted] + 1) % 4
        digest = digest_of_test_set(one.predictions.ids, labels, NAMES)
        mislabelled.append(
            dataclasses.replace(
                one, predictions=dataclasses.replace(one.predictions, labels=labels, test_digest=digest)
            )
        )
    shown = likely_label_errors(compare(mislabelled, resamples=100), count=50)
    assert len({one.index for one in shown} & set(planted.tolist())) >= 15
    assert len(shown[0].answers) == 3


def test_a_model_without_mistakes_has_none_to_show():
    perfect = compare([candidate("a", 1.0)], resamples=100)
    assert worst_mistakes(perfect, perfect.entries[0]) == []
    assert likely_label_errors(perfect) == []


def test_slices_by_class_and_by_column(comparison):
    column = ["night" if i % 3 else "day" for i in range(400)]
    found = slices(comparison, {"light": column})
    assert [(part.column, part.value) for part in found] == [
        *(("class", name) for name in NAMES),
        *(("light", "day"), ("light", "night")),
    ]
    day = found[-2]
    entry, mine = comparison.entry("b"), np.array(column) == "day"
    right = int((entry.predicted == comparison.predictions.labels)[mine].sum())
    assert day.images == mine.sum()
    share, interval = day.accuracy["b"]
    assert share == right / day.images
    assert interval == pytest.approx(proportion_confint(right, day.images, method="wilson"))
    for part, row in zip(found, entry.measured.per_class, strict=False):
        assert part.accuracy["b"][0] == pytest.approx(row["recall"])


def test_numbers_stand_in_their_order(comparison):
    found = slices(comparison, {"age": [(2, 10, 1.5, "unknown")[i % 4] for i in range(400)]})
    assert [part.value for part in found if part.column == "age"] == ["1.5", "2", "10", "unknown"]


def test_a_column_of_another_length_is_refused(comparison):
    with pytest.raises(UserError, match="column light: 3 values for 400 test images"):
        slices(comparison, {"light": [1, 2, 3]})
