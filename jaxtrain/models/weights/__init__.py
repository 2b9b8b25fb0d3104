"""Pre-trained weights from the places where people have them."""

from __future__ import annotations

from jaxtrain.models.weights.adapt import Adapted, adapt
from jaxtrain.models.weights.export import export_timm
from jaxtrain.models.weights.pretrained import Pretrained, load_pretrained

__all__ = ["Adapted", "Pretrained", "adapt", "export_timm", "load_pretrained"]
