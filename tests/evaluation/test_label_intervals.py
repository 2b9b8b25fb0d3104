"""Intervals of average precision hold the true value as often as they say, also of labels that few images have."""

from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from jaxtrain.evaluation.content import Content
from jaxtrain.evaluation.statistics import degrees_of, intervals, of_log_odds, resample, resampling_weights
from jaxtrain.label_metrics import average_precisions, label_outcomes


def draw(rng, images, shares, sharpness):
    labels = (rng.random((images, len(shares))) < shares).astype(np.int8)
    return labels, rng.normal(size=labels.shape) + sharpness * labels - 1.5


def test_a_label_of_few_images_is_covered():
    rng, hits = np.random.default_rng(0), []
    truth = average_precision_score(*draw(rng, 200_000, [0.03], 1.0))
    for seed in range(150):
        found = label_outcomes(*draw(rng, 200, [0.03], 1.0))
        if not (support := found.true.sum()):
            continue
        (weights,) = resampling_weights(200, 200, seed)
        drawn = average_precisions(found, weights)[0]
        value = average_precisions(found, np.ones((200, 1)))[0, 0]
        interval = of_log_odds(value, drawn[drawn > 0], 200, support - 1)
        hits.append(interval.low <= truth <= interval.high)
    assert np.mean(hits) >= 0.93  # quantiles of the resamples: 0.88


@pytest.mark.slow
def test_the_mean_over_labels_from_rare_to_common_is_covered():
    rng, shares, hits = np.random.default_rng(1), np.geomspace(0.02, 0.4, 8), []
    labels, logits = draw(rng, 200_000, shares, 1.5)
    truth = {
        "mAP": average_precision_score(labels, logits),
        "micro_mAP": average_precision_score(labels, logits, average="micro"),
        "weighted_mAP": average_precision_score(labels, logits, average="weighted"),
    }
    for seed in range(80):
        found = intervals(resample(label_outcomes(*draw(rng, 300, shares, 1.5)), 150, seed))
        hits.append([found[name].low <= value <= found[name].high for name, value in truth.items()])
    assert (np.mean(hits, axis=0) >= 0.9).all()


def test_degrees_of_freedom_are_those_of_welch():
    def outcomes(*support):
        labels = (np.arange(50)[:, None] < support).astype(np.int8)
        return label_outcomes(labels, labels - 0.5)

    assert degrees_of(outcomes(7)) == pytest.approx(6)
    assert degrees_of(outcomes(7, 7, 7, 0)) == pytest.approx(18)
    assert 6 < degrees_of(outcomes(7, 40)) < 45
    assert degrees_of(None) == np.inf


def test_the_report_names_labels_that_few_images_have():
    labels = (np.arange(200)[:, None] < [120, 29, 30, 3]).astype(np.int8)
    predictions = SimpleNamespace(multilabel=True, labels=labels, class_names=("cat", "dog", "cow", "emu"))
    (warning,) = Content(SimpleNamespace(predictions=predictions, entries=[])).warnings
    assert "dog (29), emu (3)" in warning
    assert "cow" not in warning
