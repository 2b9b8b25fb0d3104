import json

import jax
import numpy as np
import pytest

from jaxtrain.config import HeadConfig
from jaxtrain.errors import DamagedError, UserError
from jaxtrain.heads import Vectors, fit_head, restore_head
from tests.marks import mostly_slow

CHEAP = {
    "linear": HeadConfig(weight_decay=(1e-3, 1e-1), scaling=("l2",)),
    "linear sgd": HeadConfig(solver="sgd", weight_decay=(1e-3,), scaling=("standard", "l2"), epochs=5, batch_size=16),
    "mlp": HeadConfig(name="mlp", hidden=(16, 8), epochs=20, batch_size=16, dropout=0.1, scaling=("l2", "standard")),
    "cosine": HeadConfig(name="cosine", temperature=(0.1, 0.5)),
    "ncm": HeadConfig(name="ncm", scaling=("standard",)),
    "knn": HeadConfig(name="knn", k=(1, 5), temperature=(0.1,)),
}


def vectors(images=120, classes=3, seed=0):
    generator = np.random.default_rng(seed)
    y = generator.integers(0, classes, images).astype(np.int32)
    x = generator.standard_normal((images, 8)) + 2 * np.eye(classes, 8)[y]
    return Vectors(x.astype(np.float32), y)


@pytest.fixture(scope="module", params=CHEAP)
def head(request):
    return fit_head(CHEAP[request.param], vectors(), vectors(60, seed=1), num_classes=4, seed=3)


def test_protocol(head):
    x = vectors(50, seed=2).x
    logits = head.logits(x)
    assert (logits.shape, logits.dtype) == ((50, 4), np.float32)
    assert np.isfinite(logits).all()
    assert (logits.argmax(1) == vectors(50, seed=2).y).mean() > 0.6
    assert (logits.argmax(1) != 3).all()  # never seen
    for entry in head.curve:
        assert {"val_loss", "val_accuracy"} <= set(entry)


def test_best_of_the_curve(head):
    best = min(head.curve, key=lambda entry: entry["val_loss"])
    assert best["val_loss"] <= head.curve[0]["val_loss"]
    for name, value in head.settings.items():
        assert best.get(name, value) == value
    logits = head.logits(vectors(60, seed=1).x).astype(np.float64)
    log_p = (
        logits
        - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True))
        - logits.max(1, keepdims=True)
    )
    assert -log_p[np.arange(60), vectors(60, seed=1).y].mean() == pytest.approx(best["val_loss"], rel=1e-4)
    assert (logits.argmax(1) == vectors(60, seed=1).y).mean() == pytest.approx(best["val_accuracy"], abs=1e-6)


@pytest.mark.parametrize("name", mostly_slow(CHEAP, {"linear"}))
def test_same_bits_and_refit(name):
    config, train, val = CHEAP[name], vectors(), vectors(60, seed=1)
    one, two = (fit_head(config, train, val, num_classes=4, seed=3) for _ in range(2))
    assert one.digest == two.digest
    assert one.curve == two.curve
    refitted = fit_head(config.model_copy(update={"refit": True}), train, val, num_classes=4, seed=3)
    assert refitted.settings == one.settings
    assert refitted.digest != one.digest


def test_save_and_load_are_bit_exact(head):
    x = vectors(50, seed=2).x
    loaded = restore_head(json.loads(json.dumps(head.meta())), head.arrays)
    np.testing.assert_array_equal(loaded.logits(x), head.logits(x))
    assert (loaded.digest, loaded.settings, loaded.curve) == (head.digest, head.settings, head.curve)
    assert loaded.name == head.name


def test_logits_do_not_depend_on_the_block(head):
    x = vectors(50, seed=2).x
    np.testing.assert_allclose(np.concatenate([head.logits(x[:7]), head.logits(x[7:])]), head.logits(x), atol=1e-5)


def test_pure_function(head):
    if not hasattr(head, "apply"):
        pytest.skip("no JAX function")
    x = vectors(50, seed=2).x
    np.testing.assert_allclose(jax.jit(head.apply)(head.arrays, x), head.logits(x), atol=1e-5)


def test_nan_and_wrong_width_are_refused(head):
    x = vectors(50, seed=2).x
    x[7, 2] = np.nan
    with pytest.raises(UserError, match=r"1 of 50 rows, the first is row 7"):
        head.logits(x)
    with pytest.raises(UserError, match="5 features"):
        head.logits(x[:, :5])


def test_damage_is_found(head):
    with pytest.raises(DamagedError, match="damaged"):
        restore_head(head.meta() | {"sha256": "0"}, head.arrays)
    with pytest.raises(DamagedError, match="format 2"):
        restore_head(head.meta() | {"format": 2}, head.arrays)


def test_wrong_input():
    good = vectors()
    bad = Vectors(good.x.copy(), good.y)
    bad.x[5] = np.inf
    with pytest.raises(UserError, match="training vectors hold NaN or infinity in 1 of 120 rows, the first is row 5"):
        fit_head(HeadConfig(), bad, good, num_classes=3)
    with pytest.raises(UserError, match="validation vectors hold NaN"):
        fit_head(HeadConfig(), good, bad, num_classes=3)
    with pytest.raises(UserError, match="labels go from 0 to 2; with 2 classes"):
        fit_head(HeadConfig(), good, num_classes=2)
    with pytest.raises(UserError, match="must be float32"):
        fit_head(HeadConfig(), Vectors(good.x.astype(np.float64), good.y), num_classes=3)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="one class only"):
        fit_head(HeadConfig(), Vectors(good.x, np.zeros(120, np.int32)), num_classes=3)
    with pytest.raises(UserError, match="no validation vectors"):
        fit_head(HeadConfig(refit=True), good, num_classes=3)
    with pytest.raises(UserError, match="class_weights"):
        fit_head(HeadConfig(), good, num_classes=3, class_weights=np.ones(2, np.float32))
