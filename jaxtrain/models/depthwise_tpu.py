"""Depthwise convolutions of TPUs as a kernel for their vector unit.

XLA computes them on the matrix unit, as one product for each tap with a diagonal matrix: 5.0
million cycles for 7x7 on 128 maps of 56x56x96 on v5e. Sums of taps take 1.1 by the compiler's schedule of this kernel.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import Mesh, PartitionSpec

_SMALLEST, _NARROW = 5, 48
"""Side of kernels from which this is worth it, and channels up to which smaller ones are where images fill the lanes:
otherwise XLA's 3x3 takes hardly longer than reading and writing the map."""
_SUBLANES, _LANES = 8, 128
"""A vector: what some images and channels have at one place."""
_RUNS = (8, 7, 6)
"""Places beside each other whose sums are in registers together: what divides the width best."""
_MEMORY = 12 * 2**20
"""Bytes for one block, which every generation's vector memory holds."""


def fits(x: Array, kernel: Array, mesh: Mesh) -> bool:
    """Whether `depthwise` computes this; the size of a batch that is not known yet is not an int."""
    size = kernel.shape[0]
    if not isinstance(x.size, int) or x.shape[0] % mesh.size:
        return False
    shape = (x.shape[0] // mesh.size, *x.shape[1:])
    worth_it = size >= _SMALLEST or (size > 1 and x.shape[3] <= _NARROW and _images_last(shape[0], shape[3]))
    return worth_it and size % 2 == 1 and _rows(shape, x.dtype.itemsize, size) > 0


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise(x: Array, kernel: Array, mesh: Mesh) -> Array:
    """`[batch, height, width, channels]`, `[size, size, 1, channels]` -> the shape of x; stride 1, padded with zeros.

    mesh: the devices that share the batch. Sums are in float32, results and gradients in the types of x and kernel.
    """
    # FLOPs are counted on CPU.
    on_one = functools.partial(lax.platform_dependent, tpu=taps, default=_convolution)
    rows, whole = PartitionSpec(mesh.axis_names), PartitionSpec()
    return jax.shard_map(on_one, mesh=mesh, in_specs=(rows, whole), out_specs=rows, check_vma=False)(x, kernel)


def _forward(x: Array, kernel: Array, mesh: Mesh) -> tuple[Array, tuple[Array, Array]]:
    return depthwise(x, kernel, mesh), (x, kernel)


def _backward(mesh: Mesh, saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = saved
    of_kernel = jax.linear_transpose(functools.partial(_convolution, x), kernel)
    return depthwise(gradient, kernel[::-1, ::-1], mesh), *of_kernel(gradient)


depthwise.defvjp(_forward, _backward)


def _convolution(x: Array, kernel: Array) -> Array:
    """The same by XLA."""
    half = kernel.shape[0] // 2
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, (1, 1), ((half, half),) * 2, dimension_numbers=layout, feature_group_count=x.shape[3]
    )


def _rows(shape: Sequence[int], itemsize: int, size: int) -> int:
    """How many rows of a map are made at once; 0 where the kernel does not fit."""
    batch, height, width, channels = shape
    second, last = (channels, batch) if _images_last(batch, channels) else (batch, channels)
    if second % _SUBLANES:
        return 0
    place = _SUBLANES * _LANES * math.ceil(_lanes(last) / _LANES)
    for rows in sorted((n for n in range(1, height + 1) if height % n == 0), reverse=True):
        window = min(rows + size - 1, height)
        buffers = 2 * (window + rows) * width * place * itemsize  # the next block comes in meanwhile
        if buffers + 4 * (rows + size - 1) * (width + max(_RUNS) + size) * place <= _MEMORY:
            return rows
    return 0


def _images_last(batch: int, channels: int) -> bool:
    """Whether images lie along the lanes, which XLA chooses too where channels would leave some of them empty."""
    return channels % _LANES != 0 and batch % _LANES == 0


def _lanes(last: int) -> int:
    return _LANES if last % _LANES == 0 else last


def taps(x: Array, kernel: Array, interpret: bool = False) -> Array:
    """`depthwise` on one chip."""
    from jax.experimental import pallas as pl  # takes half a second
    from jax.experimental.pallas import tpu as pltpu

    batch, height, width, channels = x.shape
    size, rows = kernel.shape[0], _rows(x.shape, x.dtype.itemsize, kernel.shape[0])
    images_last = _images_last(batch, channels)
    order = (1, 2, 3, 0) if images_last else (1, 2, 0, 3)
    x = x.transpose(order)
    lanes = _lanes(x.shape[3])
    window, runs = min(rows + size - 1, height), [max(1, run // math.ceil(lanes / _LANES)) for run in _RUNS]
    wide, run = min((math.ceil(width / run) * run + size - 1, run) for run in runs)
    weights = kernel.reshape(size * size, channels).astype(jnp.float32)
    if images_last:
        weights = jnp.broadcast_to(weights[:, :, None], (size * size, channels, lanes))
        weight_block = pl.BlockSpec((size * size, _SUBLANES, lanes), lambda last, second, row: (0, second, 0))
    else:
        weight_block = pl.BlockSpec((size * size, lanes), lambda last, second, row: (0, last))

    def first(row: Any) -> Any:
        """Where the window of a block of rows begins."""
        return jnp.clip(row * rows - size // 2, 0, height - window) if window < height else 0

    def place(last: Any, second: Any, row: Any) -> Any:
        return first(row), 0, second * _SUBLANES, last * lanes if lanes < x.shape[3] else 0

    result = pl.pallas_call(
        functools.partial(_block, first=first, size=size, height=height, run=run),
        grid=(x.shape[3] // lanes, x.shape[2] // _SUBLANES, height // rows),
        in_specs=[pl.BlockSpec(tuple(map(pl.Element, (window, width, _SUBLANES, lanes))), place), weight_block],
        out_specs=pl.BlockSpec((rows, width, _SUBLANES, lanes), lambda last, second, row: (row, 0, second, last)),
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        scratch_shapes=[pltpu.VMEM((rows + size - 1, wide, _SUBLANES, lanes), jnp.float32)],
        cost_estimate=pl.CostEstimate(
            flops=2 * size * size * x.size, bytes_accessed=2 * x.size * x.dtype.itemsize, transcendentals=0
        ),
        name="depthwise",
        interpret=interpret,
    )(x, weights)
    return result.transpose([order.index(axis) for axis in range(4)])


def _block(x: Any, kernel: Any, y: Any, padded: Any, *, first: Any, size: int, height: int, run: int) -> None:
    """x: `[window, width, *vector]`, kernel: `[size * size, *vector or lanes]`, y: `[rows, width, *vector]`."""
    from jax.experimental import pallas as pl

    half, (rows, width, *vector) = size // 2, y.shape
    block = pl.program_id(2)
    wide = padded.shape[1]

    def fill(row: Any, _: None) -> None:
        source = block * rows - half + row
        inside = (source >= 0) & (source < height)

        @pl.when(inside)
        def _copy() -> None:
            padded[row, :half] = jnp.zeros((half, *vector), jnp.float32)
            padded[row, half : half + width] = x[source - first(block)].astype(jnp.float32)
            padded[row, half + width :] = jnp.zeros((wide - half - width, *vector), jnp.float32)

        @pl.when(jnp.logical_not(inside))
        def _clear() -> None:
            padded[row] = jnp.zeros((wide, *vector), jnp.float32)

    lax.fori_loop(0, rows + size - 1, fill, None)

    def some(number: Any, _: None) -> None:
        row, column = number // (-(-width // run)), number % (-(-width // run)) * run
        sums = [jnp.zeros(vector, jnp.float32)] * run
        for i in range(size):
            near = [padded[row + i, column + place] for place in range(run + size - 1)]
            for j in range(size):
                weight = kernel[i * size + j]
                sums = [total + near[j + place] * weight for place, total in enumerate(sums)]
        for place, total in enumerate(sums):

            @pl.when(column + place < width)
            def _store(place: int = place, total: Array = total) -> None:
                y[row, column + place] = total.astype(y.dtype)

    lax.fori_loop(0, rows * -(-width // run), some, None)
