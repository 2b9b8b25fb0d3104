"""Heads: what is trained on the vectors of a frozen backbone. Vectors in, logits out; no images, no runs."""

from jaxtrain.heads.base import FittedHead, Vectors, check_head, fit_head, restore_head
from jaxtrain.heads.class_vectors import class_kernel

__all__ = ["FittedHead", "Vectors", "check_head", "class_kernel", "fit_head", "restore_head"]
