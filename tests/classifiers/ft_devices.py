"""Fine-tunes under each way to run a step on 8 virtual CPU devices; prints the losses as JSON. Run by
test_ft_runs.py."""

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

from jaxtrain import FTClassifier, PTClassifier

WAYS = {"one": ("jit", 1), "jit": ("jit", 8), "pmap": ("pmap", 8), "fsdp": ("fsdp", 8)}
COMMON = {"quiet": True, "tracking": {"enabled": False}}
# With batch norm, moving averages, rates by depth and step, and decay towards the start; and with LoRA, where fsdp
# shards frozen kernels.
CASES = {
    "cnn": ({"name": "cnn_tiny"}, {"layer_decay": 0.7, "unfreeze_steps": 3, "l2_sp": 0.1}, 0.9),
    "vit": ({"name": "vit_test", "patch_size": 4, "drop_path_rate": 0.1}, {"strategy": "lora"}, None),
}


def losses(case: str, strategy: str, devices: int, weights: Path, folder: Path) -> dict[str, list[float]]:
    digits = load_digits()
    images = (digits.images * 255 / 16).round().astype(np.uint8)
    _, finetune, ema = CASES[case]
    classifier = FTClassifier(
        run_dir=folder / f"{strategy}{devices}",
        model={"weights": str(weights)},
        finetune=finetune,
        train={"steps": 12, "batch_size": 64, "log_every": 1, "ema_decay": ema},
        optimizer={"learning_rate": 3e-3},
        parallel={"strategy": strategy, "devices": devices},
        **COMMON,
    )
    classifier.fit(images[:1000], digits.target[:1000])
    records = [json.loads(line) for line in (classifier.run_dir / "metrics.jsonl").read_text().splitlines()]
    return {
        "losses": [record["train/loss"] for record in records if "train/loss" in record],
        "logits": classifier.predict_logits(images[1000:1003]).ravel().tolist(),
        "trained": [classifier.summary["trainable_params"]],
    }


def main(case: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = np.random.default_rng(0).integers(0, 256, (64, 8, 8), np.uint8)
        pretraining = PTClassifier(
            run_dir=folder / "pt", model=CASES[case][0], train={"steps": 2, "batch_size": 32}, **COMMON
        )
        pretraining.fit(images, np.arange(64) % 4)
        print(json.dumps({way: losses(case, *how, folder / "pt", folder) for way, how in WAYS.items()}))


if __name__ == "__main__":
    main(sys.argv[1])
