import jax
import jax.numpy as jnp
import numpy as np
from sklearn.metrics import log_loss, top_k_accuracy_score

from jaxtrain.training.losses import cross_entropy, image_metrics, soft_labels


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
