"""A trained model as a folder: weights with digests, resolved config, class names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from jaxtrain.classifiers.base import BaseClassifier, Fitted
from jaxtrain.config import Config
from jaxtrain.errors import UserError
from jaxtrain.training.checkpoints import load_tree, save_tree

if TYPE_CHECKING:
    from typing import Any

C = TypeVar("C", bound=BaseClassifier)


def save_model(classifier: BaseClassifier, path: Path) -> Path:
    """Write the folder `path`, which must not exist yet."""
    fitted = classifier.fitted
    meta: dict[str, Any] = {
        "format": 1,
        "technique": classifier.technique,
        "config": fitted.config.model_dump(mode="json"),
        "class_names": list(fitted.class_names),
        "class_weights": None if fitted.class_weights is None else list(fitted.class_weights),
        "extra": dict(fitted.extra),
    }
    save_tree(path, fitted.weights, meta)
    return path


def load(path: str | Path) -> BaseClassifier:
    """The trained classifier of a run directory or a folder written by `save`; UserError if there is none."""
    path = Path(path)
    folder = path / "model" if (path / "model").is_dir() else path
    if not (folder / "meta.json").is_file():
        raise UserError(f"{path}: no model there; give the directory of a finished run, or a folder written by save()")
    weights, meta = load_tree(folder)
    config = Config.model_validate(meta["config"])
    classifier = techniques()[meta["technique"]](config)
    each = meta["class_weights"]
    names = tuple(meta["class_names"])
    classifier.adopt(Fitted(config, names, weights, None if each is None else tuple(each), meta.get("extra", {})))
    return classifier


def load_model(cls: type[C], path: Path) -> C:
    """`load` for a class of one's own, whose `build_model` may differ; UserError for another technique's model."""
    loaded = load(path)
    if not issubclass(cls, type(loaded)):
        raise UserError(f"{path}: holds a {type(loaded).__name__}, not a {cls.__name__}; use jaxtrain.load")
    classifier = cls(loaded.config)
    classifier.adopt(loaded.fitted)
    return classifier


def techniques() -> dict[str, type[BaseClassifier]]:
    """The classifier of each technique."""
    from jaxtrain.classifiers.feature_extraction import FEClassifier
    from jaxtrain.classifiers.fine_tuning import FTClassifier
    from jaxtrain.classifiers.pre_training import PTClassifier

    return {cls.technique: cls for cls in (FEClassifier, FTClassifier, PTClassifier)}
