"""Flax NNX backbones and heads, and their registry."""

from __future__ import annotations

from jaxtrain.models.registry import ModelSpec, create_model, list_models, model_spec

__all__ = ["ModelSpec", "create_model", "list_models", "model_spec"]
