"""Each layer against float64 NumPy, or against another implementation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxtrain.backend import compiling_for
from jaxtrain.models import layers
from jaxtrain.models.build import Build
from jaxtrain.models.layers import BatchNorm, Conv, fan_out_normal, uniform


def build(dtype=jnp.float32, axis_name=None):
    rngs = nnx.Rngs(params=jax.random.key(0))
    return Build(num_classes=3, channels=3, image_size=8, dtype=dtype, axis_name=axis_name, rngs=rngs)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def convolve(x, kernel, stride, before, after):
    """`float64[batch, height, width, channels]`, by definition; groups follow from the shapes."""
    x = np.pad(x, ((0, 0), (before, after), (before, after), (0, 0)))
    size, _, per_group, channels_out = kernel.shape
    groups = x.shape[3] // per_group
    rows, columns = ((side - size) // stride + 1 for side in x.shape[1:3])
    y = np.zeros((x.shape[0], rows, columns, channels_out))
    for out in range(channels_out):
        first = out // (channels_out // groups) * per_group
        for r in range(rows):
            for c in range(columns):
                patch = x[:, r * stride : r * stride + size, c * stride : c * stride + size]
                y[:, r, c, out] = (patch[..., first : first + per_group] * kernel[..., out]).sum((1, 2, 3))
    return y


@pytest.mark.parametrize(
    ("size", "stride", "groups", "padding", "side", "before", "after"),
    [
        (3, 1, 1, "torch", 7, 1, 1),
        (3, 2, 1, "torch", 8, 1, 1),
        (3, 2, 1, "same", 8, 0, 1),
        (3, 2, 1, "same", 7, 1, 1),
        (7, 2, 1, "torch", 9, 3, 3),
        (5, 2, 1, "same", 8, 1, 2),
        (1, 1, 1, "torch", 5, 0, 0),
        (1, 2, 1, "torch", 5, 0, 0),
        (2, 2, 1, "torch", 7, 0, 0),
        (3, 1, 4, "torch", 6, 1, 1),
        (3, 2, 4, "same", 6, 0, 1),
        (5, 2, 4, "torch", 7, 2, 2),
        (3, 1, 2, "torch", 6, 1, 1),
    ],
)
def test_convolution_is_the_definition(size, stride, groups, padding, side, before, after):
    conv = Conv(
        4, 8 if groups < 4 else 4, size, build(), kernel_init=fan_out_normal(groups), bias_init=uniform(1.0),
        stride=stride, groups=groups, padding=padding,
    )  # fmt: skip
    x = normal(2, side, side, 4)
    kernel, bias = (np.asarray(v[...], np.float64) for v in (conv.kernel, conv.bias))
    expected = convolve(x, kernel, stride, before, after) + bias
    np.testing.assert_allclose(jax.jit(conv)(jnp.asarray(x, jnp.float32)), expected, atol=1e-5)


def test_depthwise_convolution_goes_by_taps_on_cpu_where_there_is_much_to_do():
    conv = Conv(32, 32, 3, build(), kernel_init=fan_out_normal(32), groups=32)
    texts = [str(jax.make_jaxpr(conv)(jnp.zeros((batch, 16, 16, 32)))) for batch in (1, 4)]
    assert ["conv_general_dilated" in text for text in texts] == [True, jax.default_backend() != "cpu"]


def test_bfloat16_convolution_keeps_float32_parameters():
    conv = Conv(3, 4, 3, build(jnp.bfloat16), kernel_init=fan_out_normal())
    assert conv.kernel[...].dtype == jnp.float32
    assert conv(jnp.ones((1, 4, 4, 3))).dtype == jnp.bfloat16


def test_batch_norm_trains_on_the_batch_and_evaluates_on_running_statistics():
    x = normal(4, 3, 3, 5) * 3 + 2
    norm = BatchNorm(5, build(), epsilon=1e-3)
    norm.scale[...] = jnp.arange(1.0, 6.0)
    norm.bias[...] = jnp.arange(5.0)
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))

    y = norm(jnp.asarray(x, jnp.float32), train=True)
    expected = (x - mean) / np.sqrt(var + 1e-3) * np.arange(1, 6) + np.arange(5)
    np.testing.assert_allclose(y, expected, atol=1e-4)
    running_mean, running_var = 0.1 * mean, 0.9 + 0.1 * var * 36 / 35
    np.testing.assert_allclose(norm.mean[...], running_mean, rtol=1e-5)
    np.testing.assert_allclose(norm.var[...], running_var, rtol=1e-5)

    y = norm(jnp.asarray(x, jnp.float32), train=False)
    expected = (x - running_mean) / np.sqrt(running_var + 1e-3) * np.arange(1, 6) + np.arange(5)
    np.testing.assert_allclose(y, expected, atol=1e-4)
    np.testing.assert_allclose(norm.mean[...], running_mean, rtol=1e-5)


def test_batch_norm_survives_a_mean_far_above_the_deviation():
    x = jnp.asarray(normal(64, 4) + 1000.0, jnp.float32)
    norm = BatchNorm(4, build(), decay=0.0)  # the running mean is that of the last batch
    norm(x, train=True)
    y = np.asarray(norm(x, train=True), np.float64)
    np.testing.assert_allclose(y.std(0), 1.0, atol=1e-3)


def moved(norm, function, *given):
    """What it gives, its gradients, and the norm's running statistics afterwards."""
    graphdef, params, stats = nnx.split(norm, nnx.Param, nnx.BatchStat)

    def run(params, *given):
        norm = nnx.merge(graphdef, params, jax.tree.map(jnp.copy, stats))
        y = function(norm, *given)
        return jnp.sum(jnp.sin(y.astype(jnp.float32))), (y, nnx.pure(nnx.state(norm, nnx.BatchStat)))

    gradients, (y, stats) = jax.grad(run, argnums=(0, *range(1, 1 + len(given))), has_aux=True)(params, *given)
    return y, nnx.pure(gradients[0]), gradients[1:], stats


