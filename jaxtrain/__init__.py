"""Train image classifiers in JAX and Flax: feature extraction, fine-tuning, pre-training from scratch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from jaxtrain.version import __version__

if TYPE_CHECKING:
    from jaxtrain.classifiers.audit import audit
    from jaxtrain.classifiers.base import BaseClassifier
    from jaxtrain.classifiers.benchmark import benchmark
    from jaxtrain.classifiers.feature_extraction import FEClassifier
    from jaxtrain.classifiers.files import load
    from jaxtrain.classifiers.fine_tuning import FTClassifier
    from jaxtrain.classifiers.pre_training import PTClassifier
    from jaxtrain.config import Config
    from jaxtrain.errors import JaxtrainError, RunError, UserError
    from jaxtrain.models import create_model, list_models
    from jaxtrain.sweeps.shown import sweep_results
    from jaxtrain.training.callbacks import Callback
    from jaxtrain.training.state import Batch
    from jaxtrain.training.step import train_step

# Imported on first use, so that `import jaxtrain` costs nothing.
_HOMES = {
    "BaseClassifier": "jaxtrain.classifiers.base",
    "Batch": "jaxtrain.training.state",
    "Callback": "jaxtrain.training.callbacks",
    "Config": "jaxtrain.config",
    "FEClassifier": "jaxtrain.classifiers.feature_extraction",
    "FTClassifier": "jaxtrain.classifiers.fine_tuning",
    "JaxtrainError": "jaxtrain.errors",
    "PTClassifier": "jaxtrain.classifiers.pre_training",
    "RunError": "jaxtrain.errors",
    "UserError": "jaxtrain.errors",
    "audit": "jaxtrain.classifiers.audit",
    "benchmark": "jaxtrain.classifiers.benchmark",
    "create_model": "jaxtrain.models",
    "list_models": "jaxtrain.models",
    "load": "jaxtrain.classifiers.files",
    "sweep_results": "jaxtrain.sweeps.shown",
    "train_step": "jaxtrain.training.step",
}

__all__ = [
    "BaseClassifier",
    "Batch",
    "Callback",
    "Config",
    "FEClassifier",
    "FTClassifier",
    "JaxtrainError",
    "PTClassifier",
    "RunError",
    "UserError",
    "__version__",
    "audit",
    "benchmark",
    "create_model",
    "list_models",
    "load",
    "sweep_results",
    "train_step",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'jaxtrain' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
