"""The protocol of all heads: `fit_head` trains one on vectors, a `FittedHead` gives logits and goes into files."""

from __future__ import annotations

import functools
import hashlib
import importlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from jaxtrain.config import HeadConfig, LossConfig
from jaxtrain.errors import DamagedError, UserError
from jaxtrain.losses import log_shares
from jaxtrain.readers import reading

if TYPE_CHECKING:
    import jax

Floats = NDArray[np.float32]
Arrays = dict[str, NDArray[Any]]
Check = Callable[[], None]

PLAIN = LossConfig()
"""Cross-entropy."""
UNSEEN = -30.0
"""Logit of a class that the training vectors do not have, and the least log-probability: e^-30 is about 1e-13."""

_CHECK_SECONDS = 0.2
_FORMAT = 1
_BLOCK = 4096  # vectors per call of `apply`
_MODULES = {
    "linear": "linear",
    "mlp": "mlp",
    "cosine": "neighbours",
    "ncm": "neighbours",
    "knn": "neighbours",
    "sklearn": "sklearn_heads",
    "xgboost": "sklearn_heads",
    "several": "several",
}
"""The module of `jaxtrain.heads` that fits and loads each head; what stands behind a colon is its own business."""


class Vectors(NamedTuple):
    """Embeddings of images and their labels."""

    x: Floats
    """float32[images, features]"""
    y: NDArray[np.signedinteger[Any]]
    """int32[images]: 0 .. classes - 1; or several labels per image, int8[images, classes]: 1, 0, -1 unknown"""
    w: Floats | None = None
    """float32[images]: how much each counts in training; None: all the same"""

    def select(self, places: NDArray[np.int64]) -> Vectors:
        """Those at some places."""
        return Vectors(self.x[places], self.y[places], None if self.w is None else self.w[places])

    def joined(self, *others: Vectors) -> Vectors:
        """Followed by others; what has no weights counts 1."""
        parts = (self, *others)
        weights = None
        if any(part.w is not None for part in parts):
            weights = np.concatenate([np.ones(len(part.y), np.float32) if part.w is None else part.w for part in parts])
        return Vectors(np.concatenate([part.x for part in parts]), np.concatenate([part.y for part in parts]), weights)


@dataclass(frozen=True)
class Task:
    """What every head is given: checked vectors, and how many classes there are."""

    train: Vectors
    val: Vectors | None
    num_classes: int
    seed: int
    class_weights: Floats
    """float32[classes]"""
    loss: LossConfig = PLAIN
    """Resolved."""
    check: Check = lambda: None
    """Called between settings or epochs; raises where training is no longer wanted."""
    start: Floats | None = None
    """float32[features, classes]: kernel on vectors of scaling l2 that the linear head starts from; None: zeros."""

    def joined(self) -> Task:
        """The task of a refit: training and validation vectors together, nothing left to choose on."""
        assert self.val is not None, "only a head that chose on validation is refitted"
        return replace(self, train=self.train.joined(self.val), val=None)

    @functools.cached_property
    def present(self) -> NDArray[np.int32]:
        """The classes that the training vectors have: int32[present], sorted."""
        return np.unique(self.train.y)

    @functools.cached_property
    def adjustment(self) -> Floats:
        """float32[present]: what the loss adds to logits (`loss.logit_adjustment`)."""
        counts = np.bincount(self.train.y)[self.present]
        return np.asarray(self.loss.logit_adjustment * log_shares(counts), np.float32)

    def places(self, y: NDArray[np.signedinteger[Any]]) -> NDArray[np.int32]:
        """Labels as indices into `present`; -1 for a class without training vectors."""
        place = np.full(self.num_classes, -1, np.int32)
        place[self.present] = np.arange(len(self.present))
        return place[y]

    def sample_weights(self) -> Floats:
        """float32[images]: the class weight of each training vector; they sum to 1."""
        weights = self.class_weights.astype(np.float64)[self.train.y]
        if self.train.w is not None:
            weights = weights * self.train.w
        return (weights / weights.sum()).astype(np.float32)


@dataclass(frozen=True, eq=False)
class FittedHead(ABC):
    """A trained head: its arrays, what was chosen, and how every setting that was tried fared."""

    kind: ClassVar[str]
    """Name in the registry."""
    follows: ClassVar[tuple[str, ...]] = ()
    """Settings that training finds rather than tries."""

    num_classes: int
    num_features: int
    settings: dict[str, Any]
    """The chosen setting; JSON values."""
    curve: list[dict[str, Any]]
    """Every setting tried: its options, `train_loss`, `val_loss`, `val_accuracy` and what else the head knows of it.
    Losses are cross-entropy without any penalty."""
    arrays: Arrays
    """What was learned."""

    @abstractmethod
    def logits(self, x: Floats) -> Floats:
        """float32[images, features] to float32[images, classes]; log-probabilities where a head has only those."""

    def check(self) -> None:
        """Raises where what was learned does not give logits."""
        scores = self.logits(np.zeros((1, self.num_features), np.float32))
        if scores.shape != (1, self.num_classes) or not np.isfinite(scores).all():
            raise ValueError("its logits are not numbers, one for each class")

    @property
    def name(self) -> str:
        """The name under which this head is asked for in the config."""
        return self.kind

    @property
    def chosen(self) -> int:
        """The place of the chosen setting in the curve."""
        return next(
            place
            for place, entry in enumerate(self.curve)
            if all(entry.get(key, value) == value for key, value in self.settings.items())
        )

    @property
    def digest(self) -> str:
        """SHA-256 of names, types, shapes and bytes of the arrays in the order of their names, as hexadecimal."""
        return digest_of(self.arrays)

    def meta(self) -> dict[str, Any]:
        """All but the arrays, as JSON; `restore_head` puts both together again."""
        about = {"format": _FORMAT, "name": self.name, "classes": self.num_classes, "features": self.num_features}
        return {**about, "settings": self.settings, "curve": self.curve, "sha256": self.digest}


