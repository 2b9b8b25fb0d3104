import builtins
import importlib.util
import warnings

import numpy as np
import pytest
import sklearn.utils
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.svm import SVC

from jaxtrain.config import HeadConfig
from jaxtrain.errors import DamagedError, RunError, UserError
from jaxtrain.heads import Vectors, check_head, estimators, fit_head, restore_head
from tests.marks import mostly_slow


def vectors(images=120, classes=3, seed=0, features=4):
    generator = np.random.default_rng(seed)
    y = generator.integers(0, classes, images).astype(np.int32)
    x = np.abs(generator.standard_normal((images, features)) + 2 * np.eye(classes, features)[y])
    return Vectors(x.astype(np.float32), y)


TRAIN, VAL, TEST = vectors(), vectors(80, seed=1), vectors(80, seed=2)


def config(name, **options):
    return HeadConfig(name=name if name == "xgboost" else f"sklearn:{name}", **options)


def restored(head):
    return restore_head(head.meta(), {name: np.asarray(array) for name, array in head.arrays.items()})


@pytest.mark.parametrize(
    "name",
    mostly_slow(
        [name for name, _ in sklearn.utils.all_estimators(type_filter="classifier")],
        {"GaussianNB", "LogisticRegression", "RandomForestClassifier"},
    ),
)
def test_every_classifier_is_a_head_or_says_why_not(name):
    try:
        check_head(config(name))
    except UserError as error:
        assert "made of other estimators" in str(error) or "is for categories" in str(error)  # noqa: PT017 - either outcome is right
        return
    quick = vectors(45)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        head = fit_head(config(name, trials=1), quick, VAL, num_classes=4)
    logits = head.logits(TEST.x)
    assert logits.shape == (80, 4)
    assert np.isfinite(logits).all()
    if name not in ("DummyClassifier", "BernoulliNB"):
        assert (logits.argmax(1) == TEST.y).mean() > 0.5
    np.testing.assert_array_equal(restored(head).logits(TEST.x), logits)


def test_logistic_regression_is_that_of_scikit_learn():
    head = fit_head(config("logistic_regression", trials=1), TRAIN, VAL, num_classes=3)
    theirs = LogisticRegression(max_iter=2000).fit(TRAIN.x, TRAIN.y)
    np.testing.assert_allclose(head.logits(TEST.x), theirs.predict_log_proba(TEST.x), atol=1e-5)


def test_decision_values_are_logits_up_to_a_temperature():
    for name, theirs in (("svc", SVC()), ("ridge", RidgeClassifier())):
        head = fit_head(config(name, trials=1), TRAIN, VAL, num_classes=3)
        values = theirs.fit(TRAIN.x, TRAIN.y).decision_function(TEST.x)
        np.testing.assert_allclose(head.logits(TEST.x) * head.settings["temperature"], values, atol=1e-4)
        entry = head.curve[0]
        assert entry["val_loss"] < 0.8


def test_two_classes():
    train, val = vectors(classes=2), vectors(classes=2, seed=1)
    for name in ("svc", "logistic_regression"):
        head = fit_head(config(name, trials=1), train, val, num_classes=2)
        assert (head.logits(val.x).argmax(1) == val.y).mean() == pytest.approx(head.curve[0]["val_accuracy"])


def test_tuning_is_seeded_and_finds_what_the_defaults_miss():
    noisy = Vectors(
        np.concatenate([TRAIN.x, np.random.default_rng(0).standard_normal((120, 60))], 1).astype("f"), TRAIN.y
    )
    val = Vectors(np.concatenate([VAL.x, np.random.default_rng(1).standard_normal((80, 60))], 1).astype("f"), VAL.y)
    one, two = (fit_head(config("logistic_regression", trials=8), noisy, val, num_classes=3, seed=5) for _ in range(2))
    assert one.curve == two.curve
    assert one.digest == two.digest
    assert len(one.curve) == 8
    assert min(entry["val_loss"] for entry in one.curve) < one.curve[0]["val_loss"]
    best = min(one.curve, key=lambda entry: entry["val_loss"])
    assert {name: best[name] for name in ("C", "scaling")} == {name: one.settings[name] for name in ("C", "scaling")}
    other = fit_head(config("logistic_regression", trials=8), noisy, val, num_classes=3, seed=6)
    assert other.curve != one.curve


