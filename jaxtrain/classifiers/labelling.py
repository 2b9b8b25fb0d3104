"""Image files labelled by a trained model, as the rows of a table."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxtrain.classifiers.base import BaseClassifier
from jaxtrain.config import ExplainMethod
from jaxtrain.data.bad_images import BadImages
from jaxtrain.data.base import FileSource
from jaxtrain.errors import RunError
from jaxtrain.escape import plain
from jaxtrain.evaluation.gallery import heat_picture
from jaxtrain.files import run_name
from jaxtrain.trees import tree_digest


@dataclass(frozen=True)
class Labelling:
    """How files are labelled."""

    run_dir: Path
    topk: int | None
    """Classes per image; None: 1, or of several labels per image those that it gets."""
    embeddings: bool
    """Also the vector before the head."""
    explain: Path | None = None
    """A folder for a heat map of each image."""
    method: ExplainMethod = "auto"
    """Of those maps."""

    def rows(self, classifier: BaseClassifier, files: Sequence[str], before: int = 0) -> Iterator[list[dict[str, Any]]]:
        """Those of each batch: file, label, probability and more, or why not; `before`: files done earlier.

        Raises RunError where the model gives numbers that are not finite.
        """
        source, bad_images = FileSource(files, np.zeros(len(files), np.int32)), BadImages(allowed=None, named=False)
        start, fitted = 0, classifier.fitted
        stream: Any = fitted.predictor.stream
        if self.explain is not None:
            stream = functools.partial(fitted.predictor.explain, method=self.method)
        for batch in stream(source, bad_images, embedding=self.embeddings):
            rows = []
            for place, probabilities in enumerate(fitted.task.probabilities(batch["logits"]), start=start):
                name = source.describe(place)
                if (reason := bad_images.reasons.get(name)) is not None:
                    rows.append({"file": name, "reason": reason})
                    continue
                if not np.isfinite(probabilities).all():
                    raise RunError(f"{self.run_dir}: the model gives no finite numbers for {plain(name)}")
                best = np.argsort(-probabilities, kind="stable")
                if self.topk is None and classifier.thresholds is not None:
                    best = best[probabilities[best] >= np.array(classifier.thresholds)[best]]
                else:
                    best = best[: self.topk or 1]
                top = [{"label": classifier.class_names[i], "probability": float(probabilities[i])} for i in best]
                row = {"file": name, **(top[0] if top else {}), "top": top}
                if self.embeddings:
                    row["embedding"] = [float(x) for x in batch["embedding"][place - start]]
                if self.explain is not None:
                    shown = self.explain / f"{before + place:06}-{run_name(Path(name).stem)}.png"
                    white = 65535 if fitted.config.data.bits == 16 else 255
                    pixels = batch["image"][place - start] * (255 / white)
                    heat_picture(pixels, batch["heat"][place - start]).save(shown)
                    row["explanation"] = str(shown)
                rows.append(row)
            start += len(batch["logits"])
            yield rows


def weights_digests(classifier: BaseClassifier) -> list[str]:
    """Of the weights that label."""
    return [tree_digest(part) for part in classifier.fitted.weights.values()]
