"""Several labels on real pictures: pre-training against one logistic regression per label on raw pixels."""

import dataclasses

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from jaxtrain import PTClassifier
from jaxtrain.evaluation.comparison import Candidate, compare
from jaxtrain.evaluation.predictions import Predictions
from jaxtrain.evaluation.report import Report
from tests.garments import FOLDER, garments

OPTIONS = {
    "model": {"name": "cnn_small"},
    "train": {"epochs": 8, "batch_size": 64},
    "optimizer": {"learning_rate": 3e-3},
    "tracking": {"enabled": False},
    "quiet": True,
}


def pixels(images):
    return images.reshape(len(images), -1).astype(np.float32) / 255


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not FOLDER.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_pre_training_beats_logistic_regression_on_pixels(tmp_path):
    """Seven minutes of one core, to a mAP of 0.925; the regression comes to 0.8."""
    train, test = garments("train", 24_000, 0), garments("t10k", 2000, 1)
    classifier = PTClassifier(run_dir=tmp_path / "run", **OPTIONS).fit(*train, test=test)
    assert classifier.summary["test_mAP"] > 0.92
    ours = Predictions.load(tmp_path / "run" / "benchmark" / "predictions.npz")
    columns = [
        LogisticRegression(C=0.003, max_iter=60).fit(pixels(train[0]), truth).decision_function(pixels(test[0]))
        for truth in train[1].T
    ]
    theirs = {"logits": np.stack(columns, axis=1).astype(np.float32), "technique": "sklearn", "thresholds": (0.5,) * 10}
    theirs |= {"params_sha256": "0" * 64, "val_labels": None, "val_logits": None}
    other = dataclasses.replace(ours, **theirs)
    report = Report(compare([Candidate("network", ours), Candidate("regression", other)]))
    assert "network is better than regression" in report.verdicts[0]
    assert report.comparison.pairs[0].gap.corrected.low > 0.08
