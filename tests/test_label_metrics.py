"""Metrics of several labels per image against scikit-learn's."""

import warnings

import numpy as np
import pytest
from sklearn import metrics as reference

from jaxtrain.label_metrics import best_thresholds, label_metrics, label_outcomes, per_label_table, sigmoid
from jaxtrain.label_metrics import weighted_label_metrics as weighted


def example(seed, images=83, classes=6, *, ties=False):
    rng = np.random.default_rng(seed)
    labels = (rng.random((images, classes)) < rng.uniform(0.05, 0.6, classes)).astype(np.int8)
    logits = rng.normal(size=labels.shape) + labels
    return labels, np.round(logits) if ties else logits


def by_scikit_learn(labels, logits, weights=None):
    scores, decided = sigmoid(logits), sigmoid(logits) >= 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of labels without a positive
        both = [i for i in range(labels.shape[1]) if 0 < labels[:, i].sum() < len(labels)]
        found = {
            f"{prefix}mAP": reference.average_precision_score(labels, logits, average=kind, sample_weight=weights)
            for prefix, kind in (("", "macro"), ("micro_", "micro"), ("weighted_", "weighted"))
        }
        found["auroc"] = reference.roc_auc_score(labels[:, both], logits[:, both], sample_weight=weights)
        found["micro_auroc"] = reference.roc_auc_score(labels, logits, average="micro", sample_weight=weights)
        for name, score in (("f1", "f1_score"), ("precision", "precision_score"), ("recall", "recall_score")):
            for kind in ("macro", "micro", "weighted"):
                if kind != "weighted" or name == "f1":
                    scored = getattr(reference, score)
                    value = scored(labels, decided, average=kind, sample_weight=weights, zero_division=0)
                    found[f"{kind}_{name}"] = value
        found["subset_accuracy"] = reference.accuracy_score(labels, decided, sample_weight=weights)
        found["hamming_loss"] = reference.hamming_loss(labels, decided, sample_weight=weights)
        ranking = {"lrap": "label_ranking_average_precision_score", "coverage_error": "coverage_error"}
        for name, score in ranking.items():
            found[name] = getattr(reference, score)(labels, logits, sample_weight=weights)
        each = [
            (
                reference.log_loss(labels[:, i], scores[:, i], labels=[0, 1], sample_weight=weights),
                reference.brier_score_loss(labels[:, i], scores[:, i], pos_label=1, sample_weight=weights),
            )
            for i in range(labels.shape[1])
        ]
        found["loss"], found["brier"] = np.mean(each, axis=0)
    return found


@pytest.mark.parametrize("case", ["plain", "ties", "no positive", "all positive", "empty rows"])
def test_every_metric_equals_scikit_learns(case):
    labels, logits = example(1, ties=case == "ties")
    if case in ("no positive", "all positive"):
        labels[:, 2] = case == "all positive"
    if case == "empty rows":
        labels[:9] = 0
        labels[9:12] = 1
    found, expected = label_metrics(labels, logits), by_scikit_learn(labels, logits)
    assert set(found) == {*expected, "label_ece"}
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-9), name


def test_weightings_are_those_of_scikit_learn_and_of_repeated_images():
    labels, logits = example(2)
    counts = np.random.default_rng(0).integers(0, 4, (len(labels), 3)).astype(float)
    found = weighted(label_outcomes(labels, logits), counts)
    for place in range(3):
        repeats = np.repeat(np.arange(len(labels)), counts[:, place].astype(int))
        expected = by_scikit_learn(labels, logits, counts[:, place])
        repeated = label_metrics(labels[repeats], logits[repeats])
        for name, value in repeated.items():
            assert found[name][place] == pytest.approx(value, abs=1e-9), name
            assert value == pytest.approx(expected.get(name, value), abs=1e-9), name


def test_unknown_entries_count_in_nothing():
    labels, logits = example(3)
    unknown = np.random.default_rng(0).random(labels.shape) < 0.3
    unknown[:4] = True
    hidden = np.where(unknown, -1, labels)
    found = label_metrics(hidden, logits)
    other = label_metrics(hidden, np.where(unknown, 50.0, logits))
    assert found == other  # whatever a model says of them
    known = [~unknown[:, i] for i in range(labels.shape[1])]
    each = [reference.average_precision_score(labels[k, i], logits[k, i]) for i, k in enumerate(known)]
    assert found["mAP"] == pytest.approx(np.mean(each))
    decided = sigmoid(logits) >= 0.5
    assert found["micro_f1"] == pytest.approx(reference.f1_score(labels[~unknown], decided[~unknown]))
    assert found["hamming_loss"] == pytest.approx(np.mean(labels[~unknown] != decided[~unknown]))
    right = ((labels == decided) | unknown).all(axis=1)[~unknown.all(axis=1)]
    assert found["subset_accuracy"] == pytest.approx(right.mean())
    assert label_outcomes(hidden, logits).images == len(labels) - unknown.all(axis=1).sum()


def test_calibration_error_is_that_of_each_label():
    labels, logits = example(4, images=500, classes=3)
    scores, total = sigmoid(logits), 0.0
    for i in range(3):
        for low in np.arange(15) / 15:
            mine = (scores[:, i] > low) & (scores[:, i] <= low + 1 / 15)
            total += abs((scores[mine, i] - labels[mine, i]).sum()) / len(labels) / 3
    assert label_metrics(labels, logits)["label_ece"] == pytest.approx(total)


def test_the_table_has_a_row_per_label():
    labels, logits = example(5)
    labels[:5, 0] = -1
    rows = per_label_table(label_outcomes(labels, logits), list("abcdef"), [0.5] * 6)
    known = labels[:, 0] >= 0
    assert [row["label"] for row in rows] == list("abcdef")
    assert (rows[0]["known"], rows[0]["support"]) == (known.sum(), (labels[:, 0] == 1).sum())
    expected = reference.average_precision_score(labels[known, 0], logits[known, 0])
    assert rows[0]["average_precision"] == pytest.approx(expected)
    assert rows[1]["f1"] == pytest.approx(reference.f1_score(labels[:, 1], logits[:, 1] >= 0))


@pytest.mark.parametrize("aim", ["f1", "precision", "recall"])
def test_thresholds_are_the_best_of_all(aim):
    labels, logits = example(6, images=120)
    scores = sigmoid(logits)
    found = best_thresholds(labels, logits, aim, None if aim == "f1" else 0.6)
    for i, threshold in enumerate(found):
        candidates = [threshold, *np.linspace(0, 1, 201)]

        def figure(cut, i=i):
            truth, decided = labels[:, i], scores[:, i] >= cut
            both = (truth & decided).sum()
            precision, recall = both / max(decided.sum(), 1), both / truth.sum()
            if aim == "f1":
                return 2 * both / (truth.sum() + decided.sum())
            kept, other = (precision, recall) if aim == "precision" else (recall, precision)
            return other if kept >= 0.6 else -1.0

        assert figure(threshold) == max(map(figure, candidates))


def test_a_label_that_no_validation_image_has_keeps_one_half():
    labels, logits = example(7)
    labels[:, 1] = 0
    assert best_thresholds(labels, logits)[1] == 0.5
