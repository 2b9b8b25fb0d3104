from __future__ import annotations

import dataclasses
import doctest

import pytest

from jaxtrain.evaluation import wording
from jaxtrain.evaluation.comparison import Gap, Pair, compare
from jaxtrain.evaluation.statistics import Interval
from jaxtrain.evaluation.wording import advice, verdict
from tests.evaluation.made_up import candidate


def test_examples():
    assert doctest.testmod(wording).failed == 0


def pair(difference, low, high, kind):
    interval = Interval(low, high)
    return Pair("FT", "FE", {"accuracy": Gap(difference, interval, interval)}, None, kind)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (pair(0.03, 0.01, 0.05, "better"), "FT is better than FE by 3.0 points, interval [+1.0, +5.0]"),
        (pair(-0.03, -0.05, -0.01, "worse"), "FE is better than FT by 3.0 points, interval [-5.0, -1.0]"),
        (
            pair(0.001, -0.004, 0.006, "equivalent"),
            "FT and FE are equivalent: they differ by less than 1 point, interval [-0.4, +0.6]",
        ),
        (
            pair(0.02, -0.01, 0.05, "undecided"),
            "FT and FE cannot be told apart: 2.0 points apart, interval [-1.0, +5.0]",
        ),
    ],
)
def test_a_pair_in_words(given, sentence):
    assert verdict(given, 0.01) == sentence


def test_better_is_never_said_of_an_interval_with_zero():
    accuracies = [0.9, 0.893, 0.885, 0.87, 0.84, 0.8]
    comparison = compare([candidate(f"m{i}", a, seed=i) for i, a in enumerate(accuracies)], resamples=300)
    said = 0
    for one in comparison.pairs:
        corrected = one.gaps["accuracy"].corrected
        sentence = verdict(one, comparison.margin)
        said += "better" in sentence
        assert not ("better" in sentence and corrected.low <= 0 <= corrected.high)
    assert 0 < said < len(comparison.pairs)
    assert not any("better" in line for line in advice(comparison))


def test_advice_tells_what_a_choice_costs():
    costs = {"train_seconds": 370.0, "latency_ms_p50": 2.0}
    cheap = {"train_seconds": 10.0, "latency_ms_p50": 2.02, "flops_per_image": 5.0}
    comparison = compare(
        [candidate("FT", 0.9, seed=1, costs=costs), candidate("FE", 0.896, seed=2, costs=cheap)], resamples=300
    )
    gap = comparison.pairs[0].gaps["accuracy"].corrected
    assert advice(comparison) == [
        f"FE is 0.5 points below FT, interval [{100 * gap.low:.1f}, {100 * gap.high:.1f}] (holds zero); "
        "it takes 1/37 of the training time and about the same latency"
    ]


@pytest.mark.parametrize(
    ("best", "other", "end"),
    [
        ({}, {}, "it takes 8.1 times the training time and about the same operations per image"),
        ({}, {"pretraining_unknown": 1.0}, "8.1 times the training time plus pre-training and about the same"),
        ({"pretraining_unknown": 1.0}, {}, "(pre-training of FT not counted) and about the same operations per image"),
        ({"pretraining_unknown": 1.0}, {"pretraining_unknown": 1.0}, "(pre-training of both not counted) and about"),
    ],
)
def test_advice_says_where_pretraining_is_not_counted(best, other, end):
    first = candidate("FT", 0.9, seed=1, costs={"train_seconds": 10.0, "flops_per_image": 5.0, **best})
    second = candidate("FE", 0.88, seed=2, costs={"train_seconds": 81.0, "flops_per_image": 5.1, **other})
    assert end in advice(compare([first, second], resamples=200))[0]


def test_a_tie_is_one_in_words():
    twins = [candidate(name, 0.9, seed=1) for name in ("FT", "FE")]
    assert advice(compare(twins, resamples=200))[0].startswith("FT is as accurate as FE, interval [-")


def test_advice_without_costs_and_for_seeds():
    alone = compare([candidate("FT", 0.9, seed=1), candidate("FE", 0.7, seed=2)], resamples=300)
    assert advice(alone)[0].endswith("]")
    runs = [candidate(f"ft-{i}", 0.9, seed=i, recipe="r") for i in range(2)] + [candidate("fe", 0.7, seed=5)]
    assert advice(compare(runs, resamples=300))[0].startswith("fe is 20.0 points below ft (2 seeds), interval [")


def test_an_interval_without_zero_that_the_exact_test_doubts_is_explained():
    comparison = compare([candidate("a", 0.9, seed=1), candidate("b", 0.8, seed=2)], resamples=200)
    one = comparison.pairs[0]
    doubted = dataclasses.replace(one, verdict="undecided", paired=dataclasses.replace(one.paired, p_holm=0.08))
    assert verdict(doubted, 0.01).endswith("but by the exact test it may be chance (p = 0.08)")
