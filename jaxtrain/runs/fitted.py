"""What a run leaves: trained weights with all that is needed to use them, in memory and as a folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol

import jax
import numpy as np
from numpy.typing import NDArray

from jaxtrain.config import Config, ExplainMethod, chosen
from jaxtrain.data.bad_images import BadImages
from jaxtrain.data.base import ImageSource
from jaxtrain.errors import UserError
from jaxtrain.evaluation.costs import ForwardPass
from jaxtrain.heads import FittedHead, restore_head
from jaxtrain.heads.base import JaxHead
from jaxtrain.models.heat import Method, feature_map, rolls_out
from jaxtrain.readers import reading
from jaxtrain.runs.extraction import Extractor
from jaxtrain.saved_model import OTHER, SavedModel
from jaxtrain.saved_tree import save_tree
from jaxtrain.tasks import Task, task_of
from jaxtrain.training.inference import Inference
from jaxtrain.training.parallel import check_devices, make_strategy
from jaxtrain.training.state import Batch, Tree
from jaxtrain.training.technique import Binding, Technique
from jaxtrain.trees import nested_parts

Floats = NDArray[np.float32]


class Predicts(Technique, Protocol):
    """A technique that can use what it has learned."""

    technique: ClassVar[str]

    def predictor(self, fitted: Fitted, *, everywhere: bool = False) -> Predictor:
        """How `fitted` predicts; `everywhere`: each process of the run computes its share of every batch."""


@dataclass(frozen=True)
class Fitted:
    """What a trained classifier knows."""

    technique: Predicts
    """Bound to the resolved config."""
    class_names: tuple[str, ...]
    weights: Tree
    """Host arrays by name of {"params", "frozen", "model_state"}."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What a technique keeps besides, as JSON."""
    run_dir: Path | None = None
    summary: Mapping[str, Any] = field(default_factory=dict)
    """`summary.json` of the run."""

    @property
    def config(self) -> Config:
        """Resolved."""
        return self.technique.config

    @property
    def classes(self) -> Sequence[int] | Sequence[str] | None:
        """What labels were given as, in the order of `class_names`; None: places in it."""
        return self.extra.get("classes")

    @property
    def task(self) -> Task:
        """One class per image, or several labels."""
        return task_of(self.config)

    @property
    def thresholds(self) -> tuple[float, ...] | None:
        """The probability from which on each label is given; None: one class per image."""
        if self.task.name != "multilabel":
            return None
        return tuple(self.extra.get("thresholds") or (0.5,) * len(self.class_names))

    @cached_property
    def predictor(self) -> Predictor:
        """Its forward passes, compiled on first use; no part of a pickle or a copy."""
        return self.technique.predictor(self)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "predictor"}


