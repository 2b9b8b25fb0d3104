"""The same mathematics in the form that each backend computes fastest: the one place in which networks ask for it.

What differs on CPU: XLA:CPU fuses the transpositions that weight gradients want into elementwise work on one thread,
and its convolutions of tiny maps are a naive loop. TPUs and GPUs are bound by bytes: what is recomputed is cheaper
than kept.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental.layout import Layout, with_layout_constraint
from jax.typing import DTypeLike

from jaxtrain.backend import backend, sharing
from jaxtrain.models.depthwise_tpu import depthwise, fits

Pads = tuple[tuple[int, int], ...]

_TINY = 4
"""Sides of maps up to which a convolution is one matrix product on CPU (XLA's: 2 GFLOP/s at 2x2, so: 170)."""


def _on(name: str) -> bool:
    return backend() == name


def _hold(x: Array) -> Array:
    """On CPU: computed here and laid out as it is, not inside whatever reads it."""
    return lax.optimization_barrier(x) if _on("cpu") else x


# --- Products


def linear(x: Array, kernel: Array, bias: Array | None = None) -> Array:
    """`[..., channels_in]`, `[channels_in, channels_out]` -> `[..., channels_out]`."""
    if _on("cpu"):
        y = _product(x.reshape(-1, x.shape[-1]), kernel).reshape(*x.shape[:-1], kernel.shape[1])
    else:
        y = x @ kernel
    return y if bias is None else y + bias


@jax.custom_vjp
def _product(x: Array, kernel: Array) -> Array:
    """A matrix product whose gradients are products of matrices that lie ready in memory."""
    return x @ kernel


def _product_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ kernel, (x, kernel)


def _product_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    # Two barriers: where the kernel is frozen, x is not kept for the sake of one.
    x, gradient = lax.optimization_barrier(saved[0]), lax.optimization_barrier(gradient)
    return gradient @ saved[1].T, lax.dot_general(x, gradient, (((0,), (0,)), ((), ())))


_product.defvjp(_product_forward, _product_backward)


def split_linear(x: Array, kernel: Array, bias: Array | None, parts: int) -> list[Array]:
    """`linear` and then `jnp.split` of the last axis: on TPU a product for each part, so that nothing is cut apart."""
    if not _on("tpu"):
        return jnp.split(linear(x, kernel, bias), parts, axis=-1)
    biases = [None] * parts if bias is None else jnp.split(bias, parts)
    return [linear(x, *part) for part in zip(jnp.split(kernel, parts, -1), biases, strict=True)]


def attention(q: Array, k: Array, v: Array, heads: int, bias: Array | None = None) -> Array:
    """Multi-head attention of `[batch, tokens, width]` -> the same shape; logits and softmax in float32.

    Except that GPUs keep the logits of bfloat16 in bfloat16, as PyTorch's autocast does.

    bias: added to the logits, `float32[groups, heads, tokens, tokens]` for the rows of the batch in turn.
    """
    batch, _, width = q.shape
    depth = width // heads
    q, k, v = (_hold(x.reshape(batch, -1, heads, depth).transpose(0, 2, 1, 3)) for x in (q * depth**-0.5, k, v))
    if not _on("cpu") and bias is None:
        y = _attend(q, k, v)
    else:
        logits = _products(q, k)
        if bias is not None:
            logits = (logits.reshape(-1, *bias.shape) + bias).reshape(logits.shape)
        shares = _hold(jax.nn.softmax(logits, axis=-1).astype(v.dtype))
        y = _hold(jnp.einsum("bhqk,bhkd->bhqd", shares, v))
    return y.transpose(0, 2, 1, 3).reshape(batch, -1, width)


def _products(q: Array, k: Array) -> Array:
    """`[batch, heads, tokens, depth]` twice -> `float32[batch, heads, tokens, tokens]`."""
    result = None if _on("gpu") else jnp.float32  # bytes that a GPU need not write
    return jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=result).astype(jnp.float32)


