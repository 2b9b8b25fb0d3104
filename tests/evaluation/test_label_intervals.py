"""Intervals of average precision hold the true value as often as they say, also of labels that few images have."""

from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from jaxtrain.evaluation.content import Content
from jaxtrain.evaluation.statistics import degrees_of, half_weights, intervals, of_halves, resample
from jaxtrain.label_metrics import average_precisions, label_outcomes


def draw(rng, images, shares, sharpness):
    labels = (rng.random((images, len(shares))) < shares).astype(np.int8)
    return labels, rng.normal(size=labels.shape) + sharpness * labels - 1.5


def coverage(images, shares, sharpness, simulations, resamples=150, seed=0):
    """How often the interval of each average precision holds the true value."""
    rng, hits = np.random.default_rng(seed), []
    labels, logits = draw(rng, 200_000, shares, sharpness)
    truth = {name: average_precision_score(labels, logits, average=kind) for name, kind in KINDS.items()}
    for number in range(simulations):
        found = intervals(resample(label_outcomes(*draw(rng, images, shares, sharpness)), resamples, number))
        hits.append([found[name].low <= value <= found[name].high for name, value in truth.items()])
    return dict(zip(truth, np.mean(hits, axis=0), strict=True))


KINDS = {"mAP": "macro", "micro_mAP": "micro", "weighted_mAP": "weighted"}
SETTINGS = {
    "20 images of every label": (400, np.full(8, 0.05), 1.5),
    "20 images of every label, good": (400, np.full(8, 0.05), 2.5),
    "20 images of every label, bad": (400, np.full(8, 0.05), 0.7),
    "from rare to common": (300, np.geomspace(0.02, 0.4, 8), 1.5),
    "common": (600, np.full(4, 0.2), 1.5),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("simulations", "near"),
    [(60, 0.06), pytest.param(1000, 0.02, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])],
)
@pytest.mark.parametrize("setting", SETTINGS)
def test_average_precisions_are_covered(setting, simulations, near):
    """With so many images of rare labels, quantiles of bootstrap replicates hold 55 to 85%."""
    found = coverage(*SETTINGS[setting], simulations)
    assert all(abs(share - 0.95) <= near + 0.005 for share in found.values()), found


def test_average_precisions_are_covered_in_a_few_simulations():
    assert coverage(200, np.full(4, 0.1), 1.5, simulations=40, resamples=60)["mAP"] >= 0.9


def test_a_label_of_few_images_is_covered():
    rng, hits = np.random.default_rng(0), []
    truth = average_precision_score(*draw(rng, 200_000, [0.03], 1.0))
    for seed in range(150):
        found = label_outcomes(*draw(rng, 200, [0.03], 1.0))
        if not (support := found.true.sum()):
            continue
        drawn = np.concatenate([average_precisions(found, weights)[0] for weights in half_weights(200, 200, seed)])
        value = average_precisions(found, np.ones((200, 1)))[0, 0]
        interval = of_halves(value, drawn[drawn > 0], 200, support - 1)
        hits.append(interval.low <= truth <= interval.high)
    assert 0.93 <= np.mean(hits) <= 0.99  # quantiles of bootstrap replicates: 0.88


def test_halves_are_halves():
    parts = [*half_weights(7, 100, 0)]
    assert sum(part.shape[1] for part in parts) == 100
    for part in parts:
        first, second = np.split(part, 2, axis=1)
        assert set(np.unique(part)) == {0, 1}
        np.testing.assert_array_equal(first + second, 1)
        np.testing.assert_array_equal(first.sum(axis=0), 3)


def test_what_no_half_changes_has_a_narrow_interval():
    interval = of_halves(1.0, np.ones(100), 50, 10)
    assert interval.low == pytest.approx(0.99)


def test_degrees_of_freedom_follow_from_the_rarest_labels():
    def outcomes(*support):
        labels = (np.arange(50)[:, None] < support).astype(np.int8)
        return label_outcomes(labels, labels - 0.5)

    assert degrees_of(outcomes(7)) == pytest.approx(6)
    assert degrees_of(outcomes(7, 7, 7, 0)) == pytest.approx(6)
    assert degrees_of(outcomes(10, 40)) == pytest.approx(15)
    assert degrees_of(outcomes(1)) == 0
    assert degrees_of(None) == np.inf


def test_the_report_names_labels_that_few_images_have():
    labels = (np.arange(200)[:, None] < [120, 29, 30, 3]).astype(np.int8)
    predictions = SimpleNamespace(multilabel=True, labels=labels, class_names=("cat", "dog", "cow", "emu"))
    (warning,) = Content(SimpleNamespace(predictions=predictions, entries=[])).warnings
    assert "dog (29), emu (3)" in warning
    assert "cow" not in warning