class Predictor:
    """Forward passes of trained weights; arrays go to the devices on first use."""

    def __init__(self, fitted: Fitted, *, everywhere: bool = False) -> None:
        self._fitted, self._everywhere = fitted, everywhere
        self.class_names = fitted.class_names
        self.config = fitted.config
        self.thresholds = fitted.thresholds

    def predict_logits(self, source: ImageSource, bad_images: BadImages | None = None) -> NDArray[np.float32]:
        """`float32[images, classes]`; NaN for an image that could not be read, which is entered in `bad_images`.

        Without `bad_images` up to `data.max_bad_images` are passed over, and more raise RunError.
        """
        return self.from_network(self.network_rows(source, bad_images))

    def network_rows(self, source: ImageSource, bad_images: BadImages | None = None) -> NDArray[np.float32]:
        """What the network gives, `float32[images, numbers]`; NaN as in `predict_logits`.

        In parts of whole batches it has the same bits as at once.
        """
        inference, weights = self._placed
        return inference.logits(weights, source, bad_images)

    def from_network(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """`float32[images, classes]` of what the network gave for all of them."""
        return rows

    def embed(self, source: ImageSource, bad_images: BadImages | None = None) -> NDArray[np.float32]:
        """`float32[images, features]`; NaN as in `predict_logits`."""
        inference, weights = self._placed
        return inference.embed(weights, source, bad_images)

    def stream(self, source: ImageSource, bad_images: BadImages, *, embedding: bool) -> Iterator[dict[str, Floats]]:
        """`logits`, and the `embedding` where it is wanted, of each batch in order; NaN as in `predict_logits`."""
        inference, weights = self._placed
        for rows in inference.stream("both" if embedding else "logits", weights, source, bad_images):
            yield rows if embedding else {"logits": rows}

    def explain(
        self, source: ImageSource, bad_images: BadImages, *, embedding: bool, method: ExplainMethod = "auto"
    ) -> Iterator[dict[str, Floats]]:
        """As `stream`, and a map of what speaks for the most probable class of each image (`jaxtrain.models.heat`).

        "heat": `float32[batch, rows, columns]`; "image", as the network has it: `float32[batch, size, size, channels]`,
        0 to 255. Raises UserError as `explained_by`.
        """
        inference, weights = self._placed
        function = inference.explaining(self.logits_of, embedding=embedding, method=self._heat_method(method))
        yield from inference.mapped(inference.strategy.compile_map(function), weights, source, bad_images)

    def explained_by(self, method: ExplainMethod = "auto") -> str:
        """What the maps of `explain` are, in words. Raises UserError where there are none by that method."""
        data, (inference, _) = self.config.data, self._placed
        rollout = self._heat_method(method) == "rollout"
        images = jax.ShapeDtypeStruct(
            (1, chosen(data.image_size), chosen(data.image_size), chosen(data.channels)), np.float32
        )
        found = feature_map(lambda: inference.network.bind(**self.network_weights), images, self.logits_of)
        if found is None:
            return "absolute gradients of the pixels, as the network has no feature map"
        shape = found[1]
        if rollout:
            return f"attention rollout to {shape[1]} tokens"
        return "Grad-CAM on " + (f"{shape[1]} x {shape[2]} places" if len(shape) == 4 else f"{shape[1]} tokens")

    def _heat_method(self, method: ExplainMethod) -> Method:
        """Raises UserError for a rollout that the network does not have."""
        can = self._pools_by_itself and rolls_out(self._placed[0].network.bind(**self.network_weights))
        if method == "rollout" and not can:
            kind = "a vision transformer with plain attention that pools its class token or the mean of its patches"
            raise UserError(f"attention rollout is for {kind}: leave the method out, or give gradcam")
        return "rollout" if can and method != "gradcam" else "gradcam"

    @property
    def _pools_by_itself(self) -> bool:
        """Whether the vector before the head is the one that the network makes."""
        return True

    def logits_of(self, model: Any, images: jax.Array) -> jax.Array:
        """`float32[batch, classes]` of normalised images by the network: a pure function that has gradients."""
        logits: jax.Array = model(images).astype(np.float32)
        return logits

    def forward_pass(self) -> ForwardPass:
        """How predictions are computed, for who takes the time of it (`jaxtrain.evaluation.costs`)."""
        return self._forward_pass("logits")

    def check_shapes(self) -> None:
        """Raises where the weights, of which shapes are enough, do not make the network; nothing is computed."""
        if (columns := self._columns("logits")) != len(self.class_names):
            raise ValueError(f"it has {len(self.class_names)} class names, and its network {columns} outputs")

    def check(self) -> None:
        """Raises where what does not follow from shapes is not sound."""

    @property
    def network_weights(self) -> Tree:
        """{"params", "frozen", "model_state"} of the network alone."""
        return self._fitted.weights

    @cached_property
    def _placed(self) -> tuple[Inference, Tree]:
        strategy = make_strategy(self.config.parallel, everywhere=self._everywhere)
        return Inference(self._fitted.technique, strategy), strategy.place(self.network_weights)

    def _columns(self, output: str) -> int:
        """How many numbers the network gives for an image."""
        data = self.config.data
        for name in ("image_size", "channels", "mean", "std", "crop_pct", "interpolation"):
            if getattr(data, name) is None:
                raise ValueError(f"config.data.{name} is missing")
        forward, side = self._forward_pass(output), chosen(data.image_size)
        images = jax.ShapeDtypeStruct((2, side, side, chosen(data.channels)), np.dtype(data.pixel_type))
        return int(jax.eval_shape(forward.network, forward.weights, images).shape[-1])

    def _forward_pass(self, output: str, **head: Any) -> ForwardPass:
        network = Inference(self._fitted.technique, make_strategy(self.config.parallel)).function(output)
        return ForwardPass(
            network=lambda weights, images: network(weights, Batch(images, None)),
            weights=self.network_weights,
            config=self.config,
            **head,
        )


class HeadPredictor(Predictor):
    """A head on the embeddings of a frozen backbone."""

    def __init__(self, fitted: Fitted, *, everywhere: bool = False, extractor: Extractor | None = None) -> None:
        """`extractor`: embeds through the store, in a run."""
        super().__init__(fitted, everywhere=everywhere)
        self._extractor = extractor

    @cached_property
    def head(self) -> FittedHead:
        """Vectors `float32[images, features]` to logits."""
        arrays = {name: np.asarray(array) for name, array in self._fitted.weights["params"].items()}
        return restore_head(self._fitted.extra["head"], arrays)

    @property
    def network_weights(self) -> Tree:
        """The backbone's."""
        return {**self._fitted.weights, "params": {}}

    def check_shapes(self) -> None:
        """Of the backbone, where there is one."""
        if self._fitted.weights["frozen"]:
            features, known = self._columns("embed"), self._fitted.extra["head"]["features"]
            if features != known:
                raise ValueError(f"its backbone gives {features} features, its head takes {known}")

    def check(self) -> None:
        """The head is restored."""
        if self.head.num_classes != len(self.class_names):
            raise ValueError(f"it has {len(self.class_names)} class names, and its head {self.head.num_classes}")

    def network_rows(self, source: ImageSource, bad_images: BadImages | None = None) -> NDArray[np.float32]:
        """The backbone's vectors, `float32[images, features]`; NaN as in `predict_logits`."""
        return self.embed(source, bad_images)

    def stream(self, source: ImageSource, bad_images: BadImages, *, embedding: bool) -> Iterator[dict[str, Floats]]:
        """`logits`, and the `embedding` where it is wanted, of each batch in order; NaN as in `predict_logits`."""
        inference, weights = self._placed
        for vectors in inference.stream("embed", weights, source, bad_images):
            yield {"logits": self.from_network(vectors), **({"embedding": vectors} if embedding else {})}

    def from_network(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """`float32[images, classes]` of vectors, by the head."""
        readable = np.isfinite(rows).all(axis=1)
        logits = np.full((len(rows), len(self.class_names)), np.nan, np.float32)
        logits[readable] = self.head.logits(rows[readable])
        return logits

    @property
    def _pools_by_itself(self) -> bool:
        return self.config.features.pool == "auto" and self.config.features.blocks == 1

    def logits_of(self, model: Any, images: jax.Array) -> jax.Array:
        """By the head. Raises UserError for one of a library, which has no gradients."""
        if not isinstance(self.head, JaxHead):
            raise UserError(f"the head {self.head.name} has no gradients, by which an image could be explained")
        return self.head.apply(jax.device_put(self.head.arrays), self._fitted.technique.embedding(model, images))

    def embed(self, source: ImageSource, bad_images: BadImages | None = None) -> NDArray[np.float32]:
        """The vector that the head sees: `float32[images, features]`."""
        if self._extractor is not None:
            return self._extractor(source).load()
        return super().embed(source, bad_images)

    def forward_pass(self) -> ForwardPass:
        """The backbone, then the head on the host."""
        numbers = sum(array.size for array in self._fitted.weights["params"].values())
        return self._forward_pass("embed", head=self.head.logits, head_flops=2.0 * numbers)


def save_model(fitted: Fitted, path: Path) -> Path:
    """Write the folder `path`, which must not exist yet: weights with digests (Orbax), config and class names."""
    class_weights = fitted.technique.binding.class_weights
    meta: dict[str, Any] = {
        "format": 1,
        "technique": fitted.technique.technique,
        "config": fitted.config.model_dump(mode="json"),
        "class_names": list(fitted.class_names),
        "class_weights": None if class_weights is None else list(class_weights),
        "extra": dict(fitted.extra),
    }
    save_tree(path, nested_parts(fitted.weights), meta)
    return path


def read_model(path: Path) -> SavedModel:
    """The model of a run directory or a folder of `save_model`, of which no weight is read yet; raises as its `open`"""
    check_devices()  # Orbax reads through them, and would call the model damaged
    return SavedModel.open(path)


def restored(technique: Predicts, saved: SavedModel, *, run_dir: Path | None, summary: Mapping[str, Any]) -> Fitted:
    """What was saved with `save_model`, for a technique of that kind.

    Raises DamagedError where its weights are not those of its network, before they are read.
    """
    about = saved.about
    binding = Binding(len(about.class_names), about.class_weights)
    with reading(saved.path, "saved model", OTHER):
        bound = technique.bind(about.config, binding)
        fitted = Fitted(bound, about.class_names, saved.shapes(), about.extra, run_dir, summary)
        fitted.predictor.check_shapes()
        fitted = replace(fitted, weights=saved.weights())
        fitted.predictor.check()
    return fitted
