"""Shapes, stems and starting values of the residual networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxtrain.config import ModelConfig
from jaxtrain.models import create_model


@pytest.mark.parametrize(("stem", "expected"), [("imagenet", (2, 1, 1, 512)), ("cifar", (2, 4, 4, 512))])
def test_stem(feature_shape, stem, expected):
    assert feature_shape(ModelConfig(name="resnet18", stem=stem), 32) == expected


def test_sides_that_do_not_divide_round_up_as_in_torch(feature_shape):
    assert feature_shape("resnet18", 97) == (2, 4, 4, 512)


def test_wide_resnet_28_10_has_the_parameters_of_the_paper():
    """Table 4 of arXiv 1605.07146: 36.5 million for CIFAR-10."""
    model = nnx.eval_shape(lambda: create_model("wide_resnet28_10", num_classes=10, image_size=32))
    count = sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert round(count / 1e5) == 365


def test_every_branch_starts_as_the_identity(create):
    model = create("resnet_tiny", num_classes=3, image_size=8)
    for block in model.blocks:
        np.testing.assert_array_equal(block.bn3.scale[...], 0.0)
        np.testing.assert_array_equal(block.bn1.scale[...], 1.0)


def test_block_after_a_zero_branch_is_its_shortcut(create):
    model = create("resnet_tiny", num_classes=3, image_size=8)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 8)), jnp.float32)
    block = model.blocks[0]
    np.testing.assert_allclose(block(x, False, None), np.maximum(block.shortcut(x, False), 0.0), atol=1e-6)
