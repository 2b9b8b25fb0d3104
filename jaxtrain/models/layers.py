"""Layers that the model families share.

Everything here is a pure function of its arguments: no hidden random generators, no mode flags. `train` and
`key` are passed down in each call. Batch norm writes its running statistics into its own `nnx.BatchStat`
variables.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jax.typing import DTypeLike

from jaxtrain.models.build import Build

Padding = Literal["torch", "same"]
Key = Array | None
Taps = list[Array] | None
"""Collects the outputs of the blocks, where given."""


class Module(nnx.Module):  # type: ignore[misc]
    """`nnx.Module`, in one place for the type checker (flax exports no types)."""


# --- Convolution


class Conv(Module):
    """2-D convolution, kernel `[kernel, kernel, channels_in / groups, channels_out]`; bias with `bias_init`.

    padding: "torch" pads (kernel - 1) // 2 on each side as PyTorch models do, also where the stride is 2;
    "same" pads as TensorFlow does, more at the end than at the beginning; kernels as large as their stride
    (patches) are never padded and cut what is left over at the end, as PyTorch does.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int,
        build: Build,
        *,
        kernel_init: nnx.Initializer,
        bias_init: nnx.Initializer | None = None,
        stride: int = 1,
        groups: int = 1,
        padding: Padding = "torch",
    ) -> None:
        self.stride, self.groups, self.padding, self.dtype = stride, groups, padding, build.dtype
        shape = (kernel, kernel, channels_in // groups, channels_out)
        self.kernel = nnx.Param(kernel_init(build.rngs.params(), shape, jnp.float32))
        bias = None if bias_init is None else bias_init(build.rngs.params(), (channels_out,), jnp.float32)
        self.bias = None if bias is None else nnx.Param(bias)

    def __call__(self, x: Array) -> Array:
        """`[batch, height, width, channels_in]` -> `dtype[batch, height', width', channels_out]`."""
        kernel, x = self.kernel[...].astype(self.dtype), x.astype(self.dtype)
        size, groups = kernel.shape[0], self.groups
        if groups == 1 and (size == self.stride or size == 1):
            y = patch_matmul(x, kernel, self.stride)
        else:
            pads = [self._pads(side) for side in x.shape[1:3]]
            if groups == x.shape[3] == kernel.shape[3] and _slow_depthwise(x):
                y = depthwise_by_taps(x, kernel, self.stride, tuple(pads))
            else:
                y = lax.conv_general_dilated(
                    x,
                    kernel,
                    (self.stride, self.stride),
                    pads,
                    dimension_numbers=("NHWC", "HWIO", "NHWC"),
                    feature_group_count=groups,
                )
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)

    def _pads(self, side: int) -> tuple[int, int]:
        size = self.kernel.shape[0]
        if self.padding == "torch":
            return (size - 1) // 2, (size - 1) // 2
        total = max((math.ceil(side / self.stride) - 1) * self.stride + size - side, 0)
        return total // 2, total - total // 2


def patch_matmul(x: Array, kernel: Array, stride: int) -> Array:
    """Convolution whose patches do not overlap, as one matrix product: patch embeddings and 1x1 convolutions.

    On CPU twice as fast as XLA's convolution. `[batch, height, width, channels_in]` ->
    `[batch, height', width', channels_out]`.
    """
    size, _, channels_in, channels_out = kernel.shape
    if size == 1:
        x = x[:, ::stride, ::stride]
        # As one matrix: with four axes XLA:CPU takes up to seven times as long for the kernel's gradient.
        return (x.reshape(-1, channels_in) @ kernel[0, 0]).reshape(*x.shape[:-1], channels_out)
    batch, height, width, _ = x.shape
    rows, columns = height // size, width // size
    x = x[:, : rows * size, : columns * size].reshape(batch, rows, size, columns, size, channels_in)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows, columns, size * size * channels_in)
    return x @ kernel.reshape(size * size * channels_in, channels_out)


def _slow_depthwise(x: Array) -> bool:
    """Whether XLA's own depthwise convolution is the slower way.

    On CPU, with its gradients, it takes two to five times as long as `depthwise_by_taps`; but it compiles
    sooner, which counts for more where there is little to compute. An exported program is for any batch: that has no
    size yet.
    """
    return jax.default_backend() == "cpu" and isinstance(x.size, int) and x.size >= 2**15


