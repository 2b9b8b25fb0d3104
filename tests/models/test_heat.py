"""Heat maps beside their formula, written by hand with differences in the place of gradients."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from jaxtrain.config import ModelConfig
from jaxtrain.models import create_model
from jaxtrain.models.heat import feature_map, heat_maps, rolls_out
from jaxtrain.models.own import build_own, calling
from tests.marks import mostly_slow

IMAGES = np.random.default_rng(0).normal(size=(3, 8, 8, 2)).astype(np.float32)
BEST = np.array([1, 0, 2])


@functools.partial(jax.jit, static_argnums=0)
def heat_of(build, images):
    return heat_maps(build, images, score)


def score(model, images):
    return jnp.take_along_axis(model(images), BEST[:, None], axis=1)[:, 0]


def by_differences(tail, features):
    """Grad-CAM of a feature map `[batch, height, width, channels]` that `tail` makes logits of."""
    tail, step, gradient = jax.jit(tail), 1e-3, np.zeros_like(features)
    for place in np.ndindex(*features.shape[1:]):
        change = np.zeros_like(features)
        change[(slice(None), *place)] = step
        difference = np.asarray(tail(features + change) - tail(features - change))
        gradient[(slice(None), *place)] = difference[np.arange(3), BEST] / (2 * step)
    return np.maximum((gradient.mean(axis=(1, 2), keepdims=True) * features).sum(axis=-1), 0)


def again(model):
    """What gives the network within a trace."""
    graph, state = nnx.split(model)
    return lambda: calling(nnx.merge(graph, state, copy=True))


class Net(nnx.Module):
    """Whose last layers see more than the mean of a channel."""

    def __init__(self, num_classes, rngs):
        self.conv = nnx.Conv(2, 4, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.hidden, self.out = nnx.Linear(64, 5, rngs=rngs), nnx.Linear(5, num_classes, rngs=rngs)

    def __call__(self, x):
        return self.tail(self.norm(self.conv(x)))

    def tail(self, x):
        return self.out(jnp.tanh(self.hidden(jnp.tanh(x).reshape(len(x), -1))))


class LinenNet(linen.Module):
    num_classes: int

    @linen.compact
    def __call__(self, x, train=False):
        x = linen.relu(linen.Conv(4, (3, 3), name="conv")(x))
        return linen.Dense(self.num_classes, name="out")(x.mean(axis=(1, 2)))


def test_a_network_of_ones_own_is_explained_by_the_last_output_with_height_and_width():
    model = Net(3, nnx.Rngs(0))
    model.eval()
    features = np.asarray(model.norm(model.conv(IMAGES)))
    assert feature_map(again(model), IMAGES, score)[1] == (3, 4, 4, 4)
    heat = heat_of(again(model), IMAGES)
    np.testing.assert_allclose(heat, by_differences(model.tail, features), atol=1e-3)


def test_a_linen_network_likewise():
    model = build_own(LinenNet, num_classes=3, image_shape=(8, 8, 2), seed=0)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    plain = linen.Conv(4, (3, 3)).apply({"params": params["conv"]}, IMAGES)

    def tail(x):
        return jax.nn.relu(x).mean(axis=(1, 2)) @ params["out"]["kernel"] + params["out"]["bias"]

    heat = heat_of(again(model), IMAGES)
    np.testing.assert_allclose(heat, by_differences(tail, np.asarray(plain)), atol=1e-3)


@pytest.mark.parametrize("remat", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_convolutional_network_is_explained_by_what_it_pools(remat):
    model = create_model(ModelConfig(name="cnn_tiny", remat=remat), num_classes=3, channels=2, image_size=8, seed=0)
    kernel, bias = np.asarray(model.head.kernel[...]), np.asarray(model.head.bias[...])
    features = np.asarray(model.features(IMAGES))
    heat = heat_of(again(model), IMAGES)
    wanted = by_differences(lambda x: x.mean(axis=(1, 2)) @ kernel + bias, features)
    np.testing.assert_allclose(heat, wanted, atol=1e-3)


@pytest.mark.slow
def test_a_transformer_is_explained_by_the_patches_that_enter_its_last_block():
    model = create_model(ModelConfig(name="vit_test", patch_size=4), num_classes=3, channels=2, image_size=8, seed=0)
    tokens = []
    model.features(IMAGES, taps=tokens)
    last = model.blocks[-1]

    def tail(patches):
        x = last(jnp.concatenate([tokens[-2][:, : model.prefix], patches.reshape(3, 4, -1)], axis=1), False, None)
        return model.head(model.pool(model.norm(x) if model.normalised else x))

    features = np.asarray(tokens[-2][:, model.prefix :]).reshape(3, 2, 2, -1)
    gradient = jax.jit(jax.grad(lambda x: tail(x)[np.arange(3), BEST].sum()))(features)
    wanted = np.maximum((np.asarray(gradient).mean(axis=(1, 2), keepdims=True) * features).sum(axis=-1), 0)
    np.testing.assert_allclose(heat_of(again(model), IMAGES), wanted, atol=1e-5)


def numpy_rollout(model, images):
    """Abnar & Zuidema 2020 in float64, from the weights: forward pass and all."""
    weights = {path: np.asarray(value, np.float64) for path, value in flat(nnx.to_pure_dict(nnx.state(model)))}
    depth, heads = len(model.blocks), model.blocks[0].attn.heads

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
        return scaled * weights[f"{name}/scale"] + weights[f"{name}/bias"]

    def linear(x, name):
        return x @ weights[f"{name}/kernel"] + weights[f"{name}/bias"]

    gelu = np.vectorize(lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2))))
    maps = []
    for image in images.astype(np.float64):
        patches = [image[r : r + 4, c : c + 4].reshape(-1) for r in (0, 4) for c in (0, 4)]
        kernel = weights["patch_embed/kernel"].reshape(len(patches[0]), -1)
        x = np.stack(patches) @ kernel + weights["patch_embed/bias"]
        position = weights["pos_embed"][0]
        x = np.concatenate([weights["cls_token"][0] + position[:1], x + position[1:]])
        rolled = np.eye(5)
        for i in range(depth):
            q, k, v = np.split(linear(norm(x, f"blocks/{i}/norm1"), f"blocks/{i}/attn/qkv"), 3, axis=-1)
            mixed, attention = [], np.zeros((5, 5))
            for columns in np.split(np.arange(x.shape[1]), heads):
                logits = q[:, columns] @ k[:, columns].T / math.sqrt(len(columns))
                shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
                attention += shares / heads
                mixed.append(shares @ v[:, columns])
            rolled = (0.5 * attention + 0.5 * np.eye(5)) @ rolled
            x = x + linear(np.concatenate(mixed, axis=1), f"blocks/{i}/attn/proj")
            hidden = gelu(linear(norm(x, f"blocks/{i}/norm2"), f"blocks/{i}/mlp/fc1"))
            x = x + linear(hidden, f"blocks/{i}/mlp/fc2")
        rows = rolled[:1] if model.pooling == "cls" else rolled[1:]
        maps.append(rows.mean(axis=0)[1:].reshape(2, 2))
    return np.stack(maps)


def flat(tree, above=""):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{above}{name}/")
        else:
            yield f"{above}{name}", value


@pytest.mark.parametrize("pool", mostly_slow(["cls", "avg"], {"cls"}))
def test_attention_is_rolled_out_as_by_hand(pool):
    config = ModelConfig(name="vit_test", patch_size=4, pool=pool)
    model = create_model(config, num_classes=3, channels=2, image_size=8, seed=0)
    for block in model.blocks:  # far from uniform
        block.attn.qkv.kernel[...] = 20 * block.attn.qkv.kernel[...]
    assert rolls_out(model)
    rolled = jax.jit(lambda images: heat_maps(again(model), images, score, "rollout"))(IMAGES)
    wanted = numpy_rollout(model, IMAGES)
    assert wanted.std(axis=(1, 2)).min() > 0.01
    np.testing.assert_allclose(rolled, wanted, atol=1e-5)


def test_only_plain_attention_is_rolled_out():
    options = {"num_classes": 3, "channels": 3, "seed": 0}
    for name in ("cnn_tiny", "mlp_tiny"):
        assert not rolls_out(create_model(ModelConfig(name=name), image_size=8, **options))
    assert not rolls_out(again(Net(3, nnx.Rngs(0)))())
    model = create_model(ModelConfig(name="vit_test", patch_size=4), image_size=8, **options)
    assert rolls_out(model)
    model.blocks[0].attn = Net(3, nnx.Rngs(0))
    assert not rolls_out(model)


def test_without_a_feature_map_the_pixels_gradients_are_taken():
    model = create_model(ModelConfig(name="mlp_tiny"), num_classes=3, channels=2, image_size=8, seed=0)
    assert feature_map(again(model), IMAGES, score) is None
    heat, changed = heat_of(again(model), IMAGES), IMAGES.copy()
    changed[:, 2, 5, 1] += 1e-2
    difference = np.abs(score(model, changed) - score(model, IMAGES)) / 1e-2
    assert (np.asarray(heat)[:, 2, 5] > difference - 1e-3).all()