def plain_norm(norm, x, act, axes=(0, 1, 2)):
    """As a textbook writes it, for automatic differentiation."""
    mean, var = x.mean(axes), x.var(axes)
    return act((x - mean) / jnp.sqrt(var + norm.epsilon) * norm.scale[...] + norm.bias[...])


@pytest.mark.parametrize("backend", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize("act", [None, *(layers.ACTIVATIONS[name] for name in ("relu", "relu6", "silu"))])
def test_gradients_of_a_norm_and_its_activation(act, backend):
    x = jnp.asarray(normal(4, 5, 6, 3) * 2 + 0.7, jnp.float32)
    norm = BatchNorm(3, build())
    norm.scale[...], norm.bias[...] = jnp.array([0.5, 2.0, 4.0]), jnp.array([0.3, -1.0, 2.0])
    with compiling_for(backend):
        y, of_norm, of_x, _ = moved(norm, lambda norm, x: norm(x, True, act), x)
    expected = moved(norm, lambda norm, x: plain_norm(norm, x, act or (lambda y: y)), x)
    for found, right in zip((y, of_norm, of_x), expected[:3], strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, right)


def test_gradients_of_a_norm_are_over_all_devices():
    x = jnp.asarray(normal(4, 3, 5, 6) + np.arange(4).reshape(4, 1, 1, 1), jnp.float32)

    def loss(axis_name):
        def run(x):
            norm = BatchNorm(6, build(axis_name=axis_name))
            return jnp.sin(norm(x, True, jax.nn.relu)).sum(), norm.var[...]

        return run

    gradient, var = jax.vmap(jax.grad(loss("data"), has_aux=True), axis_name="data")(x)
    whole, stats = jax.grad(loss(None), has_aux=True)(x)
    np.testing.assert_allclose(gradient, whole, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(var, [stats] * 4, rtol=1e-5)


def test_the_norm_of_a_product_is_that_of_the_product_itself():
    x, kernel = (
        jnp.asarray(normal(*shape, seed=i) + 0.7, jnp.float32) for i, shape in enumerate([(4, 3, 5, 6), (6, 9)])
    )
    norm = BatchNorm(9, build())
    norm.scale[...], norm.bias[...] = jnp.linspace(0.5, 2.0, 9), jnp.linspace(-1.0, 1.0, 9)
    found = moved(norm, lambda norm, x, kernel: norm.of_product(x, kernel), x, kernel)
    expected = moved(norm, lambda norm, x, kernel: norm(x @ kernel, True), x, kernel)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), found, expected)


