import numpy as np
import pytest

from jaxtrain.config import HeadConfig
from jaxtrain.errors import RunError
from jaxtrain.heads import Vectors, fit_head, full_batch
from tests.marks import mostly_slow


def vectors(images, seed=0, classes=4, features=10):
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((classes, features))
    y = generator.integers(0, classes, images).astype(np.int32)
    return Vectors((centres[y] + generator.standard_normal((images, features)) + 3).astype(np.float32), y)


@pytest.mark.slow
@pytest.mark.parametrize("classes", mostly_slow([2, 4], {4}))
def test_sgd_comes_near_the_optimum(classes):
    train, val = vectors(600, classes=classes), vectors(300, seed=1, classes=classes)
    decays, scalings = (1e-3, 1e-1), ("none", "standard", "l2")
    exact = fit_head(HeadConfig(solver="lbfgs", weight_decay=decays, scaling=scalings), train, val, num_classes=classes)
    config = HeadConfig(
        solver="sgd", weight_decay=decays, scaling=scalings, learning_rate=(1.0,), epochs=30, batch_size=32
    )
    near = fit_head(config, train, val, num_classes=classes)
    for theirs, ours in zip(exact.curve, near.curve, strict=True):
        assert (theirs["scaling"], theirs["weight_decay"]) == (ours["scaling"], ours["weight_decay"])
        assert theirs["objective"] * (1 - 1e-4) <= ours["objective"] <= theirs["objective"] * 1.02
        assert ours["val_accuracy"] == pytest.approx(theirs["val_accuracy"], abs=0.02)


def test_auto_takes_sgd_where_vectors_do_not_fit(monkeypatch):
    monkeypatch.setattr(full_batch, "_memory", lambda: 1000)
    config = HeadConfig(weight_decay=(1e-3,), scaling=("none",), learning_rate=(1.0,), epochs=1)
    assert fit_head(config, vectors(100), num_classes=4).settings["solver"] == "sgd"


@pytest.mark.slow
def test_little_memory_changes_no_optimum(monkeypatch):
    train, val = vectors(200), vectors(100, seed=1)
    at_once = fit_head(HeadConfig(), train, val, num_classes=4)
    monkeypatch.setattr(full_batch, "_width", lambda task, *most: 2)
    in_pairs = fit_head(HeadConfig(), train, val, num_classes=4)
    for one, two in zip(at_once.curve, in_pairs.curve, strict=True):
        assert one["objective"] == pytest.approx(two["objective"], rel=1e-4)
        assert one["val_accuracy"] == pytest.approx(two["val_accuracy"], abs=0.011)


@pytest.mark.slow
def test_a_diverged_setting_is_not_chosen():
    train, val = vectors(200), vectors(100, seed=1)
    config = HeadConfig(
        solver="sgd", weight_decay=(1.0,), scaling=("none",), learning_rate=(1.0, 1e6), epochs=3, batch_size=50
    )
    head = fit_head(config, train, val, num_classes=4)
    assert head.settings["learning_rate"] == 1.0
    assert head.curve[1]["val_loss"] > 1e9
    with pytest.raises(RunError, match="not finite"):
        fit_head(config.model_copy(update={"learning_rate": (1e6,)}), train, val, num_classes=4)
