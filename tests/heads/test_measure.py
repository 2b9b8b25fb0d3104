import numpy as np
import pytest
from sklearn.metrics import accuracy_score, log_loss

from jaxtrain.heads.measure import measure


def test_is_scikit_learns_for_every_member():
    generator = np.random.default_rng(0)
    logits = generator.standard_normal((50, 4, 2, 3)).astype(np.float32) * 5
    y = generator.integers(0, 4, 50).astype(np.int32)
    weights = generator.uniform(0.5, 2, 50)
    weights /= weights.sum()
    loss, accuracy = measure(logits, y, weights)
    assert loss.shape == accuracy.shape == (2, 3)
    for i, j in np.ndindex(2, 3):
        wide = logits[:, :, i, j].astype(np.float64)
        p = np.exp(wide) / np.exp(wide).sum(1, keepdims=True)
        assert loss[i, j] == pytest.approx(log_loss(y, p, labels=range(4), sample_weight=weights))
        assert accuracy[i, j] == pytest.approx(accuracy_score(y, wide.argmax(1), sample_weight=weights))


def test_a_class_without_a_column_is_never_right():
    loss, accuracy = measure(np.zeros((2, 2)), np.array([-1, 0], np.int32), np.array([0.5, 0.5]))
    assert accuracy == 0.5
    assert loss == pytest.approx(0.5 * (30 + np.log(2)) + 0.5 * np.log(2))