def test_the_norm_of_a_product_is_over_all_devices():
    x, kernel = (jnp.asarray(normal(*shape, seed=i), jnp.float32) for i, shape in enumerate([(4, 3, 6), (6, 9)]))

    def one(axis_name):
        def run(x):
            norm = BatchNorm(9, build(axis_name=axis_name))
            y = norm.of_product(x, kernel)
            return y, norm.var[...]

        return run

    y, var = jax.vmap(one("data"), axis_name="data")(x)
    whole, stats = one(None)(x)
    np.testing.assert_allclose(y, whole, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(var, [stats] * 4, rtol=1e-5)


@pytest.mark.parametrize("backend", ["gpu", "tpu"])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_and_its_norm_on_accelerators(stride, backend, monkeypatch):
    conv = Conv(8, 32, 1, build(jnp.bfloat16), kernel_init=fan_out_normal(), stride=stride)
    norm = BatchNorm(32, build(jnp.bfloat16))
    x = jnp.asarray(normal(16, 5, 6, 8) + 0.5, jnp.bfloat16)  # 96 places after a stride of 2
    expected = moved(norm, lambda norm, x: norm(conv(x), True), x)
    monkeypatch.setattr(layers.forms, "_on", lambda name: name == backend)
    products = []
    monkeypatch.setattr(BatchNorm, "of_product", lambda *a, old=BatchNorm.of_product: products.append(1) or old(*a))
    found = moved(norm, lambda norm, x: layers.conv_norm(conv, norm, x, True), x)
    assert products
    # Not the gradients of scale and bias: XLA:CPU may add them up in bfloat16, to a quarter off.
    some = [(y, of_x, stats) for y, _, of_x, stats in (found, expected)]
    wide = [jax.tree.map(lambda a: np.asarray(a, np.float32), tree) for tree in some]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=0.03 * np.abs(b).max()), *wide)
    assert not layers.forms.norm_in_product(x[:1], 32, stride)
    norm.frozen, still = True, len(products)
    np.testing.assert_array_equal(layers.conv_norm(conv, norm, x, True), norm(conv(x), True))
    np.testing.assert_array_equal(layers.conv_norm(conv, norm, x, False), norm(conv(x), False))
    assert len(products) == still


def test_bfloat16_batch_norm_keeps_float32_statistics():
    norm = BatchNorm(2, build(jnp.bfloat16))
    x = jnp.asarray(normal(512, 2) + 3, jnp.bfloat16)
    assert norm(x, train=True).dtype == jnp.bfloat16
    np.testing.assert_allclose(norm.mean[...], 0.1 * np.asarray(x, np.float64).mean(0), rtol=1e-4)


def test_layer_norm_is_the_definition():
    x = normal(3, 7) * 5 + 1
    y = layers.LayerNorm(7, build())(jnp.asarray(x, jnp.float32))
    expected = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_drop_path_drops_whole_images_and_keeps_the_mean():
    x = jnp.ones((4000, 2, 3))
    y = np.asarray(layers.drop_path(x, 0.25, jax.random.key(0), None))
    assert set(np.unique(y)) == {np.float32(0.0), np.float32(1 / 0.75)}
    assert (y == y[:, :1, :1]).all()
    assert abs((y[:, 0, 0] == 0).mean() - 0.25) < 0.03


def test_dropout_drops_each_element():
    y = np.asarray(layers.dropout(jnp.ones((100, 100)), 0.5, jax.random.key(0), None))
    dropped = (y == 0).mean(axis=1)
    assert abs(dropped.mean() - 0.5) < 0.02
    assert dropped.std() > 0.02


def test_nothing_drops_without_a_key_or_a_rate():
    x = jnp.ones((8, 4))
    assert layers.dropout(x, 0.5, None, None) is x
    assert layers.dropout(x, 0.0, jax.random.key(0), None) is x


def test_drop_path_rates_grow_linearly():
    np.testing.assert_allclose(layers.drop_path_rates(0.3, 4), [0.0, 0.1, 0.2, 0.3])
    assert layers.drop_path_rates(0.3, 1) == [0.0]


def test_initialisers_have_their_deviation():
    key = jax.random.key(0)
    kernel = np.asarray(fan_out_normal()(key, (3, 3, 64, 128), jnp.float32))
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (9 * 128)), rtol=0.02)
    depthwise = np.asarray(fan_out_normal(512)(key, (5, 5, 1, 512), jnp.float32))
    np.testing.assert_allclose(depthwise.std(), np.sqrt(2 / 25), rtol=0.02)
    values = np.asarray(uniform(0.25)(key, (1000,), jnp.float32))
    assert -0.25 <= values.min() < -0.24
    assert 0.24 < values.max() <= 0.25
