import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.preprocessing import StandardScaler, normalize

from jaxtrain.config import HeadConfig
from jaxtrain.heads import Vectors, fit_head


def vectors(images, seed=0, classes=5, features=12):
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((classes, features))
    y = generator.integers(0, classes, images).astype(np.int32)
    return Vectors((centres[y] + generator.standard_normal((images, features)) + 1).astype(np.float32), y)


TRAIN, TEST = vectors(300), vectors(200, seed=1)


def test_ncm_is_scikit_learns_nearest_centroid():
    head = fit_head(HeadConfig(name="ncm", scaling=("standard",), temperature=(1.0,)), TRAIN, num_classes=5)
    scaler = StandardScaler().fit(TRAIN.x)
    theirs = NearestCentroid().fit(scaler.transform(TRAIN.x), TRAIN.y)
    np.testing.assert_array_equal(head.logits(TEST.x).argmax(1), theirs.predict(scaler.transform(TEST.x)))


def test_cosine_in_float64():
    head = fit_head(HeadConfig(name="cosine", scaling=("center",), temperature=(0.2,)), TRAIN, num_classes=5)
    mean = TRAIN.x.mean(0, dtype=np.float64)
    unit = normalize(TRAIN.x - mean)
    means = normalize(np.stack([unit[TRAIN.y == c].mean(0) for c in range(5)]))
    np.testing.assert_allclose(head.logits(TEST.x), normalize(TEST.x - mean) @ means.T / 0.2, atol=1e-4)


@pytest.mark.parametrize("k", [1, 7])
def test_knn_is_scikit_learns_with_these_weights(k):
    head = fit_head(HeadConfig(name="knn", scaling=("none",), k=(k,), temperature=(0.1,)), TRAIN, num_classes=5)
    theirs = KNeighborsClassifier(k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.1))
    theirs.fit(TRAIN.x.astype(np.float64), TRAIN.y)
    expected = (k * theirs.predict_proba(TEST.x.astype(np.float64)) + 1 / 5) / (k + 1)
    np.testing.assert_allclose(np.exp(head.logits(TEST.x)), expected, atol=1e-4)


def test_knn_grid_is_each_setting_alone():
    grid = fit_head(
        HeadConfig(name="knn", scaling=("none",), k=(1, 7, 500), temperature=(0.1, 1.0)), TRAIN, TEST, num_classes=5
    )
    for entry in grid.curve:
        config = HeadConfig(name="knn", scaling=("none",), k=(entry["k"],), temperature=(entry["temperature"],))
        one = fit_head(config, TRAIN, TEST, num_classes=5).curve[0]
        assert one["val_accuracy"] == entry["val_accuracy"]
        assert one["val_loss"] == pytest.approx(entry["val_loss"], rel=1e-5)
