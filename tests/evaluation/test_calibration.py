from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.metrics import log_loss

from jaxtrain.evaluation.calibration import fit_temperature
from jaxtrain.tasks import softmax


def case(seed=0, images=2000, classes=6):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (images, classes))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = np.array([rng.choice(classes, p=row) for row in probabilities])
    return labels, logits.astype(np.float32)


@pytest.mark.parametrize("sharpness", [0.2, 1.0, 7.0])
def test_it_finds_how_much_too_sure_a_model_is(sharpness):
    labels, logits = case()
    temperature = fit_temperature(labels, logits * np.float32(sharpness))
    assert temperature == pytest.approx(sharpness, rel=0.1)
    # Another optimiser, over 1 / T, on scikit-learn's loss.
    other = minimize(lambda x: log_loss(labels, softmax(logits * x[0])), [1.0], method="Nelder-Mead")
    assert temperature == pytest.approx(sharpness / other.x[0], rel=1e-3)


def test_a_model_that_is_never_wrong_has_no_temperature():
    labels, logits = case(images=100)
    right = np.eye(6, dtype=np.float32)[labels]
    assert fit_temperature(labels, right) is None
    assert fit_temperature(labels[:0], logits[:0]) is None


def test_it_stays_finite_where_there_is_no_optimum():
    labels = case(images=100)[0]
    right = np.eye(6, dtype=np.float32)[labels]
    assert fit_temperature((labels + 1) % 6, right) == pytest.approx(100, rel=0.01)
    labels[0] = (labels[0] + 1) % 6
    assert 0.01 <= fit_temperature(labels, right * 1e-6) < 0.05
    assert np.isfinite(fit_temperature(labels, right * 1e6))
