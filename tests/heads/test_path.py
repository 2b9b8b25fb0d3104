import jax.numpy as jnp
import numpy as np
import pytest

from jaxtrain.heads.path import in_groups, plan


@pytest.mark.parametrize("count", [1, 2, 3, 8, 15, 64])
@pytest.mark.parametrize("decades", [0.5, 7])
def test_every_penalty_is_solved_once_and_none_far_from_what_it_starts_from(count, decades):
    penalties = np.geomspace(10.0**-decades, 1, count)
    levels = plan(penalties)
    order = np.concatenate([level.members for level in levels])
    assert sorted(order) == list(range(count))
    solved = levels[0].members
    assert (np.diff(np.log10(penalties[solved])) <= max(1.05, decades / max(count - 1, 1) + 1e-6)).all()
    known = 0
    for level in levels:
        assert level.blend.shape == (known, len(level.members))
        known += len(level.members)


def test_starts_are_exact_for_a_cubic():
    penalties = np.geomspace(1e-6, 10, 29)
    values = np.polynomial.Polynomial([1.0, -0.5, 0.3, 0.1])(np.log(penalties))
    levels = plan(penalties)
    assert len(levels) == 3
    known = values[levels[0].members]
    for level in levels[1:]:
        np.testing.assert_allclose(known @ level.blend, values[level.members], rtol=1e-4, atol=1e-3)
        known = np.concatenate([known, values[level.members]])


def test_groups_are_the_whole():
    x, y = jnp.arange(10.0).reshape(2, 5), jnp.arange(5.0)
    whole = in_groups(lambda a, b: (a * b, b.sum() + b), 5, x, y)
    grouped = in_groups(lambda a, b: (a * b, b * 2), 2, x, y)
    np.testing.assert_array_equal(whole[0], grouped[0])
    np.testing.assert_array_equal(grouped[1], y * 2)
