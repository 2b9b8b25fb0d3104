"""The pure step in a loop of one's own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from sklearn.datasets import load_digits

from jaxtrain import Batch, create_model, train_step
from tests.classifiers.own_networks import NETWORKS


@pytest.fixture(scope="module")
def digits():
    bunch = load_digits()
    return jnp.asarray(bunch.images[:600, :, :, None] / 8 - 1, jnp.float32), jax.nn.one_hot(bunch.target[:600], 10)


def batches(digits, count):
    for number in range(count):
        part = slice(number % 6 * 100, number % 6 * 100 + 100)
        yield Batch(digits[0][part], digits[1][part])


def test_it_is_the_step_that_optax_and_flax_make(digits):
    model = create_model("mlp_tiny", num_classes=10, channels=1, image_size=8)
    optimizer = optax.adamw(1e-2)
    step, state = train_step(model, optimizer)
    fast = jax.jit(step, donate_argnums=0)
    graphdef, params = nnx.split(model)
    moments = optimizer.init(params)

    def loss(params, batch):
        logits = nnx.merge(graphdef, params)(batch.image)
        return optax.softmax_cross_entropy(logits, batch.label).mean()

    for batch in batches(digits, 8):
        state, metrics = fast(state, batch)
        value, slopes = jax.value_and_grad(loss)(params, batch)
        updates, moments = optimizer.update(slopes, moments, params)
        params = optax.apply_updates(params, updates)
        assert metrics["loss"] == pytest.approx(float(value), rel=1e-4)
    theirs = nnx.merge(graphdef, params)(digits[0])
    np.testing.assert_allclose(step.model(state)(digits[0]), theirs, atol=1e-3)


@pytest.mark.parametrize("name", ["documented", pytest.param("linen", marks=pytest.mark.slow)])
def test_any_network_learns_and_repeats_itself(name, digits):
    from jaxtrain.models.own import build_own

    model = build_own(NETWORKS[name], num_classes=10, image_shape=(8, 8, 1), seed=0)
    step, start = train_step(model, optax.adam(1e-2), seed=3, accumulate=2, ema_decay=0.9)
    fast, ends = jax.jit(step), []
    for _ in range(2):
        state = start
        for batch in batches(digits, 90):
            state, _ = fast(state, batch)
        ends.append(state)
    for one, other in zip(*(jax.tree.leaves(end.params) for end in ends), strict=True):
        np.testing.assert_array_equal(one, other)
    hits = step.model(ends[0])(digits[0]).argmax(1) == digits[1].argmax(1)
    assert hits.mean() > 0.8


def test_only_what_is_named_learns(digits):
    model = create_model("mlp_tiny", num_classes=10, channels=1, image_size=8)
    step, state = train_step(model, optax.sgd(0.1), trainable=lambda path, value: path[0] == "head")
    assert set(state.params) == {"head/kernel", "head/bias"}
    after, _ = jax.jit(step)(state, next(batches(digits, 1)))
    assert not np.array_equal(after.params["head/kernel"], state.params["head/kernel"])
