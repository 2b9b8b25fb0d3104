"""Fast ways to get a model: compiled as one program, or as shapes alone."""

import functools

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from jaxtrain.models import create_model


@pytest.fixture(scope="session")
def create():
    """`create_model` under `jax.jit`: op by op it takes seconds."""

    @functools.cache
    def build(config, **kwargs):
        def make():
            return create_model(config, **kwargs)

        graphdef = nnx.graphdef(nnx.eval_shape(make))
        return nnx.merge(graphdef, jax.jit(lambda: nnx.to_pure_dict(nnx.state(make())))())

    return build


@pytest.fixture(scope="session")
def feature_shape():
    """The shape of `features` of two images; nothing is computed."""

    def shape(config, size, channels=3):
        def features(images):
            return create_model(config, num_classes=10, image_size=size, channels=channels).features(images)

        return jax.eval_shape(features, jnp.zeros((2, size, size, channels))).shape

    return shape
