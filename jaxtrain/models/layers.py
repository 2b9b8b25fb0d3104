"""Layers that the model families share.

Everything here is a pure function of its arguments: no hidden random generators, no mode flags. `train` and
`key` are passed down in each call. Batch norm writes its running statistics into its own `nnx.BatchStat`
variables.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax
from jax.typing import DTypeLike

from jaxtrain.models import forms
from jaxtrain.models.build import Build
from jaxtrain.models.forms import Activation

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
        size = self.kernel.shape[0]
        patches = self.groups == 1 and size == self.stride
        pads = tuple((0, 0) if patches else self._pads(side) for side in x.shape[1:3])
        kernel = self.kernel[...].astype(self.dtype)
        y = forms.convolution(x.astype(self.dtype), kernel, self.stride, pads, self.groups)
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)

    def _pads(self, side: int) -> tuple[int, int]:
        size = self.kernel.shape[0]
        if self.padding == "torch":
            return (size - 1) // 2, (size - 1) // 2
        total = max((math.ceil(side / self.stride) - 1) * self.stride + size - side, 0)
        return total // 2, total - total // 2


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

    def __call__(self, x: Array, train: bool, act: Activation = None) -> Array:
        """`[..., channels]` -> `dtype[..., channels]`; `act` of it where given."""
        given = x, self.scale[...], self.bias[...], self.mean[...]
        if train and not self.frozen:
            y, mean, var = forms.batch_norm(*given, self.epsilon, act, self.axis_name)
            self._move(mean, var, self._count(x))
            return y.astype(self.dtype)
        y = forms.normed(*given, lax.rsqrt(self.var[...] + self.epsilon)).astype(self.dtype)
        return y if act is None else act(y)

    def of_product(self, x: Array, kernel: Array) -> Array:
        """That of `x @ kernel` in training: `[..., channels_in]`, `[channels_in, channels]` -> `dtype[..., channels]`.

        The product's mean and variance follow from the mean and covariance of x. So the norm is part of the product
        itself: what is wider than x is written once, and neither kept nor read for gradients.
        Where x's mean is a hundred times its deviation, float32 sums no longer tell the variance.
        """
        axes, matrix = tuple(range(x.ndim - 1)), kernel.astype(jnp.float32)
        first = x.astype(jnp.float32).mean(axes)
        count = math.prod(x.shape[:-1])
        second = lax.dot_general(x, x, ((axes, axes), ((), ())), preferred_element_type=jnp.float32) / count
        first, second = forms.over(self.axis_name, first, second)
        exactly = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)
        mean = exactly(first, matrix)
        var = (matrix * exactly(second - jnp.outer(first, first), matrix)).sum(0)
        var = jnp.maximum(var, 0.0)
        self._move(mean, var, self._count(x))
        scale = self.scale[...] * lax.rsqrt(var + self.epsilon)
        y = forms.linear(x, (matrix * scale).astype(kernel.dtype))
        return (y + (self.bias[...] - mean * scale)).astype(self.dtype)

    def _count(self, x: Array) -> int:
        """Places of the global batch."""
        devices = 1 if self.axis_name is None else lax.axis_size(self.axis_name)
        return math.prod(x.shape[:-1]) * devices

    def _move(self, mean: Array, var: Array, count: int) -> None:
        """The running statistics."""
        unbiased = var * (count / max(count - 1, 1))
        self.mean[...] = self.decay * self.mean[...] + (1 - self.decay) * lax.stop_gradient(mean)
        self.var[...] = self.decay * self.var[...] + (1 - self.decay) * lax.stop_gradient(unbiased)


def conv_norm(conv: Conv, norm: BatchNorm, x: Array, train: bool, act: Activation = None) -> Array:
    """`norm(conv(x), train, act)` of a convolution without bias."""
    x = x.astype(conv.dtype)
    size, *_, channels = conv.kernel.shape
    if train and not norm.frozen and size == conv.groups == 1 and forms.norm_in_product(x, channels, conv.stride):
        y = norm.of_product(x[:, :: conv.stride, :: conv.stride], conv.kernel[0, 0].astype(conv.dtype))
        return y if act is None else act(y)
    return norm(conv(x), train, act)


class LayerNorm(nnx.LayerNorm):  # type: ignore[misc]
    """Layer norm over the last axis, float32 inside (Ba et al. 2016, arXiv 1607.06450)."""

    def __init__(self, channels: int, build: Build, epsilon: float = 1e-6) -> None:
        super().__init__(channels, epsilon=epsilon, dtype=build.dtype, rngs=build.rngs)

    def __call__(self, x: Array) -> Array:
        """`[..., channels]` -> `dtype[..., channels]`."""
        return forms.layer_norm(x, self.scale[...], self.bias[...], self.epsilon).astype(self.dtype)


class Linear(nnx.Linear):  # type: ignore[misc]
    """Linear layer, kernel `[channels_in, channels_out]`, bias 0 at first."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        build: Build,
        *,
        kernel_init: nnx.Initializer,
        use_bias: bool = True,
    ) -> None:
        super().__init__(
            channels_in, channels_out, kernel_init=kernel_init, use_bias=use_bias, dtype=build.dtype, rngs=build.rngs
        )

    def __call__(self, x: Array) -> Array:
        """`[..., channels_in]` -> `dtype[..., channels_out]`."""
        return forms.linear(*self._cast(x))

    def split(self, x: Array, parts: int) -> list[Array]:
        """What the layer gives, its last axis split into equal parts."""
        return forms.split_linear(*self._cast(x), parts)

    def _cast(self, x: Array) -> tuple[Array, Array, Array | None]:
        bias = None if self.bias is None else self.bias[...].astype(self.dtype)
        return x.astype(self.dtype), self.kernel[...].astype(self.dtype), bias


