"""The code that MLflow stores beside a model and runs to load it. Not imported by jaxtrain itself."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import BAD_REQUEST
from mlflow.pyfunc import PythonModel
from numpy.typing import NDArray

from jaxtrain import load  # type: ignore[attr-defined]  # the public name: this file is kept for years
from jaxtrain.data.base import ArraySource
from jaxtrain.data.decode import BadImageError, decode_16_bits, pixels_of
from jaxtrain.data.transforms import center_crop_resize

_COLUMN = "image"
_MOST_IMAGES = 4096


class ImageClassifier(PythonModel):  # type: ignore[misc]
    """Images in, a table out with one row per image.

    Images are a column `image` of a table, or a list. Each is an encoded file (JPEG, PNG, WebP ...) as bytes or base64
    text, or pixels `uint8[height, width, channels]` of any size; all may be one array.
    Columns: `label` (the most probable class), `probability` (its probability), `probabilities` (of all classes, in
    the order of `class_names` in the model's metadata). With the parameter `top_k`, `labels` and `probabilities` are
    those of the most probable classes alone. Of several labels per image, `labels` are those whose probability reaches
    their threshold, unless `top_k` is given.
    """

    def load_context(self, context: Any) -> None:
        """Load the exported classifier among the model's artifacts, and compile it."""
        self.classifier = load(context.artifacts["model"], trust_imports=True)
        self._readers = ThreadPoolExecutor(8)
        self._size, self._channels, self._max_pixels, *self._crop = _geometry(self.classifier.fitted.config)
        self._type = np.dtype(self.classifier.fitted.config.data.pixel_type)
        self._classify(np.zeros((1, self._size, self._size, self._channels), self._type))

    # With any other type hint of the input, or with none, MLflow warns whoever loads the model.
    def predict(self, context: Any, model_input: np.ndarray, params: Any = None) -> pd.DataFrame:  # type: ignore[type-arg]
        """The table. Raises MlflowException, which a server answers with HTTP 400, for what is not an image."""
        given = _images(model_input)
        probabilities = self._classify(np.stack(list(self._readers.map(self._prepared, range(len(given)), given))))
        best, names = probabilities.argmax(axis=1), np.asarray(self.classifier.class_names, object)
        table = {"label": list(names[best]), "probability": probabilities.max(axis=1)}
        if top := int((params or {}).get("top_k") or 0):
            order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
            table |= {"labels": names[order].tolist()}
            probabilities = np.take_along_axis(probabilities, order, axis=1)
        elif self.classifier.thresholds is not None:
            given_labels = probabilities >= np.asarray(self.classifier.thresholds)
            table["labels"] = [names[row].tolist() for row in given_labels]
        return pd.DataFrame({**table, "probabilities": probabilities.tolist()})

    def _classify(self, images: NDArray[Any]) -> NDArray[np.float64]:
        source = ArraySource(images, np.zeros(len(images), np.int32), prepared=True)
        return np.asarray(self.classifier.predict_proba(source), np.float64)

    def _prepared(self, place: int, given: Any) -> NDArray[Any]:
        """One image as the network takes it, `uint8[size, size, channels]`: cropped and resized as in evaluation."""
        try:
            if isinstance(given, str):
                given = base64.b64decode(given, validate=True)
            found = given if isinstance(given, bytes) else self._pixels(given)
            limits: Any = {"channels": self._channels, "max_pixels": self._max_pixels}
            if isinstance(found, bytes) and self._type == np.uint16:
                image = decode_16_bits(found, **limits)
            else:
                image = pixels_of(found, **limits)
        except (BadImageError, binascii.Error, ValueError, TypeError, OverflowError) as error:
            raise MlflowException(f"image {place}: {error}", BAD_REQUEST) from None
        return center_crop_resize(image, self._size, *self._crop)

    def _pixels(self, given: Any) -> NDArray[Any]:
        """`[height, width, channels]` of nested lists or an array; grey images may lack the last axis."""
        array, white = np.asarray(given), np.iinfo(self._type).max
        if array.ndim == 2:
            array = array[..., None]
        counts = (1, 3) if self._channels in (1, 3) else (self._channels,)
        if array.ndim != 3 or array.shape[-1] not in counts or not 0 < array[..., 0].size <= self._max_pixels:
            words = " or ".join(map(str, counts))
            raise ValueError(
                f"pixels [height, width, {words}] or an encoded file are expected, not {list(array.shape)}"
            )
        if array.dtype.kind not in "iu" or array.min() < 0 or array.max() > white:
            raise ValueError(f"pixels are whole numbers from 0 to {white}, not {array.dtype} up to {array.max()}")
        return array.astype(self._type)


def _geometry(config: Any) -> tuple[Any, ...]:
    data = config.data
    return data.image_size, data.channels, data.max_pixels, data.crop_pct, data.interpolation


def _images(given: Any) -> list[Any]:
    """The images of a request, each as it came."""
    if isinstance(given, pd.DataFrame | Mapping):
        if _COLUMN not in given:
            raise MlflowException(f"the images have to be in a column '{_COLUMN}', not {list(given)}", BAD_REQUEST)
        given = given[_COLUMN]
    alone = isinstance(given, bytes | str) or getattr(given, "ndim", 1) == 0
    images = [given] if alone else list(given)
    if not 0 < len(images) <= _MOST_IMAGES:
        raise MlflowException(f"between 1 and {_MOST_IMAGES:,} images, got {len(images):,}", BAD_REQUEST)
    return images


set_model(ImageClassifier())