Pads = tuple[tuple[int, int], ...]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise_by_taps(x: Array, kernel: Array, stride: int, pads: Pads) -> Array:
    """Depthwise convolution as a sum of shifted products, accumulated in float32.

    `[batch, height, width, channels]` with a kernel `[size, size, 1, channels]`. Gradients are written out: the
    image's is such a sum again, the kernel's one pass over all taps instead of one each, which halves the time of
    a backward pass and the time of compiling it.
    """
    size = kernel.shape[0]
    weights = kernel[:, :, 0].astype(jnp.float32)
    shifted = _shifted(x, size, stride, pads, 0.0)
    taps = [tap.astype(jnp.float32) * weights[i // size, i % size] for i, tap in enumerate(shifted)]
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
    products = [tap.astype(jnp.float32) * gradient.astype(jnp.float32) for tap in _shifted(x, size, stride, pads, 0.0)]
    zeros = [jnp.zeros((), jnp.float32)] * len(products)
    # Image by image, then over the batch: XLA:CPU takes two to five times as long for all three axes at once.
    sums = lax.reduce(products, zeros, lambda a, b: [i + j for i, j in zip(a, b, strict=True)], (1, 2))
    return for_image, jnp.stack(sums).sum(1).reshape(kernel.shape).astype(kernel.dtype)


depthwise_by_taps.defvjp(_depthwise_forward, _depthwise_backward)


def _shifted(x: Array, size: int, stride: int, pads: Sequence[tuple[int, int]], fill: float) -> Iterable[Array]:
    """The size * size strided views of padded `[batch, height, width, channels]`, row by row."""
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=fill)
    last = [(side - size) // stride * stride + 1 for side in x.shape[1:3]]
    for i in range(size):
        for j in range(size):
            yield x[:, i : i + last[0] : stride, j : j + last[1] : stride]


def max_pool(x: Array, window: int, stride: int, padding: int = 0) -> Array:
    """Maximum over windows, PyTorch's MaxPool2d: `[batch, height, width, channels]` -> smaller sides.

    Never `lax.reduce_window`: its gradient makes a small CNN 3.7 times slower on CPU. Windows side by side
    are a reshape and a maximum; overlapping ones are maxima of strided views, first over rows, then over
    columns, which XLA fuses on every backend. Where several places tie, the gradient is shared among them.
    """
    if window == stride and padding == 0:
        batch, height, width, channels = x.shape
        rows, columns = height // window, width // window
        x = x[:, : rows * window, : columns * window]
        return x.reshape(batch, rows, window, columns, window, channels).max(axis=(2, 4))
    pad = [(0, 0), (padding, padding), (padding, padding), (0, 0)]
    x = jnp.pad(x, pad, constant_values=-jnp.inf)
    for axis in (1, 2):
        last = (x.shape[axis] - window) // stride * stride + 1
        views = [lax.slice_in_dim(x, i, i + last, stride, axis) for i in range(window)]
        x = views[0]
        for view in views[1:]:
            x = jnp.maximum(x, view)
    return x


# --- Normalisation


class BatchNorm(Module):
    """Batch normalisation over all axes but the last (Ioffe and Szegedy 2015, arXiv 1502.03167).

    Statistics are float32 and over the global batch: `jit` over a mesh sees it by itself, under `pmap` they
    are averaged over `axis_name`. As in PyTorch, the batch is normalised with its biased variance while the
    running variance takes the unbiased one, and running = decay * running + (1 - decay) * batch with decay
    0.9. With `frozen` set, training normalises with the running statistics too and leaves them as they are.
    """

    def __init__(
        self,
        channels: int,
        build: Build,
        *,
        epsilon: float = 1e-5,
        decay: float = 0.9,
        zero_scale: bool = False,
    ) -> None:
        self.epsilon, self.decay, self.frozen = epsilon, decay, False
        self.dtype, self.axis_name = build.dtype, build.axis_name
        self.scale = nnx.Param(jnp.full((channels,), 0.0 if zero_scale else 1.0, jnp.float32))
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros((channels,), jnp.float32))
        self.var = nnx.BatchStat(jnp.ones((channels,), jnp.float32))

    def __call__(self, x: Array, train: bool) -> Array:
        """`[..., channels]` -> `dtype[..., channels]`."""
        x = x.astype(jnp.float32)
        moves = train and not self.frozen
        mean, var = self._batch_statistics(x) if moves else (self.mean[...], self.var[...])
        scale = self.scale[...] * lax.rsqrt(var + self.epsilon)
        return ((x - mean) * scale + self.bias[...]).astype(self.dtype)

    def _batch_statistics(self, x: Array) -> tuple[Array, Array]:
        axes = tuple(range(x.ndim - 1))
        count = math.prod(x.shape[:-1])
        # One pass over x. Centring by the running mean (any constant would do) keeps E[x^2] - E[x]^2 from
        # cancelling where the mean is large beside the deviation.
        centre = lax.stop_gradient(self.mean[...])
        first, second = (x - centre).mean(axes), jnp.square(x - centre).mean(axes)
        if self.axis_name is not None:
            first, second = lax.pmean((first, second), self.axis_name)
            count *= lax.axis_size(self.axis_name)
        mean, var = first + centre, jnp.maximum(second - jnp.square(first), 0.0)
        unbiased = var * (count / max(count - 1, 1))
        self.mean[...] = self.decay * self.mean[...] + (1 - self.decay) * lax.stop_gradient(mean)
        self.var[...] = self.decay * self.var[...] + (1 - self.decay) * lax.stop_gradient(unbiased)
        return mean, var


def layer_norm(channels: int, build: Build) -> nnx.LayerNorm:
    """Layer norm over the last axis, float32 inside, epsilon as timm's (Ba et al. 2016, arXiv 1607.06450)."""
    return nnx.LayerNorm(channels, epsilon=1e-6, dtype=build.dtype, use_fast_variance=False, rngs=build.rngs)


class LayerScale(Module):
    """A learned factor for each channel of a residual branch (Touvron et al. 2021, arXiv 2103.17239)."""

    def __init__(self, channels: int, initial: float) -> None:
        self.scale = nnx.Param(jnp.full((channels,), initial, jnp.float32))

    def __call__(self, x: Array) -> Array:
        """`[..., channels]` -> the same shape and dtype."""
        return x * self.scale[...].astype(x.dtype)


# --- Randomness


def fold(key: Key, index: int) -> Key:
    """The key of part `index` (at least 0); None stays None."""
    return None if key is None else jax.random.fold_in(key, index)


def dropout(x: Array, rate: float | Array, key: Key, axis_name: str | None) -> Array:
    """Set each element of `[batch, ...]` to 0 with probability `rate`, scale the others by 1 / (1 - rate)."""
    return _drop(x, rate, key, axis_name, x.shape[1:])


def drop_path(x: Array, rate: float | Array, key: Key, axis_name: str | None) -> Array:
    """Drop a residual branch `[batch, ...]` for whole images (Huang et al. 2016, arXiv 1603.09382)."""
    return _drop(x, rate, key, axis_name, (1,) * (x.ndim - 1))


def _drop(x: Array, rate: float | Array, key: Key, axis_name: str | None, shape: tuple[int, ...]) -> Array:
    if key is None or (not isinstance(rate, Array) and rate == 0.0):
        return x
    batch = x.shape[0]
    if axis_name is None:
        keep = jax.random.bernoulli(key, 1.0 - rate, (batch, *shape))
    else:  # the mask of the global batch, of which this device takes its part: the same as on one device
        everywhere = jax.random.bernoulli(key, 1.0 - rate, (batch * lax.axis_size(axis_name), *shape))
        keep = lax.dynamic_slice_in_dim(everywhere, lax.axis_index(axis_name) * batch, batch)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros((), x.dtype)).astype(x.dtype)


