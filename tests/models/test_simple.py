"""The small networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtrain.errors import UserError
from jaxtrain.models import create_model


def test_linear_is_one_matrix():
    model = create_model("linear", num_classes=3, image_size=4, channels=1)
    images = np.random.default_rng(0).normal(size=(5, 4, 4, 1))
    kernel, bias = (np.asarray(v[...], np.float64) for v in (model.head.kernel, model.head.bias))
    expected = images.reshape(5, 16) @ kernel + bias
    np.testing.assert_allclose(model(jnp.asarray(images, jnp.float32)), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["cnn_tiny", "cnn_small", "cnn_medium"])
@pytest.mark.parametrize("size", [8, 9, 28, 33])
def test_cnn_takes_any_size_from_8(feature_shape, name, size):
    assert min(feature_shape(name, size, channels=1)) > 0


def test_cnn_refuses_a_size_of_which_nothing_is_left():
    with pytest.raises(UserError, match=r"image size 1 is too small.*nearest image size that works: \d"):
        create_model("cnn_small", num_classes=3, image_size=1)


def test_images_of_another_shape_are_refused():
    def run(name, *shape):
        def logits(images):
            return create_model(name, num_classes=3, image_size=8, channels=1)(images)

        return jax.eval_shape(logits, jnp.zeros(shape))

    with pytest.raises(UserError, match=r"images \[batch, 8, 8, 1\], got \[2, 9, 9, 1\]"):
        run("mlp_tiny", 2, 9, 9, 1)
    with pytest.raises(UserError, match=r"images \[batch, height, width, 1\], got \[2, 8, 8, 3\]"):
        run("cnn_tiny", 2, 8, 8, 3)