def digest_of(arrays: Arrays) -> str:
    """See `FittedHead.digest`."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        total.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        total.update(array.tobytes())
    return total.hexdigest()


class _Meta(BaseModel):
    """What `FittedHead.meta` gives."""

    name: str
    classes: Annotated[int, Field(ge=1, le=1_000_000)]
    features: Annotated[int, Field(ge=1, le=10_000_000)]
    settings: dict[str, Any]
    curve: list[dict[str, Any]]
    sha256: str


class JaxHead(FittedHead):
    """A head whose logits are a pure JAX function, so that backbone and head can be one program."""

    @property
    def block(self) -> int:
        """Vectors that `logits` computes at once."""
        return _BLOCK

    @abstractmethod
    def apply(self, arrays: Mapping[str, jax.Array], x: jax.Array) -> jax.Array:
        """Pure: float32[images, features] to float32[images, classes], with `arrays` as in `self.arrays`."""

    def check(self) -> None:
        """Nothing is computed."""
        import jax

        x = jax.ShapeDtypeStruct((1, self.num_features), np.float32)
        shape = jax.eval_shape(self.apply, self.arrays, x).shape
        if shape != (1, self.num_classes):
            raise ValueError(f"its logits are {list(shape)}, not one for each of {self.num_classes} classes")
        for name, array in self.arrays.items():
            if not np.isfinite(array).all():
                raise ValueError(f"{name} holds NaN or infinity")

    @functools.cached_property
    def _compiled(self) -> tuple[Callable[..., jax.Array], Mapping[str, jax.Array]]:
        import jax

        return jax.jit(self.apply), jax.device_put(self.arrays)

    def logits(self, x: Floats) -> Floats:
        """float32[images, features] to float32[images, classes], in blocks of images.

        Raises:
            UserError: `x` has another width, or holds NaN or infinity.
        """
        check_vectors(x, "vectors", self.num_features)
        apply, arrays = self._compiled
        result = np.empty((len(x), self.num_classes), np.float32)
        block = min(self.block, 1 << max(len(x) - 1, 1).bit_length())  # few shapes: each is a compilation
        for start in range(0, len(x), block):
            part = x[start : start + block]
            padded = np.pad(part, ((0, block - len(part)), (0, 0)))
            result[start : start + block] = np.asarray(apply(arrays, padded))[: len(part)]
        return result


def fit_head(
    config: HeadConfig,
    train: Vectors,
    val: Vectors | None = None,
    *,
    num_classes: int,
    seed: int = 0,
    class_weights: Floats | None = None,
    loss: LossConfig = PLAIN,
    check: Check | None = None,
    start: Floats | None = None,
) -> FittedHead:
    """Trains the head that the config names; the same seed gives the same bits on the same machine.

    Args:
        config: options of the head; those that are None are chosen by the head.
        train: vectors to learn from.
        val: vectors on which one of several settings is chosen; may be missing where there is only one.
        num_classes: logits a vector; classes without training vectors keep their column.
        seed: of initialisation, order and search.
        class_weights: float32[classes], how much a vector of each class counts (default: all the same).
        loss: what the heads linear and mlp minimise.
        check: called at the start and several times a second meanwhile; what it raises ends training.
        start: float32[features, classes], what `class_kernel` reads from the file `config.init`.

    Raises:
        UserError: vectors or labels are not of that kind, or the options need what is not there.
        RunError: training did not end in finite numbers.
    """
    check_vectors(train.x, "training vectors", None)
    _check_labels(train, "training", num_classes)
    if val is not None:
        check_vectors(val.x, "validation vectors", train.x.shape[1])
        _check_labels(val, "validation", num_classes)
        if not len(val.x):
            val = None
    if config.refit and val is None:
        raise UserError("head.refit trains on training and validation vectors, and there are no validation vectors")
    several = train.y.ndim == 2
    if not several and len(np.unique(train.y)) < 2:
        raise UserError(f"the training vectors have one class only ({train.y[0]}); a head needs two")
    weights = np.ones(num_classes, np.float32) if class_weights is None else np.asarray(class_weights, np.float32)
    if weights.shape != (num_classes,) or not (np.isfinite(weights).all() and (weights > 0).all()):
        raise UserError(f"class_weights must be {num_classes} positive numbers, one a class")
    task, resolved = Task(train, val, num_classes, seed, weights, loss.resolved(), start=start), config.resolved()
    one = functools.partial(_module(config.name).fit, resolved)

    def fit(task: Task) -> FittedHead:
        head: FittedHead = _module("several").fit(resolved, task, one) if several else one(task)
        return head

    return fit(task) if check is None else _attended(lambda: fit(replace(task, check=check)), check)


def _attended(work: Callable[[], FittedHead], check: Check) -> FittedHead:
    """`work()` in a thread of its own, so that `check` is heard also while a library computes for minutes in C.

    Where `check` raises, that thread is left behind: it ends at the next setting or epoch, or with the process.
    """
    done: Future[FittedHead] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    check()
    threading.Thread(target=run, daemon=True, name="head").start()
    while not wait([done], _CHECK_SECONDS).done:
        check()
    return done.result()


def check_head(config: HeadConfig) -> None:
    """UserError where the head's classifier does not exist or its package is not installed; trains nothing."""
    if config.kind in ("sklearn", "xgboost"):
        _module(config.kind).check(config)


