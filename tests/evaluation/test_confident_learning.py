"""Confident learning beside its definition, written as a loop, and beside the package of its authors."""

import numpy as np
import pytest

from jaxtrain.evaluation.confident_learning import confident_joint, label_margins, likely_errors


def noisy(seed, images=400, classes=5):
    """Labels of which a tenth is drawn again, and probabilities that know better."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, images)
    logits = rng.normal(size=(images, classes)) + 2.5 * np.eye(classes)[truth]
    labels = np.where(rng.random(images) < 0.1, rng.integers(0, classes, images), truth)
    return labels, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


@pytest.mark.parametrize("seed", range(3))
def test_the_joint_is_that_of_the_definition(seed):
    labels, probabilities = noisy(seed)
    classes = probabilities.shape[1]
    joint, errors = np.zeros((classes, classes), int), []
    thresholds = [np.mean([p[j] for p, y in zip(probabilities, labels, strict=True) if y == j]) for j in range(classes)]
    for place, (p, label) in enumerate(zip(probabilities, labels, strict=True)):
        reached = [j for j in range(classes) if p[j] >= thresholds[j]]
        if reached:
            best = max(reached, key=lambda j: p[j])
            joint[label, best] += 1
            if best != label and p.argmax() != label:
                errors.append((p[label] - max(np.delete(p, label)), place))
    np.testing.assert_array_equal(confident_joint(labels, probabilities), joint)
    assert likely_errors(labels, probabilities).tolist() == [place for _, place in sorted(errors)]


def test_a_class_without_images_is_never_suggested():
    labels, probabilities = np.array([0, 1, 0]), np.array([[0.5, 0.1, 0.4], [0.0, 1.0, 0.0], [0.0, 0.1, 0.9]])
    assert confident_joint(labels, probabilities).tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert likely_errors(labels, probabilities).tolist() == []


def test_as_cleanlab_has_it():
    count, filters, rank = (pytest.importorskip(f"cleanlab.{name}") for name in ("count", "filter", "rank"))
    for seed in range(5):
        labels, probabilities = noisy(seed, 1000)
        joint = count.compute_confident_joint(labels, probabilities, calibrate=False)
        np.testing.assert_array_equal(confident_joint(labels, probabilities), joint)
        options = {"filter_by": "confident_learning", "return_indices_ranked_by": "normalized_margin", "n_jobs": 1}
        found = filters.find_label_issues(labels, probabilities, **options)
        assert likely_errors(labels, probabilities).tolist() == found.tolist()
        margins = rank.get_normalized_margin_for_each_label(labels, probabilities)
        np.testing.assert_allclose(label_margins(labels, probabilities), 2 * margins - 1, atol=1e-12)