def test_budget_of_seconds():
    head = fit_head(config("logistic_regression", trials=1000, seconds=0.5), TRAIN, VAL, num_classes=3)
    assert 1 <= len(head.curve) < 1000


@pytest.mark.parametrize(
    "name", ["svc", *(pytest.param(name, marks=pytest.mark.slow) for name in ("random_forest", "xgboost"))]
)
def test_absent_class_refit_and_class_weights(name):
    if name == "xgboost":
        pytest.importorskip("xgboost")
    seen = TRAIN.y != 1
    train = Vectors(TRAIN.x[seen], TRAIN.y[seen])
    weights = np.array([5, 1, 1], np.float32)
    head = fit_head(config(name, trials=1, refit=True), train, VAL, num_classes=3, class_weights=weights)
    assert (head.logits(TEST.x).argmax(1) == TEST.y).mean() > 0.55  # class 1 comes with the refit
    alone = fit_head(config(name, trials=1), train, VAL, num_classes=3)
    assert (alone.logits(TEST.x).argmax(1) != 1).all()
    assert alone.curve[0]["val_accuracy"] == pytest.approx((alone.logits(VAL.x).argmax(1) == VAL.y).mean())
    np.testing.assert_array_equal(restored(alone).logits(TEST.x), alone.logits(TEST.x))


@pytest.mark.slow
def test_same_bits_of_a_forest():
    one, two = (fit_head(config("random_forest", trials=1), TRAIN, VAL, num_classes=3) for _ in range(2))
    assert one.digest == two.digest


def test_names():
    for short, name in (("linear_svc", "LinearSVC"), ("hist_gradient_boosting", "HistGradientBoostingClassifier")):
        assert estimators.find(short) is estimators.find(name)
    with pytest.raises(UserError, match="did you mean 'random_forest'"):
        check_head(config("randm_forest"))
    with pytest.raises(UserError, match="VotingClassifier is made of other estimators"):
        check_head(config("voting"))


def test_foreign_types_are_refused():
    """A classifier of a class that is neither scikit-learn's nor on our list."""
    import skops.io

    foreign = skops.io.dumps(_Foreign().fit(TRAIN.x, TRAIN.y))
    with pytest.raises(UserError, match=r"not trusted, and is not loaded: .*_Foreign"):
        estimators.load("logistic_regression", np.frombuffer(foreign, np.uint8))
    with pytest.raises(DamagedError, match="not a sound classifier"):
        estimators.load("logistic_regression", np.frombuffer(foreign[:100], np.uint8))


class _Foreign(LogisticRegression):
    pass


def test_xgboost_that_is_not_installed(monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name == "xgboost":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match="pip install xgboost"):
        check_head(config("xgboost"))


@pytest.mark.skipif(importlib.util.find_spec("xgboost") is None, reason="xgboost is an extra")
def test_xgboost_round_trip():
    head = fit_head(config("xgboost", trials=3), TRAIN, VAL, num_classes=3)
    assert (head.logits(TEST.x).argmax(1) == TEST.y).mean() > 0.7
    np.testing.assert_array_equal(restored(head).logits(TEST.x), head.logits(TEST.x))


def test_a_setting_that_cannot_be_fitted_costs_no_other(caplog):
    """Without regularisation QDA takes no features that depend on each other."""
    twice = [Vectors(np.concatenate([one.x, one.x], 1), one.y) for one in (TRAIN, VAL)]
    head = fit_head(config("QuadraticDiscriminantAnalysis", trials=6), *twice, num_classes=3)
    assert len(head.curve) == 5
    assert head.settings["reg_param"] > 0
    assert "not full rank" in caplog.text
    with pytest.raises(RunError, match="not full rank"):
        fit_head(config("QuadraticDiscriminantAnalysis", trials=1), *twice, num_classes=3)


def test_a_classifier_that_fails_names_the_cause():
    negative = Vectors(-TRAIN.x, TRAIN.y)
    with pytest.raises(RunError, match="sklearn:MultinomialNB could not be fitted with its defaults: Negative values"):
        fit_head(config("MultinomialNB", trials=1), negative, VAL, num_classes=3)
    with pytest.raises(UserError, match="LabelSpreading"):
        fit_head(config("LabelSpreading"), TRAIN, VAL, num_classes=3, class_weights=np.array([1, 2, 3], np.float32))