def restore_head(meta: Mapping[str, Any], arrays: Arrays) -> FittedHead:
    """The head with this `meta()` and these arrays. Raises DamagedError where they are not those of one head."""
    with reading("the head", "head", "train it again"):
        if meta["format"] != _FORMAT:
            raise DamagedError(f"the head was written in format {meta['format']}; this version reads {_FORMAT}")
        about = _Meta.model_validate(meta)
        if digest_of(arrays) != about.sha256:
            raise DamagedError("the head is damaged: its arrays are not the ones that were saved")
        about_one = (about.name, about.classes, about.features, about.settings, about.curve, arrays)
        more = (_load,) if about.name.startswith("several:") else ()
        head: FittedHead = _module(about.name).load(*about_one, *more)
        head.check()
    return head


def _load(name: str, *about: Any) -> FittedHead:
    head: FittedHead = _module(name).load(name, *about)
    return head


def check_vectors(x: Floats, what: str, features: int | None) -> None:
    """UserError where `x` is not finite float32[images, features]."""
    if x.ndim != 2 or x.dtype != np.float32:
        raise UserError(f"{what} must be float32[images, features], not {x.dtype}{list(x.shape)}")
    if features is not None and x.shape[1] != features:
        raise UserError(f"{what} have {x.shape[1]} features, the head was trained on {features}")
    finite = [np.isfinite(x[part]).all(axis=1) for part in blocks(len(x))]
    bad = np.flatnonzero(~np.concatenate([np.ones(0, bool), *finite]))
    if len(bad):
        raise UserError(f"{what} hold NaN or infinity in {len(bad)} of {len(x)} rows, the first is row {bad[0]}")


def blocks(rows: int) -> Iterator[slice]:
    """Slices that cover this many rows: what is made of a block is small, however many vectors there are."""
    return (slice(start, min(start + _BLOCK, rows)) for start in range(0, rows, _BLOCK))


def all_columns(task: Task, kernel: Floats, bias: Floats) -> tuple[Floats, Floats]:
    """A last layer of the classes that were trained, with columns for the others."""
    wide = np.zeros((len(kernel), task.num_classes), np.float32)
    wide_bias = np.full(task.num_classes, UNSEEN, np.float32)
    wide[:, task.present], wide_bias[task.present] = kernel, bias
    return wide, wide_bias


def choose(curve: list[dict[str, Any]], by: Literal["loss", "accuracy"]) -> int:
    """The best entry of a curve by validation loss or accuracy, of equals by the other one, then the first."""

    def rank(i: int) -> tuple[float, ...]:
        loss, misses = curve[i]["val_loss"], -curve[i]["val_accuracy"]
        return (loss, misses, i) if by == "loss" else (misses, loss, i)

    return min(range(len(curve)), key=rank)


def needs_validation(settings: int, task: Task) -> None:
    """UserError where there is a choice and nothing to choose on."""
    if settings > 1 and task.val is None:
        raise UserError(f"{settings} settings to choose from and no validation vectors: give them, or one setting")


def _check_labels(vectors: Vectors, what: str, num_classes: int) -> None:
    x, y, _ = vectors
    if y.ndim == 2:
        if y.shape != (len(x), num_classes) or not np.isin(y, (0, 1, -1)).all():
            raise UserError(f"{what} labels must be 0, 1 or -1, [{len(x)}, {num_classes}], not {list(y.shape)}")
        return
    if y.shape != (len(x),) or not np.issubdtype(y.dtype, np.integer):
        raise UserError(f"{what} labels must be int32[{len(x)}], one a vector, not {y.dtype}{list(y.shape)}")
    if len(y) and (y.min() < 0 or y.max() >= num_classes):
        found = f"{y.min()} to {y.max()}"
        raise UserError(
            f"{what} labels go from {found}; with {num_classes} classes they must be 0 to {num_classes - 1}"
        )


def _module(name: str) -> Any:
    return importlib.import_module(f"jaxtrain.heads.{_MODULES[name.partition(':')[0]]}")
