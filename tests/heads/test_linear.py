import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from jaxtrain.config import HeadConfig
from jaxtrain.errors import UserError
from jaxtrain.heads import Vectors, fit_head


def embeddings(images, features=40, classes=5, seed=0, decay=1.0):
    """Correlated, ReLU-like vectors with class structure; `decay` makes the spectrum fall faster."""
    generator = np.random.default_rng(seed)
    y = generator.integers(0, classes, images)
    latent = 16
    spread = (1.0 + np.arange(latent)) ** -decay
    centres = generator.standard_normal((classes, latent))
    z = (0.7 * centres[y] + generator.standard_normal((images, latent))) * spread
    x = z @ generator.standard_normal((latent, features)) + 0.1 * generator.standard_normal((images, features)) - 0.2
    return Vectors(np.maximum(x, 0).astype(np.float32), y.astype(np.int32))


def halves(data, at):
    return Vectors(data.x[:at], data.y[:at]), Vectors(data.x[at:], data.y[at:])


def objective(kernel, bias, x, y, l2, weights=None):
    """In float64: mean cross-entropy and l2 / 2 |kernel|^2."""
    logits = x.astype(np.float64) @ kernel.astype(np.float64) + bias
    top = logits.max(1, keepdims=True)
    loss = np.log(np.exp(logits - top).sum(1)) + top[:, 0] - logits[np.arange(len(y)), y]
    return np.average(loss, weights=weights) + l2 / 2 * (kernel.astype(np.float64) ** 2).sum()


def raw(head):
    kernel = head.arrays["kernel"].astype(np.float64)
    return kernel, head.arrays["bias"] - head.arrays["mean"].astype(np.float64) @ kernel


@pytest.mark.parametrize("decay", [pytest.param(0.5, marks=pytest.mark.slow), 4.0])  # 4: ill-conditioned
def test_optimum_is_that_of_scikit_learn(decay):
    train, test = halves(embeddings(4600, features=24, decay=decay), 600)
    penalties = (1e-5, 1e-3, 1e-2, 1.0)
    for l2 in penalties:
        head = fit_head(HeadConfig(weight_decay=(l2,), scaling=("none",)), train, num_classes=5)
        theirs = LogisticRegression(C=1 / (l2 * 600), tol=1e-8, max_iter=20000)
        theirs.fit(train.x.astype(np.float64), train.y)
        reference = objective(theirs.coef_.T, theirs.intercept_, train.x, train.y, l2)
        ours = objective(*raw(head), train.x, train.y, l2)
        assert ours <= reference * (1 + 1e-3)
        assert ours >= reference * (1 - 1e-6)
        assert abs(head.curve[0]["objective"] - ours) < 1e-4 * ours
        agree = (head.logits(test.x).argmax(1) == test.y).mean(), theirs.score(test.x, test.y)
        assert abs(agree[0] - agree[1]) < 0.005, (l2, agree)


