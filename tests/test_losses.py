import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, log_expit
from sklearn.metrics import log_loss, top_k_accuracy_score

from jaxtrain.config import LossConfig
from jaxtrain.losses import cross_entropy, image_metrics, label_loss, log_shares, named_loss, soft_labels


def softmax(z):
    return np.exp(z) / np.exp(z).sum(1, keepdims=True)


def cross_entropies(z, t):
    return [-sum(t[i] * np.log(softmax(z)[i])) for i in range(len(z))]


def binary(z, t, threshold=None):
    t = t if threshold is None else np.where(t > threshold, 1.0, 0.0)
    return (-t * log_expit(z) - (1 - t) * log_expit(-z)).sum(1)


def focal(z, t, gamma):
    p = softmax(z)
    return (t * (1 - p) ** gamma * -np.log(p)).sum(1)


def poly1(z, t, epsilon):
    return cross_entropies(z, t) + epsilon * (1 - (t * softmax(z)).sum(1))


def gce(z, t, q):
    return (t * (1 - softmax(z) ** q) / q).sum(1)


def asymmetric(z, t, gamma, positive, clip):
    """Ridnik et al. 2021, equations 6 and 7."""
    p = expit(z)
    shifted = np.maximum(p - clip, 0)
    present, absent = (1 - p) ** positive * np.log(p), shifted**gamma * np.log(1 - shifted)
    return -(t * present + (1 - t) * absent).sum(1)


FORMULAS = [
    ({}, cross_entropies),
    ({"name": "bce"}, binary),
    ({"name": "bce", "target_threshold": 0.2}, lambda z, t: binary(z, t, 0.2)),
    ({"name": "focal"}, lambda z, t: focal(z, t, 2)),
    ({"name": "focal", "gamma": 0.5}, lambda z, t: focal(z, t, 0.5)),
    ({"name": "poly1"}, lambda z, t: poly1(z, t, 1)),
    ({"name": "poly1", "epsilon": -0.5}, lambda z, t: poly1(z, t, -0.5)),
    ({"name": "gce"}, lambda z, t: gce(z, t, 0.7)),
    ({"name": "gce", "q": 1}, lambda z, t: gce(z, t, 1)),
    ({"name": "asymmetric"}, lambda z, t: asymmetric(z, t, 4, 0, 0.05)),
    ({"name": "asymmetric", "gamma": 2, "gamma_positive": 1, "clip": 0}, lambda z, t: asymmetric(z, t, 2, 1, 0)),
]
KINDS = {"hard": (0.0, 1.0), "smoothed": (0.1, 1.0), "mixed": (0.0, 0.7), "smoothed and mixed": (0.1, 0.7)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("options", "formula"), FORMULAS)
def test_losses_and_their_gradients_equal_their_formulas_in_float64(options, formula, kind):
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(60, 5)) * 3
    smoothing, share = KINDS[kind]
    hard = np.eye(5)[generator.integers(0, 5, 60)] * (1 - smoothing) + smoothing / 5
    targets = share * hard + (1 - share) * hard[::-1]
    loss = named_loss(LossConfig(**options).resolved())
    ours = loss(jnp.asarray(logits, jnp.float32), jnp.asarray(targets, jnp.float32))
    np.testing.assert_allclose(ours, formula(logits, targets), rtol=2e-5, atol=2e-6)
    slopes = jax.grad(lambda z: loss(z, jnp.asarray(targets, jnp.float32)).sum())(jnp.asarray(logits, jnp.float32))
    for place in range(5):
        step = np.eye(5)[place] * 1e-6
        by_differences = (formula(logits + step, targets) - np.asarray(formula(logits - step, targets))) / 2e-6
        np.testing.assert_allclose(slopes[:, place], by_differences, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [options for options, _ in FORMULAS] + [{"name": "focal", "gamma": 0}])
def test_no_logits_give_a_gradient_that_is_not_finite(options):
    loss, many = named_loss(LossConfig(**options).resolved()), [-1e4, -90.0, -15.0, 0.0, 15.0, 90.0, 1e4]
    logits = jnp.array([[a, b, 0.0] for a in many for b in many])
    for target in np.eye(3):
        found, slopes = jax.value_and_grad(lambda z, t=target: loss(z, jnp.asarray(t)).sum())(logits)
        assert jnp.isfinite(found)
        assert jnp.isfinite(slopes).all()


