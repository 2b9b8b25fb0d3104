"""Weights into networks, the way fine-tuning does it."""

from types import MappingProxyType

import jax
import numpy as np
from flax import nnx

from jaxtrain.models import create_model, registry
from jaxtrain.models.registry import ModelSpec
from jaxtrain.models.weights import adapt


def register(monkeypatch, name, case):
    """A row of the registry for one test."""
    spec = ModelSpec(name, case.family, MappingProxyType(case.kwargs), case.size, case.timm_name)
    monkeypatch.setitem(registry._MODELS, name, spec)


def shapes(model, *, num_classes, image_size, channels=3):
    """Structure, and {"params", "model_state"} as shapes with NNX's own keys."""
    network = nnx.eval_shape(
        lambda: create_model(model, num_classes=num_classes, image_size=image_size, channels=channels)
    )
    graphdef, params, state = nnx.split(network, nnx.Param, ...)
    return graphdef, {"params": nnx.to_pure_dict(params), "model_state": nnx.to_pure_dict(state)}


def run(pretrained, images):
    """Logits of `float32[batch, size, size, channels]`, or embeddings where the weights have no head."""
    classes = pretrained.num_classes
    graphdef, wanted = shapes(
        pretrained.model, num_classes=classes or 1, image_size=images.shape[1], channels=images.shape[3]
    )
    params, state, _ = adapt(pretrained, wanted)
    if not classes:
        params["head"] = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), wanted["params"]["head"])

    def forward(params, state, images):
        model = nnx.merge(graphdef, params, state)
        return model(images) if classes else model.embed(images)

    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(forward)(params, state, images))
