"""Data sources, input pipelines and augmentation."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtrain.data.base import ImageSource
    from jaxtrain.data.packing import cache

# Imported on first use, so that `import jaxtrain.data` costs nothing.
_HOMES = {"ImageSource": "jaxtrain.data.base", "cache": "jaxtrain.data.packing"}

__all__ = ["ImageSource", "cache"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'jaxtrain.data' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
