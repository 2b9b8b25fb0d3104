"""Trains one model under each strategy on 8 virtual CPU devices; prints the losses as JSON. Run by test_parallel.py."""

import json
import os
import sys
import tempfile
from pathlib import Path

# On a busy machine the threads of 8 devices can take longer to meet than the 40 seconds after which XLA gives up.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_cpu_collective_call_terminate_timeout_seconds=240"
)

import numpy as np
from sklearn.datasets import load_digits

from jaxtrain import PTClassifier

WAYS = {"one": ("jit", 1), "jit": ("jit", 8), "pmap": ("pmap", 8), "fsdp": ("fsdp", 8)}


def losses(strategy: str, devices: int, accumulate: int, folder: Path) -> dict[str, list[float]]:
    digits = load_digits()
    images = (digits.images * 255 / 16).round().astype(np.uint8)
    classifier = PTClassifier(
        run_dir=folder / f"{strategy}{devices}-{accumulate}",
        quiet=True,
        tracking={"enabled": False},
        model={"name": "cnn_tiny", "drop_rate": 0.2},
        augment={"policy": "light", "mixup": 0.2},
        train={"steps": 20, "batch_size": 64, "log_every": 1, "accumulate": accumulate, "ema_decay": 0.9},
        parallel={"strategy": strategy, "devices": devices},
    )
    classifier.fit(images[:1000], digits.target[:1000])
    records = [json.loads(line) for line in (classifier.run_dir / "metrics.jsonl").read_text().splitlines()]
    return {
        "losses": [record["train/loss"] for record in records if "train/loss" in record],
        "accuracies": [record["val/accuracy"] for record in records if "val/accuracy" in record],
        "logits": classifier.predict_logits(images[1000:1003]).ravel().tolist(),
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        accumulate = int(sys.argv[1])
        print(json.dumps({n: losses(*way, accumulate, Path(folder)) for n, way in WAYS.items()}))
