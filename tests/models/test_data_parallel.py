"""Eight virtual devices agree with one: under `pmap` with an axis name, and under `jit` over a mesh.

The number of devices is fixed when JAX starts, so the comparison runs in a process of its own: this file as a
script.
"""

import json
import os
import subprocess
import sys

import pytest

DEVICES = 8
CASES = {
    "cnn_tiny": {"drop_rate": 0.3},
    "vit_test": {"drop_path_rate": 0.5, "drop_rate": 0.3},
}


def differences(name: str, options: dict[str, float]) -> dict[str, float]:
    """Largest difference of logits and of running statistics from one device, by strategy."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    from jaxtrain.config import ModelConfig
    from jaxtrain.models import create_model

    config, size = ModelConfig(name=name, **options), 16

    def graph(axis_name):
        def make():
            return create_model(config, num_classes=5, image_size=size, axis_name=axis_name)

        return nnx.graphdef(nnx.eval_shape(make))

    def run(graphdef, state, images, key):
        model = nnx.merge(graphdef, state)
        logits = model(images, train=True, key=key)
        return logits, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    state = jax.jit(lambda: nnx.to_pure_dict(nnx.state(create_model(config, num_classes=5, image_size=size))))()
    rng = np.random.default_rng(0)
    state = jax.tree.map(lambda x: x + 0.1 * np.abs(rng.normal(size=x.shape).astype(np.float32)), state)
    images = rng.normal(size=(2 * DEVICES, size, size, 3)).astype(np.float32)
    key = jax.random.key(3)

    logits, statistics = jax.jit(run, static_argnums=0)(graph(None), state, images, key)
    dropped_otherwise = jax.jit(run, static_argnums=0)(graph(None), state, images, jax.random.key(4))[0]

    spread = images.reshape(DEVICES, 2, size, size, 3)
    mapped = jax.pmap(run, axis_name="data", in_axes=(None, None, 0, None), static_broadcasted_argnums=0)
    pmap_logits, pmap_statistics = mapped(graph("data"), state, spread, key)

    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    batch = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    placed = jax.device_put((state, key), everywhere), jax.device_put(jnp.asarray(images), batch)
    (jit_state, jit_key), jit_images = placed
    jit_logits, jit_statistics = jax.jit(run, static_argnums=0)(graph(None), jit_state, jit_images, jit_key)

    def largest(a, b):
        return max(
            [float(np.abs(np.asarray(x) - np.asarray(y)).max())
             for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)],
            default=0.0,
        )  # fmt: skip

    return {
        "pmap": max(
            largest(pmap_logits.reshape(logits.shape), logits),
            largest(pmap_statistics, jax.tree.map(lambda x: np.stack([x] * DEVICES), statistics)),
        ),
        "jit": max(largest(jit_logits, logits), largest(jit_statistics, statistics)),
        "another key": largest(dropped_otherwise, logits),
    }


@pytest.fixture(scope="module")
def measured():
    flags = f"--xla_force_host_platform_device_count={DEVICES} --xla_cpu_collective_call_terminate_timeout_seconds=240"
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, __file__], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["pmap", "jit"])
@pytest.mark.parametrize("name", CASES)
def test_many_devices_agree_with_one(measured, name, strategy):
    assert measured[name][strategy] < 2e-5
    assert measured[name]["another key"] > 0.05


if __name__ == "__main__":
    print(json.dumps({name: differences(name, options) for name, options in CASES.items()}))
