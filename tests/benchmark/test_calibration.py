from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.metrics import log_loss

from jaxtrain.benchmark.calibration import fit_temperature, scaled


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
    other = minimize(lambda x: log_loss(labels, scaled(logits, 1 / x[0])), [1.0], method="Nelder-Mead")
    assert temperature == pytest.approx(sharpness / other.x[0], rel=1e-3)


def test_probabilities_keep_their_order():
    _, logits = case(images=50)
    for temperature in (0.3, 4.0):
        probabilities = scaled(logits, temperature)
        assert probabilities.sum(1) == pytest.approx(1)
        assert (probabilities.argsort(1) == logits.argsort(1)).all()
    assert scaled(logits, 1e9).std() < 1e-6


def test_it_stays_finite_where_there_is_no_optimum():
    labels, logits = case(images=100)
    right = np.eye(6, dtype=np.float32)[labels]
    assert 0.01 <= fit_temperature(labels, right) < 0.05
    assert fit_temperature((labels + 1) % 6, right) == pytest.approx(100, rel=0.01)
    assert np.isfinite(fit_temperature(labels, right * 1e6))
