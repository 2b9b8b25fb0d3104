"""Heads: what is trained on the vectors of a frozen backbone. Vectors in, logits out; no images, no runs."""

from jaxtrain.heads.base import FittedHead, Vectors, fit_head, load_head, restore_head

__all__ = ["FittedHead", "Vectors", "fit_head", "load_head", "restore_head"]