@jax.custom_vjp
def _attend(q: Array, k: Array, v: Array) -> Array:
    """Attention of `[batch, heads, tokens, depth]`, whose gradient computes the shares again.

    As in FlashAttention (Dao et al. 2022, arXiv 2205.14135), what each row of shares loses follows from the output, and
    the gradient of the logits is written once, in the type of q.
    """
    return jnp.einsum("bhqk,bhkd->bhqd", jax.nn.softmax(_products(q, k), axis=-1).astype(v.dtype), v)


def _attend_forward(q: Array, k: Array, v: Array) -> tuple[Array, tuple[Array, ...]]:
    y = _attend(q, k, v)
    return y, (q, k, v, y)


def _attend_backward(saved: tuple[Array, ...], gradient: Array) -> tuple[Array, Array, Array]:
    q, k, v, y = saved
    shares = jax.nn.softmax(_products(q, k), axis=-1)
    lost = (gradient.astype(jnp.float32) * y.astype(jnp.float32)).sum(-1, keepdims=True)
    logits = (shares * (_products(gradient, v) - lost)).astype(q.dtype)
    return (
        jnp.einsum("bhqk,bhkd->bhqd", logits, k),
        jnp.einsum("bhqk,bhqd->bhkd", logits, q),
        jnp.einsum("bhqk,bhqd->bhkd", shares.astype(v.dtype), gradient),
    )


_attend.defvjp(_attend_forward, _attend_backward)


# --- Elementwise


@jax.custom_vjp
def gelu(x: Array) -> Array:
    """Exact GELU (Hendrycks and Gimpel 2016, arXiv 1606.08415); only its input is kept for the gradient."""
    wide = x.astype(jnp.float32)
    return (wide * _normal_cdf(wide, x.dtype)).astype(x.dtype)


