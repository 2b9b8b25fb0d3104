import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier

from jaxtrain.config import HeadConfig
from jaxtrain.heads import Vectors, fit_head, full_batch, restore_head
from jaxtrain.heads.several import linear_layer

DECAYS = (1e-4, 1e-2, 1.0)


def some(images, seed):
    """Six features of unlike size, four labels from common to rare."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(images, 6)) * [3, 1, 1, 0.3, 0.1, 1] + 1
    scores = (x - 1) @ np.random.default_rng(0).normal(size=(6, 4)) + rng.normal(size=(images, 4))
    y = scores > np.quantile(scores, [0.5, 0.7, 0.9, 0.95], axis=0).diagonal()
    return Vectors(x.astype(np.float32), y.astype(np.int8))


TRAIN, VAL = some(400, 1), some(200, 2)


def cross_entropy(kernel, bias, data, label, weights):
    logits = data.x.astype(float) @ kernel + bias
    known = data.y[:, label] >= 0
    each = np.logaddexp(0, logits) - logits * data.y[:, label]
    return np.average(each[known], weights=weights[known])


def objective(kernel, bias, label, decay, weights=None):
    weights = np.ones(len(TRAIN.x)) if weights is None else weights
    return cross_entropy(kernel, bias, TRAIN, label, weights) + decay / 2 * np.sum(kernel**2)


def entries(head, label):
    return [entry for entry in head.curve if entry["label"] == label]


@pytest.mark.slow
def test_all_settings_of_all_labels_have_the_optimum_of_one_versus_rest(monkeypatch):
    called = []
    one = full_batch._train
    monkeypatch.setattr(full_batch, "_train", lambda *args, **options: called.append(1) or one(*args, **options))
    head = fit_head(HeadConfig(weight_decay=DECAYS, scaling=("none",)), TRAIN, VAL, num_classes=4)
    assert len(called) == 1  # one program for all
    for place, decay in enumerate(DECAYS):
        penalty = LogisticRegression(C=1 / (decay * len(TRAIN.x)), tol=1e-10, max_iter=5000)
        theirs = OneVsRestClassifier(penalty).fit(TRAIN.x.astype(float), TRAIN.y)
        for label, estimator in enumerate(theirs.estimators_):
            entry = entries(head, label)[place]
            kernel, bias = estimator.coef_[0], estimator.intercept_[0]
            assert entry["weight_decay"] == decay
            assert entry["objective"] == pytest.approx(objective(kernel, bias, label, decay), rel=1e-4)
            expected = cross_entropy(kernel, bias, VAL, label, np.ones(200))
            assert entry["val_loss"] == pytest.approx(expected, rel=0.02)
            right = (VAL.x @ kernel + bias > 0) == VAL.y[:, label]
            assert entry["val_accuracy"] == pytest.approx(right.mean(), abs=0.011)


@pytest.mark.slow
def test_each_label_gets_what_is_best_for_it_and_is_restored():
    head = fit_head(HeadConfig(weight_decay=DECAYS, scaling=("none", "standard")), TRAIN, VAL, num_classes=4)
    for label, setting in enumerate(head.settings["labels"]):
        best = min(entries(head, label), key=lambda entry: entry["val_loss"])
        assert {name: setting[name] for name in ("scaling", "weight_decay")}.items() <= best.items()
        p = expit(head.logits(VAL.x)[:, label].astype(float))
        loss = -np.mean(np.where(VAL.y[:, label], np.log(p), np.log1p(-p)))
        assert loss == pytest.approx(best["val_loss"], rel=1e-4)
    again = restore_head(head.meta(), head.arrays)
    np.testing.assert_array_equal(again.logits(VAL.x), head.logits(VAL.x))


@pytest.mark.slow
def test_unknown_entries_and_weights_are_those_of_scikit_learn():
    y, rng = TRAIN.y.copy(), np.random.default_rng(3)
    y[:150, 1] = -1
    w = rng.uniform(0.1, 2, len(y)).astype(np.float32)
    weights = np.array([1.0, 2.0, 5.0, 0.5], np.float32)
    data, decay = Vectors(TRAIN.x, y, w), 1e-2
    options = {"num_classes": 4, "class_weights": weights}
    head = fit_head(HeadConfig(weight_decay=(decay,), scaling=("none",)), data, **options)
    kernels, biases = linear_layer(head)
    for label in range(4):
        known = y[:, label] >= 0
        each = w * np.where(y[:, label] == 1, weights[label], 1.0) * known
        theirs = LogisticRegression(C=1 / (decay * each.sum()), tol=1e-10, max_iter=5000)
        theirs.fit(TRAIN.x[known].astype(float), y[known, label], sample_weight=each[known])
        best = objective(theirs.coef_[0], theirs.intercept_[0], label, decay, each)
        mine = objective(kernels[:, label].astype(float), float(biases[label]), label, decay, each)
        assert mine == pytest.approx(best, rel=1e-4)


@pytest.mark.slow
def test_a_refit_has_the_settings_of_each_label_and_all_vectors():
    options = {"weight_decay": DECAYS, "scaling": ("none",)}
    chosen = fit_head(HeadConfig(**options), TRAIN, VAL, num_classes=4).settings["labels"]
    head = fit_head(HeadConfig(refit=True, **options), TRAIN, VAL, num_classes=4)
    assert head.settings["labels"] == chosen
    for label, setting in enumerate(chosen):
        one = HeadConfig(weight_decay=(setting["weight_decay"],), scaling=("none",))
        alone = fit_head(one, TRAIN.joined(VAL), num_classes=4)
        np.testing.assert_allclose(head.logits(VAL.x)[:, label], alone.logits(VAL.x)[:, label], rtol=0.05, atol=0.05)
