from __future__ import annotations

import warnings
from itertools import pairwise

import numpy as np
import pytest
from sklearn import metrics as sk

from jaxtrain.evaluation import metrics
from jaxtrain.evaluation.metrics import (
    classification_metrics,
    confusion_matrix,
    outcomes,
    per_class_table,
    true_class_rank,
    weighted_metrics,
)
from jaxtrain.tasks import softmax


def random_case(seed, images=200, classes=8, scale=2.0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, scale, (images, classes)).astype(np.float32)
    labels = rng.integers(0, classes, images).astype(np.int32)
    logits[np.arange(images), labels] += 1.5
    return labels, logits


def reference_ece(labels, probabilities, bins=15):
    """Straight from the paper's formula, bin by bin."""
    predicted, confidence = probabilities.argmax(1), probabilities.max(1)
    edges, total = [i / bins for i in range(bins + 1)], 0.0
    for low, high in pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            accuracy = np.mean(predicted[inside] == labels[inside])
            total += inside.mean() * abs(accuracy - confidence[inside].mean())
    return total


def reference_adaptive_ece(labels, probabilities, bins=15):
    """Bins of exactly equal size: every image split into as many parts as there are bins, ties shared out evenly."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    parts = []
    for value in sorted(set(confidence)):
        tied = confidence == value
        parts += [value - right[tied].mean()] * (tied.sum() * bins)
    return np.mean([abs(np.mean(part)) for part in np.split(np.array(parts), bins)])


def reference_selection(labels, probabilities):
    """Straight from the definition, image by image."""
    confidence, wrong = probabilities.max(1), probabilities.argmax(1) != labels
    accepted = [confidence >= own for own in confidence]
    risks = np.array([wrong[chosen].mean() for chosen in accepted])
    result = {"aurc": risks.mean()}
    for percent in (1, 5):
        safe = [chosen.mean() for chosen, risk in zip(accepted, risks, strict=True) if risk <= percent / 100]
        result[f"coverage_at_{percent}pct_risk"] = max(safe, default=0.0)
    return result


def reference(labels, probabilities):
    """The same figures from scikit-learn, or spelt out where it has none."""
    classes = probabilities.shape[1]
    predicted = np.array([max(range(classes), key=lambda c: (row[c], -c)) for row in probabilities])
    order = [sorted(range(classes), key=lambda c: (-row[c], c)) for row in probabilities]
    macro = {"average": "macro", "zero_division": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # y_pred contains classes not in y_true
        balanced = sk.balanced_accuracy_score(labels, predicted)
    result = {
        "accuracy": sk.accuracy_score(labels, predicted),
        "loss": sk.log_loss(labels, probabilities, labels=range(classes)),
        "balanced_accuracy": balanced,
        "macro_precision": sk.precision_score(labels, predicted, **macro),
        "macro_recall": sk.recall_score(labels, predicted, **macro),
        "macro_f1": sk.f1_score(labels, predicted, **macro),
        "mcc": sk.matthews_corrcoef(labels, predicted),
        "brier": np.mean(((probabilities - np.eye(classes)[labels]) ** 2).sum(1)),
        "ece": reference_ece(labels, probabilities),
        "adaptive_ece": reference_adaptive_ece(labels, probabilities),
        "worst_class_accuracy": min(np.mean(predicted[labels == c] == c) for c in set(labels)),
        **reference_selection(labels, probabilities),
    }
    if classes > 5:
        result["top5_accuracy"] = np.mean([label in row[:5] for label, row in zip(labels, order, strict=True)])
    if len(set(labels)) > 1:
        areas = [sk.roc_auc_score(labels == c, probabilities[:, c]) for c in sorted(set(labels))]
        result["auroc_ovr"] = np.mean(areas)
    return result


def degenerate_cases():
    labels, logits = random_case(0)
    one_hot = np.eye(8)[labels]
    yield "absent class", np.where(labels == 3, 4, labels), softmax(logits)
    yield "all right", labels, one_hot
    yield "all wrong", labels, np.roll(one_hot, 1, axis=1)
    yield "all tied", labels, np.full((200, 8), 1 / 8)
    yield "many ties", labels, np.eye(8)[labels // 2] * 0.5 + np.eye(8)[labels // 2 + 1] * 0.5
    yield "one class only", np.zeros(200, np.int32), softmax(logits)
    yield "one image", labels[:1], softmax(logits[:1])
    yield "always the same answer", labels, np.tile(softmax(logits[:1]), (200, 1))
    yield "two classes", *two_classes()
    labels, logits = random_case(1, 300, 5)
    yield "five classes", labels, softmax(logits)
    labels, logits = random_case(2, 300, 100)
    yield "more classes than most have images", labels, softmax(logits)


def two_classes():
    labels, logits = random_case(3, 300, 2)
    return labels, softmax(logits)


@pytest.mark.parametrize("case", degenerate_cases(), ids=lambda case: case[0])
def test_degenerate_cases_equal_scikit_learn(case):
    _, labels, probabilities = case
    measured = classification_metrics(labels, probabilities)
    expected = reference(labels, probabilities)
    assert measured.keys() == expected.keys()
    for name, value in expected.items():
        assert measured[name] == pytest.approx(value, abs=1e-12), name


def test_random_cases_equal_scikit_learn():
    for seed in range(25):
        rng = np.random.default_rng(seed)
        labels, logits = random_case(seed, int(rng.integers(2, 150)), int(rng.integers(2, 20)), rng.uniform(0, 6))
        probabilities = softmax(logits)
        measured, expected = classification_metrics(labels, probabilities), reference(labels, probabilities)
        assert measured == pytest.approx(expected, abs=1e-12)


def test_sklearn_top_k_and_brier_and_auroc_agree_where_it_has_them():
    labels, logits = random_case(5, 500, 8)
    probabilities = softmax(logits)
    measured = classification_metrics(labels, probabilities)
    assert measured["top5_accuracy"] == sk.top_k_accuracy_score(labels, probabilities, k=5)
    assert measured["brier"] == pytest.approx(sk.brier_score_loss(labels, probabilities, scale_by_half=False))
    assert measured["auroc_ovr"] == pytest.approx(sk.roc_auc_score(labels, probabilities, multi_class="ovr"))


def test_float32_probabilities_agree_with_float64():
    labels, logits = random_case(6, 400, 10)
    wide, narrow = softmax(logits), softmax(logits).astype(np.float32)
    assert classification_metrics(labels, narrow) == pytest.approx(classification_metrics(labels, wide), abs=1e-6)


def test_logits_decide_where_probabilities_saturate():
    # The probability of the first true class is zero in float64.
    logits = np.array([[0.0, 2000.0], [1000.0, -1000.0]], np.float32)
    labels = np.array([0, 0], np.int32)
    measured = classification_metrics(labels, softmax(logits), logits)
    assert measured["loss"] == pytest.approx(1000.0)
    # Class 6 ranks second, but all probabilities but the first round to zero.
    logits = np.array([[1000.0, 0, 0, 0, 0, 0, 1]], np.float32)
    assert classification_metrics(np.array([6]), softmax(logits), logits)["top5_accuracy"] == 1.0
    assert classification_metrics(np.array([6]), softmax(logits))["top5_accuracy"] == 0.0


def test_ties_go_to_the_first_class():
    scores = np.array([[0.1] * 10, [0.0, 0.5, 0.5] + [0.0] * 7])
    assert true_class_rank(np.array([0, 2]), scores).tolist() == [0, 1]
    assert true_class_rank(np.array([5, 0]), scores).tolist() == [5, 2]
    tied = np.full((10, 10), 0.1)
    measured = classification_metrics(np.arange(10), tied)
    assert (measured["accuracy"], measured["top5_accuracy"]) == (0.1, 0.5)


def test_top5_needs_more_than_five_classes():
    labels, logits = random_case(0, 50, 5)
    assert "top5_accuracy" not in classification_metrics(labels, softmax(logits))
    labels, logits = random_case(0, 50, 6)
    assert "top5_accuracy" in classification_metrics(labels, softmax(logits))


def test_a_thousand_classes():
    labels, logits = random_case(0, 500, 1000)
    probabilities = softmax(logits)
    measured = classification_metrics(labels, probabilities, logits)
    predicted = probabilities.argmax(1)
    assert measured["macro_f1"] == pytest.approx(sk.f1_score(labels, predicted, average="macro", zero_division=0))
    assert measured["loss"] == pytest.approx(sk.log_loss(labels, probabilities, labels=range(1000)), abs=1e-9)
    assert all(np.isfinite(value) for value in measured.values())


def test_confusion_matrix_and_per_class_table_equal_scikit_learn():
    labels, logits = random_case(7)
    labels[labels == 2] = 1
    predicted = logits.argmax(1)
    matrix = confusion_matrix(labels, predicted, 8)
    assert (matrix == sk.confusion_matrix(labels, predicted, labels=range(8))).all()
    names = [f"class {i}" for i in range(8)]
    table = per_class_table(matrix, names)
    expected = sk.precision_recall_fscore_support(labels, predicted, labels=range(8), zero_division=0)
    assert [row["class"] for row in table] == names
    for key, column in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        assert [row[key] for row in table] == pytest.approx(column.tolist())


def test_weights_count_images_several_times():
    for seed in range(6):
        rng = np.random.default_rng(seed)
        labels, logits = random_case(seed, 90, int(rng.integers(2, 9)))
        if seed % 2:
            logits = np.round(logits)  # ties
        counts = rng.integers(0, 4, (90, 5))
        counts[labels == labels[0], 0] = 0
        counts[:, 1] = labels == labels[0]
        probabilities = softmax(logits)
        measured = weighted_metrics(outcomes(labels, probabilities), counts.astype(np.float64))
        for column in range(5):
            drawn = np.repeat(np.arange(90), counts[:, column])
            expected = classification_metrics(labels[drawn], probabilities[drawn])
            got = {name: values[column] for name, values in measured.items()}
            if column == 1:
                assert np.isnan(got.pop("auroc_ovr"))
            assert got == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("count", [metrics._pairs_by_sorting, metrics._pairs_by_product])
def test_both_ways_to_count_ordered_pairs_equal_counting_them(count):
    labels, logits = random_case(10, 40, 3)
    labels[labels == 1] = 2
    weights = np.random.default_rng(0).uniform(0, 2, (40, 4))
    found = outcomes(labels, softmax(np.round(logits)))
    expected = np.zeros((3, 4))
    for i in range(40):
        for j in np.flatnonzero(labels != labels[i]):
            mine, other = found.probabilities[[i, j], labels[i]]
            expected[labels[i]] += weights[i] * weights[j] * ((mine > other) + 0.5 * (mine == other))
    assert count(found, weights, 3) == pytest.approx(expected, rel=1e-6)


def test_fractional_weights_equal_scikit_learn():
    labels, logits = random_case(8, 300, 6)
    probabilities, predicted = softmax(logits), logits.argmax(1)
    weights = np.random.default_rng(0).uniform(0.1, 2, (300, 2))
    measured = weighted_metrics(outcomes(labels, probabilities), weights)
    for column in range(2):
        w = {"sample_weight": weights[:, column]}
        expected = {
            "accuracy": sk.accuracy_score(labels, predicted, **w),
            "balanced_accuracy": sk.balanced_accuracy_score(labels, predicted, **w),
            "macro_f1": sk.f1_score(labels, predicted, average="macro", **w),
            "macro_precision": sk.precision_score(labels, predicted, average="macro", **w),
            "mcc": sk.matthews_corrcoef(labels, predicted, **w),
            "loss": sk.log_loss(labels, probabilities, **w),
            "auroc_ovr": np.mean([sk.roc_auc_score(labels == c, probabilities[:, c], **w) for c in range(6)]),
        }
        assert {name: measured[name][column] for name in expected} == pytest.approx(expected, abs=1e-6)


def test_no_metric_depends_on_the_order_of_the_images():
    labels, logits = random_case(9, 200, 7)
    probabilities = softmax(np.round(logits))
    order = np.random.default_rng(1).permutation(200)
    one, other = (classification_metrics(labels[i], probabilities[i]) for i in (np.arange(200), order))
    assert one == pytest.approx(other, abs=1e-12)


def test_calibration_bins_are_closed_above():
    # Confidence 0.2 is the upper edge of the third of 15 bins; a bin open above would put it with 0.21.
    probabilities = np.array([[0.2] + [0.1] * 8, [0.21] + [0.79 / 8] * 8])
    labels = np.array([0, 1])
    assert classification_metrics(labels, probabilities)["ece"] == pytest.approx((0.8 + 0.21) / 2)


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        (np.array([0, 1]), np.full((3, 2), 0.5), "do not fit"),
        (np.array([], np.int32), np.empty((0, 2)), "no images"),
        (np.array([0, 2]), np.full((2, 2), 0.5), "labels 0..2 for 2 classes"),
        (np.array([0, -1]), np.full((2, 2), 0.5), "labels -1..0"),
        (np.array([0.0, 1.0]), np.full((2, 2), 0.5), "whole numbers"),
        (np.array([0, 1]), np.array([[0.5, 0.5], [np.nan, 0.5]]), "1 of 2 images are not finite"),
        (np.array([0, 1]), np.array([[3.0, -1.0], [0.5, 0.5]]), "sum to one"),
    ],
)
def test_wrong_arrays_are_refused(labels, probabilities, message):
    with pytest.raises(ValueError, match=message):
        classification_metrics(labels, probabilities)