def _gelu_backward(x: Array, gradient: Array) -> tuple[Array]:
    wide = x.astype(jnp.float32)
    density = jnp.exp(-0.5 * wide * wide) * (2 * math.pi) ** -0.5
    slope = _normal_cdf(wide, x.dtype) + wide * density
    return ((slope * gradient).astype(gradient.dtype),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


def _normal_cdf(x: Array, dtype: DTypeLike) -> Array:
    """Of float32 that came from `dtype`."""
    if _on("tpu") and dtype == jnp.bfloat16:
        # Fitted to the error function: off by 5e-5 at most, a tenth of what bfloat16 resolves, in half its cycles.
        square = jnp.minimum(x * x, 25.0)
        return 0.5 + 0.5 * jnp.tanh(x * (0.79750788 + square * (0.03700565 - 0.00035151756 * square)))
    return 0.5 * (1 + lax.erf(x * 2**-0.5))


def layer_norm(x: Array, scale: Array, bias: Array, epsilon: float) -> Array:
    """Over the last axis, in float32. Result: float32.

    On CPU the variance is that of the differences; elsewhere from the mean of squares, in one pass over x.
    """
    x = _rows_innermost(x).astype(jnp.float32)
    mean = x.mean(-1, keepdims=True)
    if _on("cpu"):
        variance = jnp.square(x - mean).mean(-1, keepdims=True)
    else:
        variance = jnp.maximum(jnp.square(x).mean(-1, keepdims=True) - jnp.square(mean), 0.0)
    return (x - mean) * lax.rsqrt(variance + epsilon) * scale + bias


def _rows_innermost(x: Array) -> Array:
    """On GPU, x with its last axis innermost: XLA puts a ViT's batch there, and copies its tokens back and forth."""
    if not _on("gpu") or not isinstance(x.size, int):  # an exported program may not say so
        return x
    mesh = sharing()
    alone = mesh is not None and mesh.size == 1
    # JAX 0.10 gathers the whole batch on each device for it.
    return with_layout_constraint(x, Layout(tuple(range(x.ndim)))) if alone or jax.__version_info__ >= (0, 12) else x


Activation = Callable[[Array], Array] | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def batch_norm(
    x: Array, scale: Array, bias: Array, centre: Array, epsilon: float, act: Activation, axis_name: str | None
) -> tuple[Array, Array, Array]:
    """`act` of the norm of `[..., channels]` over all axes but the last; its mean; its biased variance.

    The norm is float32 inside and of x's type outside. Mean and variance, `float32[channels]`, have no gradient.
    centre: near the mean. One pass over x gives both: taken from x - centre, E[x^2] - E[x]^2 does not cancel where the
    mean is large beside the deviation. axis_name: of the devices over which the statistics are.

    For the gradient x alone is kept, and the norm computed again: what automatic differentiation writes between the
    activation's gradient and the norm's is 7% of the bytes that a ResNet-50's step touches on a GPU.
    """
    return _batch_norm_forward(x, scale, bias, centre, epsilon, act, axis_name)[0]


def _batch_norm_forward(
    x: Array, scale: Array, bias: Array, centre: Array, epsilon: float, act: Activation, axis_name: str | None
) -> tuple[tuple[Array, Array, Array], tuple[Array, ...]]:
    off = x.astype(jnp.float32) - centre
    count = x.size // x.shape[-1]
    first, second = _sums(off, jnp.square(off))
    first, second = over(axis_name, first / count, second / count)
    mean, var = first + centre, jnp.maximum(second - jnp.square(first), 0.0)
    inverse = lax.rsqrt(var + epsilon)
    y = normed(x, scale, bias, mean, inverse).astype(x.dtype)
    return (y if act is None else act(y), mean, var), (x, scale, bias, mean, inverse)


def _batch_norm_backward(
    epsilon: float, act: Activation, axis_name: str | None, saved: tuple[Array, ...], gradients: tuple[Array, ...]
) -> tuple[Array, Array, Array, None]:
    x, scale, bias, mean, inverse = saved
    gradient = gradients[0]
    if act is not None:
        if _on("gpu"):  # or the activation's gradient is written for those who share it
            x, gradient = lax.optimization_barrier((x, gradient))
        (gradient,) = jax.vjp(act, normed(x, scale, bias, mean, inverse).astype(x.dtype))[1](gradient)
    gradient, off = gradient.astype(jnp.float32), x.astype(jnp.float32) - mean
    for_bias, for_scale = _sums(gradient, gradient * off)
    count = x.size // x.shape[-1]
    first, second = over(axis_name, for_bias / count, for_scale / count)
    for_x = (gradient - first - off * (jnp.square(inverse) * second)) * (scale * inverse)
    return for_x.astype(x.dtype), for_scale * inverse, for_bias, None


batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


def normed(x: Array, scale: Array, bias: Array, mean: Array, inverse: Array) -> Array:
    """`[..., channels]` and `float32[channels]` (inverse: of the deviation) -> `float32[..., channels]`."""
    return (x.astype(jnp.float32) - mean) * (scale * inverse) + bias


def _sums(first: Array, second: Array) -> tuple[Array, Array]:
    axes = tuple(range(first.ndim - 1))
    if _on("gpu"):  # both in the same kernels
        zero = jnp.zeros((), jnp.float32)
        return lax.reduce((first, second), (zero, zero), lambda a, b: (a[0] + b[0], a[1] + b[1]), axes)
    return first.sum(axes), second.sum(axes)


def over(axis_name: str | None, *values: Array) -> tuple[Array, ...]:
    """Their means over the devices of that axis, if there is one."""
    return values if axis_name is None else lax.pmean(values, axis_name)


_PLACES = 8
"""Of a chip's maps for each of their channels, from which `norm_in_product`."""

_FEW = 128
"""Channels up to which `norm_in_product` on GPU."""


def norm_in_product(x: Array, channels: int, stride: int) -> bool:
    """Whether a batch norm after a strided 1x1 convolution to `channels` takes its statistics from the covariance of x.

    On TPU where it widens: a ResNet-50's step takes 0.88 of the cycles. On GPU where it also comes from few channels:
    0.94 of the bytes, while each takes a dozen small kernels more. Only in bfloat16, of which products are exact.
    x: `[batch, height, width, channels_in]`.
    """
    few = _on("gpu") and x.shape[3] <= _FEW
    if not (_on("tpu") or few) or x.dtype != jnp.bfloat16 or channels <= x.shape[3]:
        return False
    mesh = sharing()
    chips = 1 if mesh is None else mesh.size
    return isinstance(x.size, int) and x.size >= _PLACES * x.shape[3] ** 2 * stride**2 * chips


# --- Convolutions and pooling


def convolution(x: Array, kernel: Array, stride: int, pads: Pads, groups: int) -> Array:
    """`[batch, height, width, channels_in]`, `[size, size, channels_in / groups, channels_out]`; padded with zeros."""
    size = kernel.shape[0]
    if groups == 1 and pads == ((0, 0), (0, 0)) and size in (1, stride):
        return _patch_product(x, kernel, stride)
    if _on("cpu") and groups == 1 and max(x.shape[1:3]) <= _TINY:
        return _tiny_convolution(x, kernel, stride, pads)
    many = isinstance(x.size, int) and x.size >= _MANY  # an exported program is for any batch: that has no size yet
    if _on("cpu") and groups == x.shape[3] == kernel.shape[3] and many:
        return depthwise_by_taps(x, kernel, stride, pads)
    if _on("tpu") and groups == x.shape[3] == kernel.shape[3] and stride == 1 and pads == ((size // 2, size // 2),) * 2:
        mesh = sharing()
        if mesh is not None and fits(x, kernel, mesh):
            return depthwise(x, kernel, mesh)
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), pads, dimension_numbers=layout, feature_group_count=groups
    )


def _patch_product(x: Array, kernel: Array, stride: int) -> Array:
    """Patches that do not overlap: patch embeddings and 1x1 convolutions, as one matrix product."""
    size, _, channels_in, channels_out = kernel.shape
    if size == 1:
        return linear(x[:, ::stride, ::stride], kernel[0, 0])
    batch, height, width, _ = x.shape
    rows, columns = height // size, width // size
    x = x[:, : rows * size, : columns * size].reshape(batch, rows, size, columns, size, channels_in)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows, columns, size * size * channels_in)
    return linear(x, kernel.reshape(size * size * channels_in, channels_out))


