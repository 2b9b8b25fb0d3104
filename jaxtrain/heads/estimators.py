"""scikit-learn's classifiers by name, and how a fitted one is kept: skops with trusted types, XGBoost's own format."""

from __future__ import annotations

import functools
import inspect
import io
import json
import re
import warnings
import zipfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxtrain.archives import check_archive, check_arrays
from jaxtrain.errors import DamagedError, UserError, nearest
from jaxtrain.readers import reading

TRUSTED = (
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.gaussian_process._gpc._BinaryGaussianProcessClassifierLaplace",
    "sklearn.gaussian_process.kernels.ConstantKernel",
    "sklearn.gaussian_process.kernels.Product",
    "sklearn.gaussian_process.kernels.RBF",
    "sklearn.metrics._dist_metrics.EuclideanDistance64",
    "sklearn.neighbors._kd_tree.KDTree",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.tree._tree.Tree",
)
"""Types that a kept classifier may hold besides those that skops itself trusts. Each is scikit-learn's own."""


def find(name: str) -> type[Any]:
    """The classifier that is called so: XGBClassifier, or a class of scikit-learn by its own name or a short one.

    Raises:
        UserError: there is none, it is not for vectors alone, or its package is not installed.
    """
    if name == "xgboost":
        try:
            from xgboost import XGBClassifier
        except ImportError:
            raise UserError("head.name xgboost needs a package that is not installed: pip install xgboost") from None
        return XGBClassifier
    known = _classifiers()
    if name not in known:
        raise UserError(f"head.name: scikit-learn has no classifier {name!r}; {nearest(name, known)}")
    found = known[name]
    needed = [p.name for p in inspect.signature(found).parameters.values() if p.default is p.empty]
    if found.__name__ == "CategoricalNB":
        raise UserError("head.name: CategoricalNB is for categories, not for vectors; did you mean 'gaussian_nb'?")
    if needed or found.__name__ == "SelfTrainingClassifier":
        raise UserError(f"head.name: {found.__name__} is made of other estimators and cannot be a head by itself")
    return found


def dump(estimator: Any) -> NDArray[np.uint8]:
    """A fitted classifier as bytes, the same for the same classifier: uint8[bytes]."""
    if type(estimator).__name__ == "XGBClassifier":
        return np.frombuffer(bytes(estimator.get_booster().save_raw("ubj")), np.uint8)
    import skops.io

    return np.frombuffer(_canonical(skops.io.dumps(estimator)), np.uint8)


def load(name: str, data: NDArray[np.uint8]) -> Any:
    """The classifier that `dump` gave, the name being that of `find`.

    Raises UserError where there is no such classifier, DamagedError where the bytes are not one, or hold a type that is
    not trusted.
    """
    kind, content = find(name), data.tobytes()
    with reading(f"the head's {name}", "classifier", "train it again"):
        if name == "xgboost":
            booster = kind()
            booster.load_model(bytearray(content))
            return booster
        import skops.io

        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            check_archive(archive, len(content), packed=False)
            check_arrays(archive)
        foreign = sorted(set(skops.io.get_untrusted_types(data=content)) - set(TRUSTED))
        if foreign:
            raise DamagedError(f"the head holds types that are not trusted, and is not loaded: {', '.join(foreign)}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # another version of scikit-learn: ours is in the summary
            estimator = skops.io.loads(content, trusted=list(TRUSTED))
        if not isinstance(estimator, kind):
            raise ValueError(f"it holds a {type(estimator).__name__}")
        return estimator


@functools.cache
def _classifiers() -> dict[str, type[Any]]:
    from sklearn.utils import all_estimators

    known: dict[str, type[Any]] = {}
    for name, found in all_estimators(type_filter="classifier"):
        snake = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
        known |= {name: found, snake: found, snake.removesuffix("_classifier"): found}
    return known


def _canonical(archive: bytes) -> bytes:
    """A skops archive without times and memory addresses, which differ from one dump to the next."""
    numbers: dict[str, int] = {}  # memory address (as text) to its place in the order of appearance

    def number(address: str) -> int:
        return numbers.setdefault(address, len(numbers))

    def file(name: str) -> str:
        address, _, ending = name.partition(".")
        return f"{number(address)}.{ending}"

    def clean(node: Any) -> Any:
        if isinstance(node, list):
            return [clean(part) for part in node]
        if not isinstance(node, dict):
            return node
        kept = {key: clean(part) for key, part in node.items() if key not in ("__id__", "file")}
        kept |= {"__id__": number(str(node["__id__"]))} if "__id__" in node else {}
        return kept | ({"file": file(node["file"])} if isinstance(node.get("file"), str) else {})

    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(buffer, "w") as new:
        schema = json.dumps(clean(json.loads(old.read("schema.json"))))
        files = {file(name): old.read(name) for name in old.namelist() if name != "schema.json"}
        for name, content in [*sorted(files.items()), ("schema.json", schema.encode())]:
            new.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()
