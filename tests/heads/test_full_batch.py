import jax.numpy as jnp
import numpy as np

from jaxtrain.heads.full_batch import in_groups


def test_groups_are_the_whole():
    x, y = jnp.arange(10.0).reshape(2, 5), jnp.arange(5.0)
    whole = in_groups(lambda a, b: (a * b, b.sum() + b), 5, x, y)
    grouped = in_groups(lambda a, b: (a * b, b * 2), 2, x, y)
    np.testing.assert_array_equal(whole[0], grouped[0])
    np.testing.assert_array_equal(grouped[1], y * 2)
