"""The code that MLflow stores beside a model and runs to load it. Not imported by jaxtrain itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from jaxtrain import load  # type: ignore[attr-defined]  # the public name: this file is kept for years


class ImageClassifier(PythonModel):  # type: ignore[misc]
    """Images `uint8[n, height, width, channels]` in, a table out with one row an image.

    Columns: `label` (the most probable class), `probability` (its probability), `probabilities` (a list with
    all, in the order of `class_names` in the model's metadata).
    """

    def load_context(self, context: Any) -> None:
        """Load the exported classifier that lies in the model's artifacts."""
        self.classifier = load(context.artifacts["model"], trust_imports=True)

    # With any other type hint of the input, or with none, MLflow warns whoever loads the model.
    def predict(self, context: Any, model_input: np.ndarray, params: Any = None) -> pd.DataFrame:  # type: ignore[type-arg]
        """Classify images `uint8[n, height, width, channels]`."""
        probabilities = np.asarray(self.classifier.predict_proba(np.asarray(model_input, np.uint8)), np.float64)
        best = probabilities.argmax(axis=1)
        names = list(self.classifier.class_names)
        return pd.DataFrame(
            {
                "label": [names[i] for i in best],
                "probability": probabilities.max(axis=1),
                "probabilities": probabilities.tolist(),
            }
        )


set_model(ImageClassifier())