def drop_path_rates(last: float, blocks: int) -> list[float]:
    """Rates that grow linearly from 0 at the first block to `last` at the last."""
    return [last * i / max(blocks - 1, 1) for i in range(blocks)]


# --- Blocks


def run_blocks(blocks: Iterable[Any], x: Array, train: bool, key: Key, remat: bool, taps: Taps = None) -> Array:
    """Apply `block(x, train, key of its own)` one after the other; no key unless in training.

    remat: keep only what is between blocks for the backward pass and compute the inside again (Chen et al.
    2016, arXiv 1604.06174). Running statistics written inside come out as without. taps: gets each block's output.
    """
    key = key if train else None
    for i, block in enumerate(blocks):
        part = fold(key, i)
        x = _rematerialised(block, x, train, part) if remat else block(x, train, part)
        if taps is not None:
            taps.append(x)
    return x


def _rematerialised(block: Any, x: Array, train: bool, key: Key) -> Array:
    graphdef, params, rest = nnx.split(block, nnx.Param, ...)

    @jax.checkpoint
    def apply(params: Any, rest: Any, x: Array, key: Key) -> tuple[Array, Any]:
        rebuilt = nnx.merge(graphdef, params, rest)
        y = rebuilt(x, train, key)
        return y, nnx.to_pure_dict(nnx.state(rebuilt, nnx.BatchStat))

    y, statistics = apply(nnx.to_pure_dict(params), nnx.to_pure_dict(rest), x, key)
    nnx.update(block, statistics)
    return y


# --- Initialisers

zeros = nnx.initializers.zeros_init()
normal_002 = nnx.initializers.normal(0.02)
"""Normal with deviation 0.02. timm's `trunc_normal_` cuts at +-2, a hundred deviations: nothing."""


def fan_out_normal(groups: int = 1) -> nnx.Initializer:
    """Normal with variance 2 / (kernel area * channels out / groups) (He et al. 2015, arXiv 1502.01852)."""

    def init(key: Array, shape: Sequence[int], dtype: DTypeLike) -> Array:
        return jax.random.normal(key, shape, dtype) * math.sqrt(2.0 * groups / (shape[0] * shape[1] * shape[3]))

    return init


def uniform(bound: float) -> nnx.Initializer:
    """Uniform in -bound..bound. PyTorch's default for kernels and biases is bound = fan_in ** -0.5."""

    def init(key: Array, shape: Sequence[int], dtype: DTypeLike) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def torch_linear(features_in: int, features_out: int, build: Build) -> nnx.Linear:
    """A float32 linear layer that starts as PyTorch's does: kernel and bias uniform by fan-in."""
    init = uniform(features_in**-0.5)
    return nnx.Linear(features_in, features_out, kernel_init=init, bias_init=init, rngs=build.rngs)
