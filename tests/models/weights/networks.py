"""Weights into networks, the way fine-tuning does it."""

from types import MappingProxyType

import jax
import numpy as np

from jaxtrain.models import create_model, registry
from jaxtrain.models.registry import ModelSpec
from jaxtrain.models.weights import adapt
from jaxtrain.training.network import Network


def register(monkeypatch, name, case):
    """A row of the registry for one test."""
    spec = ModelSpec(name, case.family, MappingProxyType(case.kwargs), case.size, case.timm_name)
    monkeypatch.setitem(registry._MODELS, name, spec)


def run(pretrained, images, taps=None):
    """Logits of `float32[batch, size, size, channels]`, or embeddings where the weights have no head.

    taps: a list that gets the output of each block.
    """
    classes, (_, side, _, channels) = pretrained.num_classes, images.shape

    def build():
        return create_model(pretrained.model, num_classes=classes or 1, image_size=side, channels=channels)

    network = Network(build, lambda path, value: True)
    params, state, _ = adapt(pretrained, network.shapes)
    if not classes:
        heads = {name: leaf.shape for name, leaf in network.shapes["params"].items() if name.startswith("head/")}
        params |= {name: np.zeros(shape, np.float32) for name, shape in heads.items()}

    def forward(params, state, images):
        model = network.bind(params, {}, state)
        return model(images) if classes else model.embed(images)

    def blocks(params, state, images):
        outputs = []
        network.bind(params, {}, state).features(images, taps=outputs)
        return outputs

    with jax.default_matmul_precision("highest"):
        if taps is not None:
            taps += map(np.asarray, jax.jit(blocks)(params, state, images))
        return np.asarray(jax.jit(forward)(params, state, images))
