"""The transformer's parts against float64 NumPy, and its options."""

import re
from math import erf

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxtrain.config import ModelConfig
from jaxtrain.errors import UserError
from jaxtrain.models import create_model
from jaxtrain.models.build import Build
from jaxtrain.models.layers import Mlp
from jaxtrain.models.vit import Attention


def build(dtype=jnp.float32):
    rngs = nnx.Rngs(params=jax.random.key(0))
    return Build(num_classes=3, channels=3, image_size=8, dtype=dtype, axis_name=None, rngs=rngs)


def params(linear):
    return np.asarray(linear.kernel[...], np.float64), np.asarray(linear.bias[...], np.float64)


def randomise(module, scale=0.5):
    state = nnx.state(module, nnx.Param)
    leaves, tree = jax.tree.flatten(state)
    rng = np.random.default_rng(1)
    nnx.update(
        module,
        jax.tree.unflatten(tree, [jnp.asarray(rng.normal(size=x.shape) * scale, jnp.float32) for x in leaves]),
    )


def test_attention_is_the_definition():
    attention = Attention(6, 2, build())
    randomise(attention)
    x = np.random.default_rng(0).normal(size=(2, 5, 6))
    kernel, bias = params(attention.qkv)
    q, k, v = np.moveaxis((x @ kernel + bias).reshape(2, 5, 3, 2, 3), 2, 0)
    logits = np.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(3)
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    kernel, bias = params(attention.proj)
    expected = np.einsum("bnts,bsnh->btnh", weights, v).reshape(2, 5, 6) @ kernel + bias
    np.testing.assert_allclose(attention(jnp.asarray(x, jnp.float32)), expected, atol=1e-5)


def test_softmax_of_bfloat16_attention_is_float32():
    attention = Attention(8, 2, build(jnp.bfloat16))
    text = str(jax.make_jaxpr(attention)(jnp.ones((1, 4, 8), jnp.bfloat16)))
    assert set(re.findall(r"(\w+)\[[\d,]+\] = exp", text)) == {"f32"}


def test_mlp_has_the_exact_gelu():
    mlp = Mlp(3, 5, build())
    randomise(mlp, scale=2.0)
    x = np.random.default_rng(0).normal(size=(4, 3))
    (w1, b1), (w2, b2) = params(mlp.fc1), params(mlp.fc2)
    hidden = x @ w1 + b1
    gelu = np.vectorize(lambda v: 0.5 * v * (1 + erf(v / np.sqrt(2))))(hidden)
    np.testing.assert_allclose(mlp(jnp.asarray(x, jnp.float32)), gelu @ w2 + b2, atol=1e-5)


@pytest.mark.parametrize("pool", ["cls", "avg"])
@pytest.mark.parametrize("registers", [0, 3])
def test_tokens_are_class_registers_patches(feature_shape, pool, registers):
    config = ModelConfig(name="vit_test", pool=pool, registers=registers)
    assert feature_shape(config, 16) == (2, 1 + registers + 4, 32)
    model = nnx.eval_shape(lambda: create_model(config, num_classes=4, image_size=16))
    assert model.pos_embed.shape == (1, 1 + 4, 32)


def test_average_pooling_leaves_out_class_and_registers(create):
    config = ModelConfig(name="vit_test", pool="avg", registers=2)
    model = create(config, num_classes=4, image_size=16)
    tokens = jnp.asarray(np.random.default_rng(0).normal(size=(2, 7, 32)), jnp.float32)
    mean = np.asarray(tokens, np.float64)[:, 3:].mean(1)
    expected = (mean - mean.mean(1, keepdims=True)) / np.sqrt(mean.var(1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(model.pool(tokens), expected, atol=1e-5)


def test_patch_size_is_an_option_and_patches_go_row_by_row(create):
    model = create(ModelConfig(name="vit_test", patch_size=4), num_classes=4, image_size=16)
    assert model.patch_embed.kernel.shape == (4, 4, 3, 32)
    model.pos_embed[...] = jnp.zeros_like(model.pos_embed[...])
    images = jnp.zeros((1, 16, 16, 3)).at[:, 4:8, 8:12].set(1.0)
    tokens = model._tokens(model.patch_embed(images))[0, 1:]
    odd = np.flatnonzero(np.abs(np.asarray(tokens - tokens[0])).max(axis=1) > 1e-4)
    np.testing.assert_array_equal(odd, [4 + 2])


def test_a_variant_without_class_token_grows_one_for_class_pooling():
    name = "vit_tiny_patch4_32"
    average = nnx.eval_shape(lambda: create_model(name, num_classes=4, image_size=32))
    assert average.cls_token is None
    assert average.pos_embed.shape == (1, 64, 192)
    with_class = ModelConfig(name=name, pool="cls")
    model = nnx.eval_shape(lambda: create_model(with_class, num_classes=4, image_size=32))
    assert model.cls_token is not None
    assert model.pos_embed.shape == (1, 65, 192)


@pytest.mark.parametrize(("size", "works"), [(20, "16 or 24"), (7, "8"), (17, "16 or 24")])
def test_image_size_that_does_not_divide_names_the_nearest(size, works):
    with pytest.raises(UserError, match=rf"image size {size} .*patches of 8 .*: {works} \(") as error:
        create_model("vit_test", num_classes=4, image_size=size)
    assert "\n" not in str(error.value)