def test_a_grid_gives_the_optimum_of_each_setting():
    train, val = halves(embeddings(900), 600)
    decays = tuple(10.0 ** np.arange(-5, 1.01, 0.25))
    grid = fit_head(HeadConfig(weight_decay=decays, scaling=("none", "standard")), train, val, num_classes=5)
    assert len(grid.curve) == 2 * len(decays)
    assert all(entry["converged"] for entry in grid.curve)
    for entry in grid.curve[:: len(decays) // 4]:
        one = fit_head(
            HeadConfig(weight_decay=(entry["weight_decay"],), scaling=(entry["scaling"],)), train, val, num_classes=5
        )
        assert entry["objective"] == pytest.approx(one.curve[0]["objective"], rel=3e-4)
        assert entry["val_loss"] == pytest.approx(one.curve[0]["val_loss"], rel=2e-2)
    best = min(grid.curve, key=lambda entry: entry["val_loss"])
    assert (grid.logits(val.x).argmax(1) == val.y).mean() == pytest.approx(best["val_accuracy"], abs=1e-6)


def test_standard_scaling_is_that_of_scikit_learn():
    train, test = halves(embeddings(900), 600)
    train.x[:, 3] = 7.0  # constant
    test.x[:, 3] = 7.0
    head = fit_head(HeadConfig(weight_decay=(1e-3,), scaling=("standard",)), train, num_classes=5)
    scaler = StandardScaler().fit(train.x)
    theirs = LogisticRegression(C=1 / (1e-3 * 600), tol=1e-8, max_iter=5000).fit(scaler.transform(train.x), train.y)
    expected = theirs.predict_log_proba(scaler.transform(test.x))
    logits = head.logits(test.x).astype(np.float64)
    ours = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert np.abs(ours - expected).max() < 0.5
    assert np.abs(ours - expected).mean() < 0.03


def test_two_classes_are_the_binary_problem_of_scikit_learn():
    train, test = halves(embeddings(600, classes=2), 400)
    head = fit_head(HeadConfig(weight_decay=(1e-2,), scaling=("none",)), train, num_classes=2)
    theirs = LogisticRegression(C=1 / (1e-2 * 400), tol=1e-8, max_iter=5000).fit(train.x, train.y)
    logits = head.logits(test.x)
    assert logits[:, 1] - logits[:, 0] == pytest.approx(theirs.decision_function(test.x), rel=0.01, abs=0.02)


def test_class_weights_are_those_of_scikit_learn():
    train, _ = halves(embeddings(900), 600)
    weights = np.array([3.0, 1.0, 1.0, 0.5, 0.2], np.float32)
    config = HeadConfig(weight_decay=(1e-2,), scaling=("none",))
    head = fit_head(config, train, num_classes=5, class_weights=weights)
    rows = weights[train.y].astype(np.float64)
    theirs = LogisticRegression(
        C=1 / (1e-2 * rows.sum()), tol=1e-8, max_iter=5000, class_weight=dict(enumerate(weights))
    )
    theirs.fit(train.x.astype(np.float64), train.y)
    reference = objective(theirs.coef_.T, theirs.intercept_, train.x, train.y, 1e-2, rows)
    assert objective(*raw(head), train.x, train.y, 1e-2, rows) == pytest.approx(reference, rel=1e-3)


@pytest.mark.slow
def test_more_features_than_images():
    train, _ = halves(embeddings(140, features=300), 60)
    for l2 in (1e-4, 1e-1):
        head = fit_head(HeadConfig(weight_decay=(l2,), scaling=("none",)), train, num_classes=5)
        theirs = LogisticRegression(C=1 / (l2 * 60), tol=1e-8, max_iter=20000).fit(train.x.astype(np.float64), train.y)
        reference = objective(theirs.coef_.T, theirs.intercept_, train.x, train.y, l2)
        assert objective(*raw(head), train.x, train.y, l2) == pytest.approx(reference, rel=1e-3)


@pytest.mark.slow
def test_a_class_without_vectors_keeps_its_column():
    train, val = halves(embeddings(600), 400)
    seen = train.y != 2
    train = Vectors(train.x[seen], train.y[seen])
    head = fit_head(HeadConfig(choose_by="accuracy"), train, val, num_classes=5)
    logits = head.logits(val.x)
    assert logits.shape == (200, 5)
    assert (logits.argmax(1) != 2).all()
    best = max(entry["val_accuracy"] for entry in head.curve)
    assert (logits.argmax(1) == val.y).mean() == pytest.approx(best, abs=1e-6)
    assert len(head.curve) == 45


def test_the_size_of_features_does_not_matter():
    train, _ = halves(embeddings(600), 400)
    for size in (1e-4, 1e4):
        scaled = Vectors(train.x * np.float32(size), train.y)
        head = fit_head(HeadConfig(weight_decay=(1e-3 * size**2,), scaling=("none",)), scaled, num_classes=5)
        same = fit_head(HeadConfig(weight_decay=(1e-3,), scaling=("none",)), train, num_classes=5)
        assert head.curve[0]["objective"] == pytest.approx(same.curve[0]["objective"], rel=1e-4)


@pytest.mark.slow
def test_same_bits():
    train, val = halves(embeddings(600), 400)
    one, two = (fit_head(HeadConfig(), train, val, num_classes=5) for _ in range(2))
    assert one.digest == two.digest
    assert one.curve == two.curve


def test_refit_is_the_fit_on_both():
    data = embeddings(600)
    train, val = halves(data, 400)
    config = HeadConfig(weight_decay=(1e-2,), scaling=("standard",))
    refitted = fit_head(config.model_copy(update={"refit": True}), train, val, num_classes=5)
    both = fit_head(config, data, num_classes=5)
    assert refitted.digest == both.digest


def test_a_choice_needs_validation():
    train, _ = halves(embeddings(100), 50)
    with pytest.raises(UserError, match="45 settings"):
        fit_head(HeadConfig(), train, num_classes=5)
