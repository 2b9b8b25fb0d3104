"""Flax NNX backbones and heads, and their registry."""
