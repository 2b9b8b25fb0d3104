import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtrain.config import OptimizerConfig, ScheduleConfig
from jaxtrain.errors import UserError
from jaxtrain.training.optimizers import (
    DEFAULTS,
    decay_mask,
    ema_update,
    make_optimizer,
    make_schedule,
    resolve_optimizer,
)
from tests.marks import mostly_slow

PARAMS = {
    "block/kernel": jnp.full((3, 3, 2, 4), 0.5),
    "block/bias": jnp.full(4, 0.5),
    "norm/scale": jnp.ones(4),
    "norm/bias": jnp.zeros(4),
    "pos_embed": jnp.full((1, 5, 4), 0.5),
    "head/kernel": jnp.full((4, 3), 0.5),
    "head/bias": jnp.zeros(3),
}


def test_decay_skips_norms_biases_and_tokens():
    assert [name for name, on in decay_mask(PARAMS).items() if on] == ["block/kernel", "head/kernel"]


@pytest.mark.parametrize("name", mostly_slow(sorted(DEFAULTS), {"adamw"}))
def test_every_optimizer_descends_and_decays_only_kernels(name):
    config = resolve_optimizer(OptimizerConfig(name=name, learning_rate=0.01, clip_norm=1.0))
    optimizer = make_optimizer(config, optax.constant_schedule(0.01))

    def loss(params):
        return sum(jnp.sum((leaf - 0.1) ** 2) for leaf in jax.tree.leaves(params))

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, optimizer.init(PARAMS)
    start = loss(params)
    for _ in range(30):
        params, state = step(params, state)
    assert loss(params) < start
    # With no gradient at all, decay moves kernels towards zero and leaves everything else where it is.
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = optimizer.update(zeros, optimizer.init(PARAMS), PARAMS)
    assert [name for name, update in updates.items() if jnp.any(update != 0)] == ["block/kernel", "head/kernel"]


def test_sgd_equals_the_textbook_in_float64():
    """Nesterov momentum with L2 in the gradient, as PyTorch's SGD(nesterov=True, weight_decay=...) computes it."""
    config = resolve_optimizer(OptimizerConfig(name="sgd", learning_rate=0.1, weight_decay=0.01, momentum=0.9))
    optimizer = make_optimizer(config, optax.constant_schedule(0.1))
    params = {"kernel": jnp.array([[1.0, -2.0], [0.5, 3.0]])}
    state = optimizer.init(params)
    reference, velocity = np.asarray(params["kernel"], np.float64), np.zeros((2, 2))
    for step in range(5):
        gradient = np.array([[1.0, 2.0], [3.0, 4.0]]) * (step + 1)
        updates, state = optimizer.update({"kernel": jnp.asarray(gradient, jnp.float32)}, state, params)
        params = optax.apply_updates(params, updates)
        total = gradient + 0.01 * reference
        velocity = 0.9 * velocity + total
        reference = reference - 0.1 * (total + 0.9 * velocity)
    np.testing.assert_allclose(params["kernel"], reference, rtol=1e-5)


def test_options_that_an_optimizer_does_not_have_are_refused():
    with pytest.raises(UserError, match=r"optimizer\.momentum: adamw has no such option"):
        resolve_optimizer(OptimizerConfig(name="adamw", momentum=0.9))
    with pytest.raises(UserError, match=r"optimizer\.beta1: sgd has no such option"):
        resolve_optimizer(OptimizerConfig(name="sgd", beta1=0.9))


def rates(name, **options):
    schedule = make_schedule(ScheduleConfig(name=name, **options), peak=2.0, steps=100, warmup_steps=10)
    return np.array([float(schedule(step)) for step in range(101)])


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd", "constant"])
def test_schedules_warm_up_to_the_peak(name):
    values = rates(name)
    np.testing.assert_allclose(values[:10], 2.0 * np.arange(1, 11) / 10, rtol=1e-6)
    assert values.max() == pytest.approx(2.0)


def test_schedules_after_warmup():
    steps = np.arange(10, 101)
    share = (steps - 10) / 90
    np.testing.assert_allclose(rates("cosine")[10:], 1 + np.cos(np.pi * share), atol=1e-5)
    np.testing.assert_allclose(rates("linear", final_ratio=0.25)[10:], 2.0 - 1.5 * share, atol=1e-5)
    wsd = rates("wsd", decay_fraction=0.3)
    assert (wsd[10:71] == 2.0).all()
    np.testing.assert_allclose(wsd[70:], np.linspace(2.0, 0.0, 31), atol=1e-5)
    assert (rates("constant")[10:] == 2.0).all()


@pytest.mark.slow
def test_one_cycle_rises_for_a_third_and_ends_low():
    values = rates("one_cycle")
    assert values[0] == pytest.approx(2.0 / 25)
    assert values.argmax() == 30
    assert values[-1] < 1e-3


def test_ema_forgets_its_start_and_then_follows_the_decay():
    ema = {"w": jnp.zeros(())}
    after = ema_update(ema, {"w": jnp.ones(())}, 0.99, jnp.int32(0))
    assert float(after["w"]) == pytest.approx(0.9)
    late = ema_update(ema, {"w": jnp.ones(())}, 0.99, jnp.int32(100_000))
    assert float(late["w"]) == pytest.approx(0.01, rel=1e-3)
