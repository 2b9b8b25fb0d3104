"""Models compared on the test set: `jaxtrain.evaluation(models, data)`."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    """This package can be called: `jaxtrain.evaluation` is both the room and what it is for."""

    def __call__(self, models: Any, data: Any = None, **options: Any) -> Any:
        from jaxtrain.evaluation.api import benchmark

        return benchmark(models, data, **options)


sys.modules[__name__].__class__ = _Room
