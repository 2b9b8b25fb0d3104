import numpy as np
import pytest
from sklearn.preprocessing import StandardScaler, normalize

from jaxtrain.heads.scaling import fit_scaling

X = (np.random.default_rng(0).standard_normal((9000, 5)) * [1, 10, 0.1, 1, 1] + [0, 5, 100, 1, 0]).astype(np.float32)
X[:, 4] = 0.3


def test_standard_is_that_of_scikit_learn():
    expected = StandardScaler().fit(X.astype(np.float64)).transform(X)
    np.testing.assert_allclose(fit_scaling("standard", X)(X), expected, atol=2e-3)  # feature 2 lost digits in float32
    assert np.abs(fit_scaling("standard", X)(X)[:, 4]).max() == 0


def test_l2_is_that_of_scikit_learn():
    x = np.r_[X[:3], np.zeros((1, 5), np.float32)]
    np.testing.assert_allclose(fit_scaling("l2", X)(x), normalize(x) * np.sqrt(5), atol=1e-5)
    centred = fit_scaling("l2", X, center=True)(X)
    np.testing.assert_allclose(np.mean(centred, axis=0), 0, atol=1e-4)


def test_none_and_center():
    np.testing.assert_array_equal(fit_scaling("none", X)(X), X)
    np.testing.assert_allclose(fit_scaling("center", X)(X), X - X.mean(0, dtype=np.float64), atol=1e-4)
    assert np.mean(fit_scaling("none", X, center=True)(X)[:, 1]) == pytest.approx(0, abs=1e-4)
