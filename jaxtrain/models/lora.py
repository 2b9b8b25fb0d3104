"""LoRA: low-rank updates of frozen kernels (Hu et al. 2021, arXiv 2106.09685)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from jaxtrain.errors import UserError
from jaxtrain.models import forms
from jaxtrain.models.layers import Module

TARGETS = ("qkv", "proj", "fc1", "fc2")
"""The linear layers of attention and MLPs, as vision transformers and ConvNeXt name them."""
Weights = dict[str, Any]
NAMES = ("lora_a", "lora_b")


class LoraLinear(Module):
    """A linear layer whose kernel is `kernel + scale * lora_a @ lora_b`, the sum never formed.

    `kernel` and `bias` keep the paths that they have without LoRA. `lora_b` starts at 0, so that training starts from
    the layer as it was.
    """

    def __init__(self, linear: nnx.Linear, rank: int, alpha: float, key: Array) -> None:
        features_in, features_out = linear.kernel.shape
        self.kernel, self.bias, self.dtype = linear.kernel, linear.bias, linear.dtype
        self.scale = alpha / rank
        self.lora_a = nnx.Param(jax.random.normal(key, (features_in, rank), jnp.float32) * features_in**-0.5)
        self.lora_b = nnx.Param(jnp.zeros((rank, features_out), jnp.float32))

    def __call__(self, x: Array) -> Array:
        """`[..., features_in]` -> `dtype[..., features_out]`."""
        x, kernel, a, b = (
            array.astype(self.dtype) for array in (x, self.kernel[...], self.lora_a[...], self.lora_b[...])
        )
        bias = None if self.bias is None else self.bias[...].astype(self.dtype)
        return forms.linear(x, kernel, bias) + forms.linear(forms.linear(x, a), b) * self.scale

    def split(self, x: Array, parts: int) -> list[Array]:
        """See `Linear.split`."""
        return jnp.split(self(x), parts, axis=-1)


def lora_targets(model: nnx.Module) -> list[tuple[Any, str]]:
    """(module, attribute) of the linear layers of attention and MLPs. UserError where the model has none."""
    modules = [module for _, module in nnx.iter_modules(model)]
    found = [(module, name) for module in modules for name in TARGETS
             if isinstance(getattr(module, name, None), nnx.Linear)]  # fmt: skip
    if not found:
        raise UserError("finetune.strategy: lora is for models with attention or MLP blocks: ViTs, Swin, ConvNeXt")
    return found


def add_lora(model: nnx.Module, *, rank: int, alpha: float, key: Array) -> None:
    """Replace the linear layers of attention and MLPs, in place. UserError where the model has none."""
    for number, (module, name) in enumerate(lora_targets(model)):
        linear = getattr(module, name)
        setattr(module, name, LoraLinear(linear, rank, alpha, jax.random.fold_in(key, number)))


def merge_lora(params: Mapping[str, Any], frozen: Mapping[str, Any], scale: float) -> tuple[Weights, Weights]:
    """(params, frozen) of the plain network: each update is added to its frozen kernel.

    params: the trained part by name, with `lora_a` and `lora_b`; frozen: the rest, host arrays, with their kernels.
    """
    trained = {name: leaf for name, leaf in params.items() if name.rpartition("/")[2] not in NAMES}
    rest = dict(frozen)
    for name, leaf in params.items():
        layer, _, last = name.rpartition("/")
        if last == NAMES[0]:
            a, b = (np.asarray(array, np.float64) for array in (leaf, params[f"{layer}/{NAMES[1]}"]))
            rest[f"{layer}/kernel"] = (np.asarray(rest[f"{layer}/kernel"]) + scale * (a @ b)).astype(np.float32)
    return trained, rest