def test_losses_of_each_class_take_a_matrix_of_labels():
    """As multi-label data has: no label, one, or all of them."""
    logits, targets = np.random.default_rng(0).normal(size=(3, 4)), np.array([[0, 0, 0, 0], [0, 1, 0, 0], [1, 1, 1, 1]])
    for options, formula in FORMULAS:
        if options.get("name") in ("bce", "asymmetric"):
            ours = named_loss(LossConfig(**options).resolved())(jnp.asarray(logits, jnp.float32), jnp.asarray(targets))
            np.testing.assert_allclose(ours, formula(logits, targets), rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"name": "bce"}, {"name": "bce", "target_threshold": 0.2}])
def test_weights_of_labels_are_those_of_torch(options):
    """BCEWithLogitsLoss(pos_weight): -(p y log s(z) + (1 - y) log(1 - s(z))), here over the known labels."""
    rng = np.random.default_rng(0)
    logits, targets, weights = 3 * rng.normal(size=(20, 4)), rng.uniform(size=(20, 4)).round(1), [1, 0.5, 3, 20]
    unknown = rng.random((20, 4)) < 0.2
    y = targets > options["target_threshold"] if "target_threshold" in options else targets
    each = -(weights * y * log_expit(logits) + (1 - y) * log_expit(-logits))
    given = np.where(unknown, -1, targets)
    loss = label_loss(LossConfig(**options).resolved(), weights)
    np.testing.assert_allclose(loss(jnp.asarray(logits), jnp.asarray(given)), (each * ~unknown).sum(1), rtol=1e-5)
    slopes = jax.grad(lambda z: loss(z, jnp.asarray(given)).sum())(jnp.asarray(logits, jnp.float32))
    expected = (1 - y) * expit(logits) - weights * y * expit(-logits)
    np.testing.assert_allclose(slopes, expected * ~unknown, rtol=1e-4, atol=1e-5)


def test_shares_of_classes():
    np.testing.assert_allclose(np.exp(log_shares([60, 39, 0])), [0.6, 0.39, 0.01], rtol=1e-5)


def test_metrics_equal_scikit_learn():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(200, 12)).astype(np.float32) * 3
    labels = generator.integers(0, 12, 200)
    each = image_metrics(jnp.asarray(logits), jnp.asarray(labels))
    probabilities = np.exp(logits.astype(np.float64))
    probabilities /= probabilities.sum(1, keepdims=True)
    names = list(range(12))
    np.testing.assert_allclose(each["loss"].mean(), log_loss(labels, probabilities, labels=names), rtol=1e-5)
    assert float(each["accuracy"].mean()) == np.mean(logits.argmax(1) == labels).astype(np.float32)
    expected = top_k_accuracy_score(labels, logits, k=5, labels=names)
    np.testing.assert_allclose(each["top5_accuracy"].mean(), expected, rtol=1e-6)


def test_ties_are_decided_as_argmax_decides_them():
    logits = jnp.zeros((3, 3))
    each = image_metrics(logits, jnp.array([0, 1, 2]))
    assert each["accuracy"].tolist() == [1.0, 0.0, 0.0]


def test_smoothed_cross_entropy_in_float64():
    logits = np.random.default_rng(1).normal(size=(50, 7))
    labels = np.arange(50) % 7
    targets = np.eye(7)[labels] * 0.9 + 0.1 / 7
    reference = -(targets * (logits - np.log(np.exp(logits).sum(1, keepdims=True)))).sum(1)
    ours = cross_entropy(jnp.asarray(logits, jnp.float32), soft_labels(jnp.asarray(labels), 7, 0.1))
    np.testing.assert_allclose(ours, reference, rtol=1e-5)


def test_large_logits_do_not_overflow():
    logits = jnp.array([[1e4, -1e4, 0.0]], jnp.bfloat16)
    assert float(image_metrics(logits, jnp.array([0]))["loss"][0]) == 0.0
    assert jnp.isfinite(jax.grad(lambda x: cross_entropy(x, jnp.array([[0.0, 1.0, 0.0]])).sum())(logits)).all()


def test_a_broken_network_is_never_right():
    logits = jnp.array([[jnp.nan] * 6, [0.0, jnp.nan, 0, 0, 0, 0], [2.0, 1, 0, 0, 0, 0]])
    metrics = image_metrics(logits, jnp.array([0, 0, 0]))
    assert metrics["accuracy"].tolist() == [0, 0, 1]
    assert metrics["top5_accuracy"].tolist() == [0, 1, 1]
    assert np.isnan(metrics["loss"]).tolist() == [True, True, False]
