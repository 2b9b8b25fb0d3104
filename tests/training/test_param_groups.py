"""Learning rates by parameter and L2-SP, against the same steps in float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtrain.config import OptimizerConfig
from jaxtrain.training.optimizers import make_optimizer, resolve_optimizer
from jaxtrain.training.param_groups import decay_towards_start, scale_learning_rates
from jaxtrain.training.state import TrainState, moved_to
from tests.marks import mostly_slow


def params():
    generator = np.random.default_rng(0)
    shapes = {"blocks/0/kernel": (4, 3), "blocks/1/kernel": (3, 3), "head/kernel": (3, 2)}
    return {name: jnp.asarray(generator.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def run(optimizer, steps=4):
    """Parameters after each step, gradients being cos(parameters)."""
    now = params()
    state = optimizer.init(now)
    update = jax.jit(optimizer.update)
    path = [now]
    for _ in range(steps):
        updates, state = update(jax.tree.map(jnp.cos, now), state, now)
        now = optax.apply_updates(now, updates)
        path.append(now)
    return path


@pytest.mark.parametrize("name", mostly_slow(["sgd", "adamw", "lamb", "lion", "muon"], {"sgd", "adamw"}))
def test_a_factor_on_the_update_is_a_factor_on_the_learning_rate(name):
    config = resolve_optimizer(OptimizerConfig(name=name))
    ones = run(make_optimizer(config, lambda step: 0.01 * 0.3))
    scaled = run(optax.chain(make_optimizer(config, lambda step: 0.01), scale_learning_rates(lambda name, step: 0.3)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), scaled[-1], ones[-1])


def test_factors_go_by_name_and_step():
    def factor(name, step):
        if name == "head/kernel":
            return 2.0
        return jnp.where(step >= 2, 1.0, 0.0) if name == "blocks/1/kernel" else 0.0

    path = run(optax.chain(optax.sgd(0.1), scale_learning_rates(factor)))
    start = path[0]
    for step, now in enumerate(path):
        np.testing.assert_array_equal(now["blocks/0/kernel"], start["blocks/0/kernel"])
        assert np.array_equal(now["blocks/1/kernel"], start["blocks/1/kernel"]) == (step <= 2)
    head = np.asarray(start["head/kernel"], np.float64)
    for _ in range(4):
        head = head - 0.1 * 2.0 * np.cos(head)
    np.testing.assert_allclose(path[-1]["head/kernel"], head, rtol=1e-5)


def test_decay_towards_the_start_is_the_formula_and_leaves_the_head_alone():
    def schedule(step):
        return 0.1 / (1.0 + step)

    def applies(tree):
        return {name: name != "head/kernel" for name in tree}

    optimizer = optax.chain(optax.sgd(schedule), decay_towards_start(0.7, schedule, applies))
    path = run(optimizer)
    now = start = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), path[0])
    for step in range(4):
        rate = 0.1 / (1.0 + step)
        pulls = {name: (name != "head/kernel") * 0.7 * (w - start[name]) for name, w in now.items()}
        now = {name: w - rate * np.cos(w) - rate * pulls[name] for name, w in now.items()}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), path[-1], now)
    kept = sum(leaf.size for leaf in jax.tree.leaves(optimizer.init(path[0])[1].start))
    assert kept == 4 * 3 + 3 * 3


def test_a_state_that_is_moved_to_another_step_counts_from_there():
    schedule = optax.linear_schedule(0.1, 0.0, 100)
    towards_start = decay_towards_start(0.7, schedule, lambda tree: jax.tree.map(lambda _: True, tree))
    factor = scale_learning_rates(lambda name, step: jnp.where(step >= 7, 1.0, 0.0))
    optimizer = optax.chain(optax.adam(schedule), towards_start, factor)
    start = params()
    key = jax.random.key(0)
    state = TrainState(jnp.int32(0), start, {}, {}, optimizer.init(start), {}, key)
    moved = moved_to(state, 7)
    (adam, scale), pull, count = moved.opt_state
    assert (int(adam.count), int(scale.count), int(pull.step), int(count.step), int(moved.step)) == (0, 7, 7, 7, 7)
    jax.tree.map(np.testing.assert_array_equal, pull.start, start)
    updates, _ = optimizer.update(jax.tree.map(jnp.cos, start), moved.opt_state, start)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(updates))