class LayerScale(Module):
    """A learned factor for each channel of a residual branch (Touvron et al. 2021, arXiv 2103.17239)."""

    def __init__(self, channels: int, initial: float) -> None:
        self.scale = nnx.Param(jnp.full((channels,), initial, jnp.float32))

    def __call__(self, x: Array) -> Array:
        """`[..., channels]` -> the same shape and dtype."""
        return x * self.scale[...].astype(x.dtype)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": forms.gelu,
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "hard_swish": jax.nn.hard_swish,
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}
"""By the names that variants give."""


class Mlp(Module):
    """Linear, activation, linear."""

    def __init__(self, width: int, hidden: int, build: Build, act: str = "gelu") -> None:
        self.fc1 = Linear(width, hidden, build, kernel_init=normal_002)
        self.fc2 = Linear(hidden, width, build, kernel_init=normal_002)
        self.act = act

    def __call__(self, x: Array) -> Array:
        """`[..., width]` -> `[..., width]`."""
        return self.fc2(ACTIVATIONS[self.act](self.fc1(x)))


class ConvNorm(Module):
    """Convolution without bias, then batch norm; arguments as theirs."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int,
        build: Build,
        *,
        stride: int = 1,
        groups: int = 1,
        padding: Padding = "torch",
        epsilon: float = 1e-5,
        zero_scale: bool = False,
    ) -> None:
        init = fan_out_normal(groups)
        self.conv = Conv(
            channels_in, channels_out, kernel, build, kernel_init=init, stride=stride, groups=groups, padding=padding
        )
        self.bn = BatchNorm(channels_out, build, epsilon=epsilon, zero_scale=zero_scale)

    def __call__(self, x: Array, train: bool, act: Activation = None) -> Array:
        """`[batch, height, width, channels_in]` -> `[batch, height', width', channels_out]`."""
        return conv_norm(self.conv, self.bn, x, train, act)


class SqueezeExcite(Module):
    """Each channel is weighed by what all channels' means say (Hu et al. 2017, arXiv 1709.01507)."""

    def __init__(self, channels: int, inside: int, build: Build, act: str = "relu", gate: str = "sigmoid") -> None:
        self.act, self.gate, self.dtype = act, gate, build.dtype
        self.reduce = Conv(channels, inside, 1, build, kernel_init=fan_out_normal(), bias_init=zeros)
        self.expand = Conv(inside, channels, 1, build, kernel_init=fan_out_normal(), bias_init=zeros)

    def __call__(self, x: Array) -> Array:
        """`[batch, height, width, channels]` -> the same shape."""
        mean = x.astype(jnp.float32).mean((1, 2), keepdims=True).astype(self.dtype)
        return x * ACTIVATIONS[self.gate](self.expand(ACTIVATIONS[self.act](self.reduce(mean))))


def average_pool(x: Array, cut: bool = False) -> Array:
    """Mean over 2x2: `[batch, height, width, channels]` -> half the sides.

    Of odd sides the last places are averaged alone, or with `cut` left out.
    """
    batch, height, width, channels = x.shape
    if cut:
        x = x[:, : height // 2 * 2, : width // 2 * 2]
        height, width = x.shape[1:3]
    rows, columns = -(-height // 2), -(-width // 2)
    padded = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0))).astype(jnp.float32)
    sums = padded.reshape(batch, rows, 2, columns, 2, channels).sum((2, 4))
    counts = [np.minimum(2, side - 2 * np.arange(-(-side // 2))) for side in (height, width)]
    return (sums / np.outer(*counts)[:, :, None].astype(np.float32)).astype(x.dtype)


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


def run_stages(
    stages: Sequence[Any], between: Iterable[Any], x: Array, train: bool, key: Key, remat: bool, taps: Taps = None
) -> Array:
    """`run_blocks` of each stage; `between` two of them a layer that makes the map smaller."""
    x = run_blocks(stages[0], x, train, fold(key, 0), remat, taps)
    for i, (downsample, stage) in enumerate(zip(between, stages[1:], strict=True)):
        x = run_blocks(stage, downsample(x), train, fold(key, i + 1), remat, taps)
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


def normal(deviation: float) -> nnx.Initializer:
    """Normal around 0. timm's `trunc_normal_` with a deviation of 0.02 cuts at +-2, a hundred deviations: nothing."""

    def init(key: Array, shape: Sequence[int], dtype: DTypeLike) -> Array:
        return jax.random.normal(key, shape, dtype) * deviation

    return init


normal_002 = normal(0.02)


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
