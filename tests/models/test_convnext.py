"""ConvNeXt: shapes, sizes that it cannot take, starting values."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxtrain.errors import UserError
from jaxtrain.models import create_model


def test_sides_are_cut_as_in_torch(feature_shape):
    assert feature_shape("convnext_atto", 95) == (2, 2, 2, 320)


def test_an_image_too_small_names_the_size_that_works():
    with pytest.raises(UserError, match=r"image size 28 .*nearest image size that works: 32"):
        create_model("convnext_atto", num_classes=10, image_size=28)


def test_embedding_is_normalised_after_pooling(create):
    model = create("convnext_test", num_classes=3, image_size=16)
    maps = np.random.default_rng(0).normal(size=(2, 2, 2, 16)) * 4
    mean = maps.mean((1, 2))
    expected = (mean - mean.mean(1, keepdims=True)) / np.sqrt(mean.var(1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(model.pool(jnp.asarray(maps, jnp.float32)), expected, atol=1e-5)


def test_blocks_start_almost_as_the_identity(create):
    model = create("convnext_test", num_classes=3, image_size=16)
    x = jnp.ones((1, 4, 4, 8))
    np.testing.assert_allclose(model.stages[0][0](x, False, None), x, atol=1e-4)
