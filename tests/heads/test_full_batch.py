import jax.numpy as jnp
import numpy as np
import pytest

from jaxtrain.heads.full_batch import in_groups


@pytest.mark.parametrize("width", [1, 2, 5, 8])
def test_groups_are_the_whole(width):
    y = jnp.arange(5.0)
    table, row = in_groups(lambda group: (group * jnp.ones((3, 2, 1)), {"twice": group * 2}), width, y)
    np.testing.assert_array_equal(table, np.broadcast_to(y, (3, 2, 5)))
    np.testing.assert_array_equal(row["twice"], y * 2)
