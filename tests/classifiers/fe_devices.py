"""Feature extraction under each strategy on 8 virtual CPU devices; prints results as JSON. Run by test_fe_runs.py."""

import json
import os
import tempfile
from pathlib import Path

# On a busy machine the threads of 8 devices can take longer to meet than the 40 seconds after which XLA gives up.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_cpu_collective_call_terminate_timeout_seconds=240"
)

import numpy as np
from sklearn.datasets import load_digits

from jaxtrain import FEClassifier, PTClassifier

WAYS = {"one": ("jit", 1), "jit": ("jit", 8), "pmap": ("pmap", 8), "fsdp": ("fsdp", 8)}
OFF = {"enabled": False}


def run(strategy: str, devices: int, folder: Path, images: np.ndarray, labels: np.ndarray) -> dict[str, object]:
    name = f"{strategy}{devices}"
    classifier = FEClassifier(
        run_dir=folder / name,
        quiet=True,
        tracking=OFF,
        model={"weights": str(folder / "pt")},
        features={"store": folder / f"store-{name}", "views": 2},
        augment={"policy": "none", "rotate": 10.0},
        parallel={"strategy": strategy, "devices": devices},
    )
    classifier.fit(images[:501], labels[:501], test=(images[501:700], labels[501:700]))
    return {
        "vectors": classifier.embed(images[:13]).tolist(),
        "test_accuracy": classifier.summary["test_accuracy"],
        "val_accuracy": classifier.summary["val_accuracy"],
    }


if __name__ == "__main__":
    digits = load_digits()
    pixels = (digits.images * 255 / 16).round().astype(np.uint8)
    with tempfile.TemporaryDirectory() as name:
        options = {"model": {"name": "cnn_tiny"}, "train": {"steps": 40, "batch_size": 64}, "parallel": {"devices": 1}}
        PTClassifier(run_dir=Path(name) / "pt", quiet=True, tracking=OFF, **options).fit(pixels, digits.target)
        print(json.dumps({n: run(*way, Path(name), pixels, digits.target) for n, way in WAYS.items()}))
