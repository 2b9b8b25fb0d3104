"""Vectors of several blocks and poolings, against the models' own parts put together by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtrain import UserError, create_model
from tests.marks import mostly_slow

IMAGES = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def vit():
    return create_model("vit_test", num_classes=3, image_size=32)


def tokens_of(model):
    outputs = []
    final = model.features(IMAGES, taps=outputs)
    return outputs, final


@pytest.mark.slow
def test_one_block_is_the_embedding(vit):
    np.testing.assert_allclose(vit.embed_blocks(IMAGES), vit.embed(IMAGES), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_poolings_of_tokens(vit):
    _, final = tokens_of(vit)
    np.testing.assert_allclose(vit.embed_blocks(IMAGES, pool="cls"), final[:, 0], rtol=1e-5, atol=1e-5)
    patches = final[:, 1:].mean(axis=1)
    np.testing.assert_allclose(vit.embed_blocks(IMAGES, pool="avg"), patches, rtol=1e-5, atol=1e-5)
    both = jnp.concatenate([final[:, 0], patches], axis=1)
    np.testing.assert_allclose(vit.embed_blocks(IMAGES, pool="cls+avg"), both, rtol=1e-5, atol=1e-5)


def test_two_blocks_of_tokens_are_each_normalised(vit):
    outputs, final = tokens_of(vit)
    by_hand = jnp.concatenate([vit.norm(outputs[0])[:, 0], final[:, 0]], axis=1)
    np.testing.assert_allclose(vit.embed_blocks(IMAGES, blocks=2), by_hand, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "name",
    mostly_slow(
        ["cnn_tiny", "resnet_tiny", "wide_resnet_tiny", "convnext_test", "efficientnet_lite_test"], {"cnn_tiny"}
    ),
)
def test_two_blocks_of_maps(name):
    model = create_model(name, num_classes=3, image_size=32)

    @jax.jit
    def both(images):
        outputs = []
        model.features(images, taps=outputs)
        return outputs[-2].mean(axis=(1, 2)), model.embed(images), model.embed_blocks(images, blocks=2)

    earlier, last, joined = both(IMAGES)
    np.testing.assert_allclose(joined, jnp.concatenate([earlier, last], axis=1), rtol=1e-4, atol=1e-5)


def test_what_a_model_does_not_have(vit):
    with pytest.raises(UserError, match=r"features.blocks: 9 asked for, this model has 2"):
        vit.embed_blocks(IMAGES, blocks=9)
    with pytest.raises(UserError, match="no class token for 'cls'"):
        create_model("cnn_tiny", num_classes=3, image_size=32).embed_blocks(IMAGES, pool="cls")
