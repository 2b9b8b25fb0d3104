"""The kernel, interpreted on CPU, and what is around it on several devices, against XLA's convolution."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxtrain.backend import sharing
from jaxtrain.models import depthwise_tpu
from jaxtrain.models.depthwise_tpu import depthwise, fits
from jaxtrain.training.parallel import JitStrategy, make_mesh
from tests.models.test_forms import agree, arrays

ROOT = Path(__file__).resolve().parents[2]


def xla(x, kernel):
    pad = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), ((pad, pad),) * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=x.shape[3]
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ("shape", "size", "rows"),
    [
        ((8, 14, 14, 128), 7, 14),  # channels along the lanes, the whole map at once
        ((16, 5, 7, 24), 5, 5),
        ((8, 2, 3, 256), 7, 2),  # a map that is smaller than the kernel
        ((128, 7, 9, 8), 7, 7),  # images along the lanes
        ((8, 28, 28, 128), 7, 14),  # some rows at a time
        ((8, 31, 20, 256), 5, 1),
    ],
)
def test_the_kernel_is_xlas_convolution(shape, size, rows, dtype):
    x, kernel = arrays(shape, (size, size, 1, shape[3]), dtype=dtype)
    assert depthwise_tpu._rows(shape, 4, size) == rows
    found = depthwise_tpu.taps(x, kernel, interpret=True)
    assert found.dtype == dtype
    exact = xla(x.astype(jnp.float32), kernel.astype(jnp.float32))
    tolerance = 2e-5 if dtype == jnp.float32 else 2**-8  # sums are in float32, the result is rounded once
    np.testing.assert_allclose(found.astype(jnp.float32), exact, rtol=tolerance, atol=tolerance)


def test_gradients_are_xlas():
    mesh = make_mesh(jax.devices()[:1])
    agree(lambda x, kernel: depthwise(x, kernel, mesh), xla, arrays((8, 6, 5, 16), (5, 5, 1, 16)))


@pytest.mark.slow
def test_four_devices_share_a_batch():
    """Gradients agree, nothing of a batch is gathered, and a run's step knows its devices."""
    subprocess.run([sys.executable, "-m", "tests.models.test_depthwise_tpu"], check=True, cwd=ROOT)


def on_four_devices():
    mesh = make_mesh(jax.devices())
    given = arrays((32, 6, 5, 16), (5, 5, 1, 16))
    agree(lambda x, kernel: depthwise(x, kernel, mesh), xla, given)

    rows, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s) for x, s in zip(given, (rows, whole), strict=True)]
    gradients = jax.grad(lambda x, kernel: jnp.sum(depthwise(x, kernel, mesh) ** 2), argnums=(0, 1))
    text = jax.jit(gradients).lower(*shapes).compile().as_text()
    assert "all-reduce" in text
    assert "all-gather" not in text
    assert not fits(jnp.zeros((12, 6, 5, 16)), given[1], mesh)  # three rows on each
    assert not fits(jnp.zeros((6, 6, 5, 16)), given[1], mesh)

    seen = []
    strategy = JitStrategy(jax.devices())

    def step(state, x):
        seen.append(sharing())
        return state, x.sum()

    strategy.compile_steps(step)(strategy.replicate(jnp.zeros(())), strategy.shard(jnp.zeros((8, 2))))
    strategy.compile_map(lambda state, x: step(state, x)[1])(jnp.zeros(()), strategy.shard(jnp.zeros((8, 2))))
    assert seen == [mesh, mesh]
    assert sharing() is None


def test_where_it_is_not_used():
    """For a batch of one row or of a size that is not known yet, small kernels, and maps that memory does not hold."""
    mesh = make_mesh(jax.devices()[:1])
    small, kernel = arrays((8, 6, 5, 16), (5, 5, 1, 16))
    assert fits(small, kernel, mesh)
    assert not fits(small[:1], kernel, mesh)
    assert not fits(small, kernel[:4, :4], mesh)
    wide, kernels = jnp.zeros((8, 6, 5, 64)), jnp.zeros((5, 5, 1, 64))
    assert fits(wide, kernels, mesh)
    assert not fits(wide, kernels[:3, :3], mesh)
    assert not fits(small, kernel[:3, :3], mesh)
    assert fits(jnp.zeros((128, 6, 5, 16)), kernel[:3, :3], mesh)
    assert not fits(jnp.zeros((8, 1, 4096, 128)), kernel, mesh)
    batch = jax.export.symbolic_shape("b")[0]
    assert not fits(jax.ShapeDtypeStruct((batch, 6, 5, 16), jnp.float32), kernel, mesh)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="the TPU compiler is not installed: .[tpu]")
@pytest.mark.parametrize("shape", [(128, 56, 56, 96), (128, 14, 14, 384), (8, 17, 23, 320)])
def test_the_tpu_compiler_takes_it(shape):
    program = f"""
import jax, jax.numpy as jnp
from jaxtrain.backend import compiling_for, shared_by
from jaxtrain.models import forms
from jaxtrain.training.chips import target
from jaxtrain.training.compiled import Compiled
from jaxtrain.training.parallel import JitStrategy
where = target("v5e:2x2")
batch, *sides, channels = {shape}
with compiling_for("tpu"):
    strategy = JitStrategy(where.devices())
    x = strategy.shaped_rows((4 * batch, *sides, channels), jnp.bfloat16)
    kernel = strategy.shaped_whole((7, 7, 1, channels), jnp.bfloat16)
    pads = ((3, 3), (3, 3))
    function = jax.grad(lambda x, k: forms.convolution(x, k, 1, pads, channels).astype(jnp.float32).sum(), (0, 1))
    made = strategy.compile_map(function).lower(x, kernel).compile()
print(made.as_text().count("tpu_custom_call"), Compiled.of(made).cycles)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    kernels, cycles = map(int, done.stdout.split())
    assert kernels >= 1
    assert cycles > 2 * 49 * np.prod(shape) / 4096


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 4)
    on_four_devices()
