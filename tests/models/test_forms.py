"""Each form, on the backend that takes it, against XLA's own operation or the definition; gradients too."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh

from jaxtrain.backend import shared_by
from jaxtrain.models import forms


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def arrays(*shapes, dtype=jnp.float32):
    return [jnp.asarray(normal(*shape, seed=i), dtype) for i, shape in enumerate(shapes)]


@pytest.fixture(params=["cpu", "gpu", "tpu"])
def backend(request, monkeypatch):
    """What networks are told the backend is, while they are traced here."""
    monkeypatch.setattr(forms, "_on", lambda name: name == request.param)
    return request.param


def agree(ours, reference, given, tolerance=2e-5):
    """Values and gradients by every argument."""
    every = tuple(range(len(given)))

    def with_gradients(function):
        weighted = jax.grad(lambda *a: jnp.sum(jnp.sin(function(*a))), argnums=every)
        return jax.jit(lambda *a: (function(*a), *weighted(*a)))(*given)

    for one, other in zip(with_gradients(ours), with_gradients(reference), strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance * np.abs(other).max())


def xla_convolution(stride, pads):
    def convolve(x, kernel):
        return lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    return convolve


@pytest.mark.parametrize(
    ("sides", "size", "stride", "pad"),
    [
        ((1, 1), 3, 1, (1, 1)), ((2, 2), 3, 1, (1, 1)), ((2, 2), 3, 2, (1, 1)), ((3, 3), 3, 2, (1, 1)),
        ((4, 4), 3, 2, (0, 1)), ((4, 2), 3, 1, (1, 1)), ((4, 4), 5, 1, (2, 2)), ((1, 1), 7, 2, (3, 3)),
    ],
)  # fmt: skip
def test_convolution_of_tiny_maps_is_xlas(sides, size, stride, pad, backend):
    given = arrays((2, *sides, 5), (size, size, 5, 6))
    pads = (pad, pad)
    agree(lambda x, k: forms.convolution(x, k, stride, pads, 1), xla_convolution(stride, pads), given)


def test_on_cpu_tiny_maps_are_one_product_without_the_taps_that_see_padding_alone():
    if jax.default_backend() != "cpu":
        pytest.skip("a form for the CPU")

    def text(side):
        given = arrays((2, side, side, 5), (3, 3, 5, 6))
        return str(jax.make_jaxpr(lambda x, k: forms.convolution(x, k, 1, ((1, 1), (1, 1)), 1))(*given))

    assert ["conv_general_dilated" in text(side) for side in (1, 2, 4, 5)] == [False, False, False, True]
    assert "f32[45,6]" in text(2)
    assert "f32[5,6]" in text(1)


def test_linear_is_a_product_and_a_sum(backend):
    for leading in [(), (4,), (2, 3), (2, 3, 2)]:
        given = arrays((*leading, 5), (5, 6), (6,))
        agree(forms.linear, lambda x, kernel, bias: x @ kernel + bias, given)


def test_split_linear_is_linear_split(backend):
    given = arrays((2, 3, 4), (4, 9), (9,))
    agree(
        lambda *a: jnp.stack(forms.split_linear(*a, 3)),
        lambda x, kernel, bias: jnp.stack(jnp.split(x @ kernel + bias, 3, axis=-1)),
        given,
    )


def test_attention_is_jaxs(backend):
    def reference(q, k, v):
        parts = (x.reshape(2, 7, 3, 4) for x in (q, k, v))
        return jax.nn.dot_product_attention(*parts).reshape(2, 7, 12)

    agree(lambda q, k, v: forms.attention(q, k, v, 3), reference, arrays(*[(2, 7, 12)] * 3))


def test_gradients_of_attention_in_bfloat16_are_near_those_in_float32(backend):
    q, k, v, weights = (part.astype(jnp.bfloat16) for part in arrays(*[(2, 50, 24)] * 4))

    def gradients(*parts):
        return jax.grad(lambda *parts: (weights * forms.attention(*parts, 3)).sum(dtype=jnp.float32), (0, 1, 2))(*parts)

    exact = gradients(*(part.astype(jnp.float32) for part in (q, k, v)))
    for found, expected in zip(gradients(q, k, v), exact, strict=True):
        assert found.dtype == jnp.bfloat16
        np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=0.02 * np.abs(expected).max())


def test_gelu_is_the_exact_one(backend):
    x = jnp.linspace(-12, 12, 4001)
    agree(forms.gelu, lambda x: jax.nn.gelu(x, approximate=False), [x])
    narrow = x.astype(jnp.bfloat16)
    exact = np.asarray(jax.nn.gelu(narrow.astype(jnp.float32), approximate=False))
    got = np.asarray(forms.gelu(narrow).astype(jnp.float32))
    assert np.abs(got - exact).max() <= 2**-8 * np.abs(exact).max()
    np.testing.assert_allclose(got, exact, rtol=2**-8, atol=3e-5)
    slope = jax.vmap(jax.grad(lambda x: jax.nn.gelu(x, approximate=False)))(narrow.astype(jnp.float32))
    np.testing.assert_allclose(jax.vmap(jax.grad(forms.gelu))(narrow).astype(jnp.float32), slope, rtol=2**-8, atol=2e-4)


def test_layer_norm_is_the_definition(backend):
    def reference(x, scale, bias):
        return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6) * scale + bias

    x, scale, bias = arrays((4, 32), (32,), (32,))
    agree(lambda *a: forms.layer_norm(*a, 1e-6), reference, [5 * x + 3, scale, bias], tolerance=1e-4)


@pytest.mark.parametrize(
    ("size", "stride", "pads"),
    [
        (5, 2, (1, 2)),
        *(pytest.param(3, *each, marks=pytest.mark.slow) for each in [(1, (1, 1)), (2, (1, 1)), (2, (0, 1))]),
    ],
)
def test_depthwise_by_taps_and_its_gradients_are_those_of_xla(size, stride, pads):
    x, kernel = (jnp.asarray(normal(*shape), jnp.float32) for shape in [(2, 8, 8, 6), (size, size, 1, 6)])

    def reference(x, kernel):
        layout = ("NHWC", "HWIO", "NHWC")
        strides = (stride, stride)
        return lax.conv_general_dilated(
            x, kernel, strides, [pads, pads], dimension_numbers=layout, feature_group_count=6
        )

    def taps(x, kernel):
        return forms.depthwise_by_taps(x, kernel, stride, (pads, pads))

    def gradients(function):
        return jax.jit(jax.grad(lambda *a: jnp.sum(jnp.sin(function(*a))), argnums=(0, 1)))(x, kernel)

    np.testing.assert_allclose(taps(x, kernel), reference(x, kernel), atol=1e-5)
    for ours, theirs in zip(gradients(taps), gradients(reference), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("window", "stride", "padding", "side"),
    [(2, 2, 0, 8), (2, 2, 0, 7), (3, 2, 1, 8), (3, 2, 1, 7), (3, 1, 0, 5)],
)
def test_max_pool_and_its_gradient_are_those_of_reduce_window(window, stride, padding, side, backend):
    x = jnp.asarray(normal(2, side, side, 3), jnp.float32)
    pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))

    def reference(x):
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, window, window, 1), (1, stride, stride, 1), pads)

    np.testing.assert_array_equal(forms.max_pool(x, window, stride, padding), reference(x))
    ours = jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(forms.max_pool(x, window, stride, padding)))))(x)
    theirs = jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(reference(x)))))(x)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_a_gpu_keeps_rows_innermost(monkeypatch):
    monkeypatch.setattr(forms, "_on", lambda name: name == "gpu")
    norm = shared_by(
        Mesh(np.array(jax.devices()[:1]), ("data",)), lambda x: forms.layer_norm(x, x[0, 0], x[0, 0], 1e-6)
    )
    assert "layout_constraint" in str(jax.make_jaxpr(norm)(jnp.zeros((4, 5, 16))))


ON_TWO_DEVICES = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtrain.backend import compiling_for, shared_by
from jaxtrain.models import forms

jax.config.update("jax_num_cpu_devices", 2)
mesh = Mesh(np.array(jax.devices()), ("data",))
rows = jax.device_put(jnp.zeros((4, 5, 16)), NamedSharding(mesh, PartitionSpec("data")))

def norm(x):
    return forms.layer_norm(x, jnp.ones(16), jnp.zeros(16), 1e-6)

with compiling_for("gpu"):
    print(jax.jit(shared_by(mesh, norm)).lower(rows).compile().as_text())
"""


def test_several_gpus_gather_nothing_for_it():
    program = subprocess.run([sys.executable, "-c", ON_TWO_DEVICES], capture_output=True, text=True, check=True).stdout
    assert "num_partitions=2" in program
    assert "all-gather" not in program
