"""LoRA: where it starts, what it computes, and the plain network that it merges into."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxtrain.errors import UserError
from jaxtrain.models import create_model
from jaxtrain.models.lora import NAMES, add_lora, merge_lora
from jaxtrain.trees import flat, nested
from tests.marks import mostly_slow

RANK, ALPHA = 2, 6.0


def parts(name, *, lora):
    """Graph, trained and frozen parameters of a fresh network."""
    model = create_model(name, num_classes=3, image_size=32)
    if lora:
        add_lora(model, rank=RANK, alpha=ALPHA, key=jax.random.key(1))

    def trained(path, value):
        return path[0] == "head" or path[-1] in NAMES

    graphdef, params, frozen = nnx.split(model, trained, ...)
    return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(frozen)


def numbered(tree):
    """With numbers as keys of lists, as NNX has them."""
    return {int(k) if k.isdigit() else k: numbered(v) if isinstance(v, dict) else v for k, v in tree.items()}


@pytest.mark.parametrize("name", mostly_slow(["vit_test", "convnext_test"], {"vit_test"}))
def test_lora_starts_as_the_network_was_and_merges_into_it(name):
    graphs = []

    @jax.jit
    def run(images):
        plain_graph, *plain = parts(name, lora=False)
        graph, params, frozen = parts(name, lora=True)
        graphs.append(plain_graph)
        moved = jax.tree.map(lambda leaf: leaf + 0.1 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), params)
        outputs = [nnx.merge(*pieces)(images) for pieces in ((plain_graph, *plain), (graph, params, frozen))]
        return *outputs, nnx.merge(graph, moved, frozen)(images), moved, frozen

    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 32, 3)), jnp.float32)
    plain, before, after, moved, frozen = jax.device_get(run(images))
    np.testing.assert_allclose(before, plain, atol=1e-6)
    assert np.abs(after - before).max() > 1e-2
    head, merged = merge_lora(flat(moved), flat(frozen), ALPHA / RANK)
    assert set(head) == {"head/kernel", "head/bias"}
    assert not any("lora" in name for name in merged)
    pieces = (numbered(nested(part)) for part in (head, merged))
    again = jax.jit(lambda *pieces: nnx.merge(graphs[0], *pieces)(images))(*pieces)
    np.testing.assert_allclose(again, after, atol=2e-5)


def test_an_update_is_scale_times_a_b():
    generator = np.random.default_rng(0)
    kernel, a, b = (generator.normal(size=shape).astype(np.float32) for shape in [(5, 7), (5, 2), (2, 7)])
    params = {"blocks/0/fc1/lora_a": a, "blocks/0/fc1/lora_b": b, "head/bias": b[0]}
    frozen = {"blocks/0/fc1/kernel": kernel, "blocks/0/fc1/bias": b[1], "norm/scale": a[0]}
    head, rest = merge_lora(params, frozen, 3.0)
    assert set(head) == {"head/bias"}
    assert set(rest) == set(frozen)
    expected = kernel.astype(np.float64) + 3.0 * (a.astype(np.float64) @ b)
    np.testing.assert_allclose(rest["blocks/0/fc1/kernel"], expected, rtol=1e-6)
    np.testing.assert_array_equal(frozen["blocks/0/fc1/kernel"], kernel)


def test_a_network_without_such_layers_is_refused():
    def build():
        model = create_model("resnet_tiny", num_classes=3, image_size=32)
        add_lora(model, rank=2, alpha=4.0, key=jax.random.key(0))
        return model

    with pytest.raises(UserError, match="attention or MLP"):
        nnx.eval_shape(build)
