"""What a notebook shows."""

from pathlib import Path

import matplotlib.image
import numpy as np

from jaxtrain import PTClassifier
from jaxtrain.screen.notebook import model_html


def test_a_model_is_a_table_with_its_curves_and_names_are_text(tmp_path):
    matplotlib.image.imsave(tmp_path / "learning_curves.png", np.zeros((2, 2)))
    summary = {"model": "cnn_tiny", "dataset": "<img src=x>", "test_accuracy": 0.98765, "steps": 1234, "val_mAP": None}
    text = model_html("PTClassifier", summary, tmp_path)
    for part in ("cnn_tiny", "&lt;img src=x&gt;", "98.77%", "1,234", str(tmp_path), "data:image/png;base64,iVBOR"):
        assert part in text
    assert "<img src=x>" not in text
    assert "mAP" not in text
    assert "<img" not in model_html("PTClassifier", summary, Path("nowhere"))
    assert "not fitted" in PTClassifier()._repr_html_()
