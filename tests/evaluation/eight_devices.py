"""Test counts for many batch sizes and numbers of devices on 8 virtual CPU devices, as JSON. Run by test_devices.py."""

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import numpy as np
from sklearn.datasets import load_digits

from jaxtrain import PTClassifier
from jaxtrain.data.arrays import from_arrays
from jaxtrain.evaluation.evaluate import evaluate_on_test


def main(folder: Path) -> dict[str, dict[str, object]]:
    digits = load_digits()
    images = (digits.images * 255 / 16).round().astype(np.uint8)
    # 101 images: a prime, so nothing divides it.
    data = from_arrays(images[:300], digits.target[:300], test=(images[300:401], digits.target[300:401]))
    options = {"quiet": True, "tracking": {"enabled": False}, "model": {"name": "linear"}}
    classifier = PTClassifier(run_dir=folder / "run", train={"steps": 20, "batch_size": 64}, **options)
    classifier.fit(images[:300], digits.target[:300])
    found = {}
    for devices in (1, 2, 3, 8):
        for batch in (1, 7, 64, 101):
            again = PTClassifier.load(folder / "run")
            changes = {"parallel.devices": devices, "train.batch_size": batch}
            again.config = again.config.replace(**changes)
            evaluation = evaluate_on_test(
                again, data, folder=folder / "out", technique="pt", model="linear", params_sha256="0" * 64,
                looks_file=folder / "looks.json", resamples=100,
            )  # fmt: skip
            found[f"{devices} devices, batch {batch}"] = {
                "confusion": evaluation.measured.confusion.tolist(),
                "images": len(evaluation.predictions.labels),
                "unique": len(set(evaluation.predictions.ids)),
                "logits": float(np.abs(evaluation.predictions.logits).sum()),
            }
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        json.dump(main(Path(name)), sys.stdout)