def _tiny_convolution(x: Array, kernel: Array, stride: int, pads: Pads) -> Array:
    """All patches as one matrix, without the taps that see padding alone (of 3x3 on 1x1 all but the middle one)."""
    size = kernel.shape[0]
    live = [_live_taps(side, size, stride, pad) for side, pad in zip(x.shape[1:3], pads, strict=True)]
    views = list(shifted(x, size, stride, pads))
    patches = jnp.concatenate([views[i * size + j] for i in live[0] for j in live[1]], axis=-1)
    kernel = kernel[live[0][0] : live[0][-1] + 1, live[1][0] : live[1][-1] + 1]
    return linear(patches, kernel.reshape(-1, kernel.shape[3]))


def _live_taps(side: int, size: int, stride: int, pad: tuple[int, int]) -> list[int]:
    places = range(0, side + sum(pad) - size + 1, stride)
    return [tap for tap in range(size) if any(pad[0] <= place + tap < pad[0] + side for place in places)]


_MANY = 2**15
"""Elements from which `depthwise_by_taps` is worth its longer compilation on CPU: two to five times as fast there."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise_by_taps(x: Array, kernel: Array, stride: int, pads: Pads) -> Array:
    """Depthwise convolution as a sum of shifted products, accumulated in float32.

    `[batch, height, width, channels]` with a kernel `[size, size, 1, channels]`. Gradients are written out: the
    image's is such a sum again, the kernel's one pass over all taps instead of one each, which halves the time of
    a backward pass and the time of compiling it.
    """
    size = kernel.shape[0]
    weights = kernel[:, :, 0].astype(jnp.float32)
    views = shifted(x, size, stride, pads)
    taps = [tap.astype(jnp.float32) * weights[i // size, i % size] for i, tap in enumerate(views)]
    return functools.reduce(jnp.add, taps).astype(x.dtype)


def _depthwise_forward(x: Array, kernel: Array, stride: int, pads: Pads) -> tuple[Array, tuple[Array, Array]]:
    return depthwise_by_taps(x, kernel, stride, pads), (x, kernel)


def _depthwise_backward(stride: int, pads: Pads, saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = saved
    size, sides = kernel.shape[0], [a + b for a, b in pads]
    # The image's gradient: zeros between the strides, then the mirrored kernel.
    ends = [
        side + total - (size - 1) - ((places - 1) * stride + 1)
        for side, total, places in zip(x.shape[1:3], sides, gradient.shape[1:3], strict=True)
    ]
    spread = lax.pad(
        gradient,
        jnp.zeros((), gradient.dtype),
        ((0, 0, 0), *((0, end, stride - 1) for end in ends), (0, 0, 0)),
    )
    back = tuple((size - 1 - before, size - 1 - after) for before, after in pads)
    for_image = depthwise_by_taps(spread, kernel[::-1, ::-1], 1, back)
    products = [tap.astype(jnp.float32) * gradient.astype(jnp.float32) for tap in shifted(x, size, stride, pads)]
    zeros = [jnp.zeros((), jnp.float32)] * len(products)
    # Image by image, then over the batch: XLA:CPU takes two to five times as long for all three axes at once.
    sums = lax.reduce(products, zeros, lambda a, b: [i + j for i, j in zip(a, b, strict=True)], (1, 2))
    return for_image, jnp.stack(sums).sum(1).reshape(kernel.shape).astype(kernel.dtype)


depthwise_by_taps.defvjp(_depthwise_forward, _depthwise_backward)


def shifted(x: Array, size: int, stride: int, pads: Pads) -> Iterable[Array]:
    """The size * size strided views of padded `[batch, height, width, channels]`, row by row."""
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    last = [(side - size) // stride * stride + 1 for side in x.shape[1:3]]
    for i in range(size):
        for j in range(size):
            yield x[:, i : i + last[0] : stride, j : j + last[1] : stride]


def max_pool(x: Array, window: int, stride: int, padding: int = 0) -> Array:
    """Maximum over windows, PyTorch's MaxPool2d: `[batch, height, width, channels]` -> smaller sides.

    Windows side by side are a reshape and a maximum. Overlapping ones are `lax.reduce_window` on TPU; its gradient
    makes a small CNN 3.7 times slower on CPU, where they are maxima of strided views, first over rows, then columns.
    Where several places tie, the gradient is shared among them (on TPU the first place of overlapping windows has it).
    """
    if not _on("tpu") or window == stride:
        # Computed once: the gradient goes to the places that equal the maximum, to the bit.
        x = lax.optimization_barrier(x)
    if window == stride and padding == 0:
        batch, height, width, channels = x.shape
        rows, columns = height // window, width // window
        x = x[:, : rows * window, : columns * window]
        return x.reshape(batch, rows, window, columns, window, channels).max(axis=(2, 4))
    pad = [(0, 0), (padding, padding), (padding, padding), (0, 0)]
    if _on("tpu"):
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, window, window, 1), (1, stride, stride, 1), pad)
    x = jnp.pad(x, pad, constant_values=-jnp.inf)
    for axis in (1, 2):
        last = (x.shape[axis] - window) // stride * stride + 1
        views = [lax.slice_in_dim(x, i, i + last, stride, axis) for i in range(window)]
        x = views[0]
        for view in views[1:]:
            x = jnp.maximum(x, view)
    return x
